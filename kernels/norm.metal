// Norms over runs of features: twin of src/backend/cpu/rowwise.rs.
#include "common.h"

// One SIMD-group a run: x · rsqrt(mean x² + eps) · weight, and times silu(gate) where `gated`.
kernel void rms_norm(device const float *x [[buffer(0)]], device const float *weight [[buffer(1)]],
                     device const float *gate [[buffer(2)]], device float *y [[buffer(3)]],
                     constant NormParams &p [[buffer(4)]], uint run [[threadgroup_position_in_grid]],
                     uint lane [[thread_index_in_simdgroup]]) {
    ulong start = ulong(run) * p.width;
    float squares = 0;
    for (uint i = lane; i < p.width; i += LANES) squares = fma(x[start + i], x[start + i], squares);
    float scale = 1.0f / sqrt(simd_sum(squares) / float(p.width) + p.eps);
    for (uint i = lane; i < p.width; i += LANES) {
        float value = x[start + i] * scale * weight[i];
        y[start + i] = p.gated ? value * silu(gate[start + i]) : value;
    }
}
