// What the stand-in for <metal_stdlib> and the runtime share.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef unsigned int uint;

// Where a thread stands, by the names of Metal's attributes.
struct MslThread {
    uint thread_position_in_grid[3], thread_position_in_threadgroup[3], threadgroup_position_in_grid[3];
    uint threadgroups_per_grid[3], threads_per_threadgroup[3];
    uint thread_index_in_threadgroup[1], thread_index_in_simdgroup[1], simdgroup_index_in_threadgroup[1];
    uint simdgroups_per_threadgroup[1];
};

// A kernel: its buffers, and a bit for each that it may write.
struct MslKernel {
    const char *name;
    void (*entry)(void **buffers);
    uint buffers, written;
};

// A place in a kernel.
struct MslSite {
    const char *file;
    uint line;
};

// Bytes that a lane shows to the others of its SIMD-group.
enum { MSL_SLOT = 64, MSL_LANES = 32 };

extern "C" {
extern thread_local const MslThread *msl_thread;
__attribute__((convergent)) void msl_threadgroup_barrier(MslSite site);
// Shows `bytes` bytes, waits for the SIMD-group, and returns 32 slots; `active` gets a bit for each lane that came.
__attribute__((convergent)) const unsigned char *msl_exchange(const void *value, uint bytes, MslSite site, uint *active);
// The memory of a threadgroup variable: all threads of a group get the same for one `id`.
void *msl_shared(const void *id, size_t bytes);
}
