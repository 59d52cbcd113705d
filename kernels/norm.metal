// Norms over runs of features: twin of src/backend/cpu/rowwise.rs.
#include "common.h"

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
    float sum = simd_sum(squares);
    if (lane == 0) sums[simd] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float all = 0;
    for (uint i = 0; i < simds; i++) all += sums[i];
    float scale = 1.0f / sqrt(all / float(p.width) + p.eps);
    for (uint i = thread_in_group; i < p.width; i += simds * LANES) {
        float value = x[start + i] * scale * weight[i];
        y[start + i] = p.gated ? value * silu(gate[start + i]) : value;
    }
}
