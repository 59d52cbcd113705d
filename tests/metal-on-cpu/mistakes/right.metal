// Kernels without a mistake, that try what the emulator has.
#include <metal_stdlib>
using namespace metal;

kernel void copy(device const float *x [[buffer(0)]], device float *y [[buffer(1)]], uint i [[thread_position_in_grid]]) {
    y[i] = x[i];
}

// As `no_barrier` and `no_barrier_at_the_end` should be.
kernel void mirror(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                   uint i [[thread_index_in_threadgroup]]) {
    threadgroup float tile[64];
    float sum = 0;
    for (uint round = 0; round < 2; round++) {
        tile[i] = x[i] + float(round);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        sum += tile[63 - i];
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    y[i] = sum;
}

// One SIMD-group; row `n` of the result is what function `n` gives the lanes. Lanes from 29 on are away.
kernel void lanes(device const float *x [[buffer(0)]], device float *y [[buffer(1)]], uint i [[thread_index_in_simdgroup]]) {
    if (i >= 29) return;
    float value = x[i];
    y[0 * 32 + i] = simd_sum(value);
    y[1 * 32 + i] = simd_max(value);
    y[2 * 32 + i] = simd_min(value);
    y[3 * 32 + i] = simd_prefix_exclusive_sum(value);
    y[4 * 32 + i] = simd_prefix_inclusive_sum(value);
    y[5 * 32 + i] = simd_shuffle(value, ushort(28 - i));
    y[6 * 32 + i] = simd_shuffle_xor(value, ushort(1));
    y[7 * 32 + i] = simd_shuffle_down(value, ushort(2));
    y[8 * 32 + i] = simd_shuffle_up(value, ushort(3));
    y[9 * 32 + i] = simd_broadcast(value, ushort(7));
    y[10 * 32 + i] = simd_broadcast_first(value);
    y[11 * 32 + i] = float(popcount(uint(ulong(simd_ballot(value > 0)))));
    y[12 * 32 + i] = float(simd_any(value > 0)) + 2 * float(simd_all(value > 0));
    y[13 * 32 + i] = float(simd_is_first());
    simdgroup_barrier(mem_flags::mem_none);
    y[14 * 32 + i] = float(simd_xor(uint(i)));
}

// c = a · b of 16 × 16, a threadgroup of four SIMD-groups with an 8 × 8 part each; b is read as it is, a through a tile.
kernel void product(device const half *a [[buffer(0)]], device const half *b [[buffer(1)]], device float *c [[buffer(2)]],
                    uint i [[thread_index_in_threadgroup]], uint simd [[simdgroup_index_in_threadgroup]]) {
    threadgroup half tile[16][16];
    if (i < 64) {
        half4 four = *(device const half4 *)(a + i * 4);
        *(threadgroup half4 *)&tile[i / 4][i % 4 * 4] = four.wzyx.wzyx;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint row = simd / 2 * 8, column = simd % 2 * 8;
    simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint k = 0; k < 16; k += 8) {
        simdgroup_half8x8 left, right;
        simdgroup_load(left, &tile[row][k], 16);
        simdgroup_load(right, b + k * 16 + column, 16);
        simdgroup_multiply_accumulate(sum, left, right, sum);
    }
    for (uint i = 0; i < 2; i++) sum.thread_elements()[i] *= 2.0f;
    simdgroup_store(sum, c + row * 16 + column, 16);
}

// Waits for the host, but not forever; then tells it.
kernel void answer(device atomic_uint *flags [[buffer(0)]], uint i [[thread_index_in_threadgroup]]) {
    if (i != 0) return;
    uint seen = 0;
    for (uint turn = 0; turn < 2000000000 && seen == 0; turn++) seen = atomic_load_explicit(&flags[0], memory_order_relaxed);
    atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst, thread_scope_system);
    atomic_store_explicit(&flags[1], seen + 1, memory_order_relaxed);
}

kernel void count(device atomic_uint *counts [[buffer(0)]], uint i [[thread_position_in_grid]]) {
    threadgroup atomic_uint own;
    if (i % 64 == 0) atomic_store_explicit(&own, 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_fetch_add_explicit(&own, 1u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (i % 64 == 0) atomic_fetch_add_explicit(&counts[0], atomic_load_explicit(&own, memory_order_relaxed), memory_order_relaxed);
}

// Leaves behind in which order threads come: a log that the call does not name, its length first.
kernel void note(device const ulong *table [[buffer(0)]], constant uint &call [[buffer(1)]],
                 uint i [[thread_position_in_grid]]) {
    device uint *log = (device uint *)table[0];
    log[0]++;
    log[log[0]] = call * 1000 + i;
}
