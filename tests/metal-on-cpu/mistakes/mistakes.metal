// Kernels with a mistake each, which the emulator must find. Threadgroups have 64 threads.
#include <metal_stdlib>
using namespace metal;

// reads what another thread may not have written yet
kernel void no_barrier(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                       uint i [[thread_index_in_threadgroup]]) {
    threadgroup float tile[64];
    tile[i] = x[i];
    y[i] = tile[63 - i];
}

// the second round overwrites what others still read
kernel void no_barrier_at_the_end(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                  uint i [[thread_index_in_threadgroup]]) {
    threadgroup float tile[64];
    float sum = 0;
    for (uint round = 0; round < 2; round++) {
        tile[i] = x[i] + float(round);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        sum += tile[63 - i];
    }
    y[i] = sum;
}

// waits, but for other memory
kernel void barrier_for_other_memory(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                     uint i [[thread_index_in_threadgroup]]) {
    threadgroup float tile[64];
    tile[i] = x[i];
    threadgroup_barrier(mem_flags::mem_device);
    y[i] = tile[63 - i];
}

// waits for its SIMD-group alone
kernel void barrier_of_a_simd_group(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                    uint i [[thread_index_in_threadgroup]]) {
    threadgroup float tile[64];
    tile[i] = x[i];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = tile[i ^ 32];
}

// a function of the SIMD-group waits for lanes, not for memory
kernel void sum_for_a_barrier(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                              uint i [[thread_index_in_threadgroup]]) {
    y[i] = x[i];
    float sum = simd_sum(x[i]);
    if (i % 32 == 0) y[i + 1] += sum;
}

kernel void barrier_for_some(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                             uint i [[thread_index_in_threadgroup]]) {
    if (i < 20) threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = simd_sum(x[i]);
}

kernel void barriers_apart(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                           uint i [[thread_index_in_threadgroup]]) {
    if (i < 20)
        threadgroup_barrier(mem_flags::mem_threadgroup);
    else
        threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = x[i];
}

kernel void ends_before_barrier(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                uint i [[thread_index_in_threadgroup]]) {
    if (i == 63) return;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = x[i];
}

kernel void sum_of_some(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                        uint i [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    float sum = x[i];
    if (lane < 10) sum = simd_sum(sum);
    y[i] = simd_max(sum);
}

kernel void reads_behind(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                         uint i [[thread_index_in_threadgroup]]) {
    y[i] = x[i + 1];
}

kernel void writes_before(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                          uint i [[thread_index_in_threadgroup]]) {
    y[int(i) - 2000] = x[i];
}

kernel void reads_params_behind(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                constant uint *count [[buffer(2)]], uint i [[thread_index_in_threadgroup]]) {
    y[i] = x[i] + float(count[2]);
}

kernel void writes_what_it_reads(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                 uint i [[thread_index_in_threadgroup]]) {
    ((device float *)x)[i] = 1;
    y[i] = x[i];
}

// follows an address that the call does not name
kernel void goes_elsewhere(device const ulong *table [[buffer(0)]], device float *y [[buffer(1)]],
                           uint i [[thread_index_in_threadgroup]]) {
    y[i] = ((device const float *)table[0])[i];
}

kernel void too_much_memory(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                            uint i [[thread_index_in_threadgroup]]) {
    threadgroup float first[4096], second[4097];
    first[i] = x[i];
    second[i] = x[i];
    y[i] = first[i] + second[i];
}

// adds to what nobody has written
kernel void adds_to_nothing(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                            uint i [[thread_index_in_threadgroup]]) {
    threadgroup float sums[64];
    sums[i] += x[i];
    y[i] = sums[i];
}

kernel void overflows_its_stack(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                uint i [[thread_index_in_threadgroup]]) {
    float values[100000];
    for (uint at = 0; at < 100000; at++) values[at] = x[(i + at) % 64];
    y[i] = values[uint(x[i])];
}

// all threadgroups write the same place
kernel void groups_in_one_place(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                                uint i [[thread_index_in_threadgroup]]) {
    y[i] = x[i];
}
