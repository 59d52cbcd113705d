// Norms over runs of features: twin of src/backend/cpu/rowwise.rs.
#include "common.h"

// What a run is scaled by, from each thread's part of its squares; `sums` has a place a SIMD-group.
inline float run_scale(float squares, threadgroup float *sums, constant NormParams &p, uint lane, uint simd, uint simds) {
    float sum = simd_sum(squares);
    if (lane == 0) sums[simd] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float all = 0;
    for (uint i = 0; i < simds; i++) all += sums[i];
    return 1.0f / sqrt(all / float(p.width) + p.eps);
}

// One threadgroup a run: x · rsqrt(mean x² + eps) · weight, and times silu(gate) where `gated`.
kernel void rms_norm(device const float *x [[buffer(0)]], device const float *weight [[buffer(1)]],
                     device const float *gate [[buffer(2)]], device float *y [[buffer(3)]],
                     constant NormParams &p [[buffer(4)]], uint run [[threadgroup_position_in_grid]],
                     uint thread_in_group [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                     uint simd [[simdgroup_index_in_threadgroup]], uint simds [[simdgroups_per_threadgroup]]) {
    threadgroup float sums[LANES];
    ulong start = ulong(run) * p.width;
    float squares = 0;
    for (uint i = thread_in_group; i < p.width; i += simds * LANES) squares = fma(x[start + i], x[start + i], squares);
    float scale = run_scale(squares, sums, p, lane, simd, simds);
    for (uint i = thread_in_group; i < p.width; i += simds * LANES) {
        float value = x[start + i] * scale * weight[i];
        y[start + i] = p.gated ? value * silu(gate[start + i]) : value;
    }
}

// One threadgroup a run: x + added, to x, and what `rms_norm` makes of it. A thread has the same values of both.
kernel void add_rms_norm(device const float *added [[buffer(0)]], device const float *weight [[buffer(1)]],
                         device float *x [[buffer(2)]], device float *y [[buffer(3)]], constant NormParams &p [[buffer(4)]],
                         uint run [[threadgroup_position_in_grid]], uint thread_in_group [[thread_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]], uint simd [[simdgroup_index_in_threadgroup]],
                         uint simds [[simdgroups_per_threadgroup]]) {
    threadgroup float sums[LANES];
    ulong start = ulong(run) * p.width;
    float squares = 0;
    for (uint i = thread_in_group; i < p.width; i += simds * LANES) {
        float sum = x[start + i] + added[start + i];
        x[start + i] = sum;
        squares = fma(sum, sum, squares);
    }
    float scale = run_scale(squares, sums, p, lane, simd, simds);
    for (uint i = thread_in_group; i < p.width; i += simds * LANES) y[start + i] = x[start + i] * scale * weight[i];
}
