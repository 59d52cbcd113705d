// Norms over runs of features: twin of src/backend/cpu/rowwise.rs.
#include "common.h"

// One SIMD-group a run: x · rsqrt(mean x² + eps) · weight.
kernel void rms_norm(device const float *x [[buffer(0)]],
                     device const float *weight [[buffer(1)]],
                     device float *y [[buffer(2)]],
                     constant NormParams &p [[buffer(3)]],
                     uint run [[threadgroup_position_in_grid]],
                     uint lane [[thread_index_in_simdgroup]]) {
    device const float *from = x + ulong(run) * p.width;
    float squares = 0;
    for (uint i = lane; i < p.width; i += LANES) squares += from[i] * from[i];
    float scale = rsqrt(simd_sum(squares) / float(p.width) + p.eps);
    for (uint i = lane; i < p.width; i += LANES) y[ulong(run) * p.width + i] = from[i] * scale * weight[i];
}
