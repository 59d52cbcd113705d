// The gated delta net: causal convolution and the recurrent gated delta rule. Twin of src/backend/cpu/delta.rs.
#include "common.h"

// Threadgroups: channels, rows of the longest segment, segments. `past` is [slots, taps, channels], oldest first.
kernel void conv_silu(device const float *x [[buffer(0)]], device const float *weight [[buffer(1)]],
                      device const float *past [[buffer(2)]], device const SegmentParams *segments [[buffer(3)]],
                      device float *y [[buffer(4)]], constant ConvParams &p [[buffer(5)]],
                      uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
    device const SegmentParams &segment = segments[group.z];
    uint channel = group.x * LANES + lane, row = group.y;
    if (channel >= p.channels || row >= segment.count) return;
    device const float *own = past + ulong(segment.slot) * p.taps * p.channels + channel;
    device const float *rows = x + ulong(segment.first) * p.channels + channel;
    float sum = 0;
    for (uint tap = 0; tap <= p.taps; tap++) {
        uint at = row + tap;
        float value = at < p.taps ? own[at * p.channels] : rows[ulong(at - p.taps) * p.channels];
        sum = fma(value, weight[tap * p.channels + channel], sum);
    }
    y[ulong(segment.first + row) * p.channels + channel] = silu(sum);
}

// The newest inputs become the past ones. A thread moves a channel of a slot, from the oldest on.
kernel void conv_keep(device const float *x [[buffer(0)]], device const SegmentParams *segments [[buffer(1)]],
                      device float *past [[buffer(2)]], constant ConvParams &p [[buffer(3)]],
                      uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
    device const SegmentParams &segment = segments[group.z];
    uint channel = group.x * LANES + lane;
    if (channel >= p.channels) return;
    device float *own = past + ulong(segment.slot) * p.taps * p.channels + channel;
    device const float *rows = x + ulong(segment.first) * p.channels + channel;
    for (uint tap = 0; tap < p.taps; tap++) {
        uint at = segment.count + tap;
        own[tap * p.channels] = at < p.taps ? own[at * p.channels] : rows[ulong(at - p.taps) * p.channels];
    }
}

// log(1 + eˣ), exact where eˣ is small (Goldberg, "What every computer scientist should know…", theorem 4)
inline float softplus(float x) {
    if (x > 20.0f) return x;
    float e = exp(x), u = 1.0f + e;
    return u == 1.0f ? e : log(u) * e / (u - 1.0f);
}

// decay = exp(−exp(A_log) · softplus(a + dt_bias)) for every value of runs of `width`.
kernel void delta_decay(device const float *a [[buffer(0)]], device const float *a_log [[buffer(1)]],
                        device const float *dt_bias [[buffer(2)]], device float *decay [[buffer(3)]],
                        constant RunParams &p [[buffer(4)]], uint i [[thread_position_in_grid]]) {
    if (i < p.count) decay[i] = exp(-exp(a_log[i % p.width]) * softplus(a[i] + dt_bias[i % p.width]));
}

// The sigmoid of every value.
kernel void delta_beta(device const float *b [[buffer(0)]], device float *beta [[buffer(1)]],
                       constant RunParams &p [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i < p.count) beta[i] = sigmoid(b[i]);
}

// Runs of length one. Threadgroups: runs, rows.
kernel void unit_length(device float *x [[buffer(0)]], constant LengthParams &p [[buffer(1)]],
                        uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
    device float *run = x + ulong(group.y) * p.stride + group.x * p.width;
    float squares = 0;
    for (uint i = lane; i < p.width; i += LANES) squares = fma(run[i], run[i], squares);
    float scale = 1.0f / sqrt(simd_sum(squares) + 1e-6f), then = group.x < p.scaled ? p.scale : 1.0f;
    for (uint i = lane; i < p.width; i += LANES) run[i] = run[i] * scale * then;
}

// S ← S·decay; S ← S + k ⊗ (v − kᵀS)·beta; out = qᵀS for every row of a segment in order; `state` is [slots, heads, key_dim,
// value_dim]. Threadgroups: heads, segments, runs of columns; a thread has a column of the state, sums run over the key in
// order.
kernel void delta_rule(device const float *qkv [[buffer(0)]], device const float *decays [[buffer(1)]],
                       device const float *betas [[buffer(2)]], device const SegmentParams *segments [[buffer(3)]],
                       device float *state [[buffer(4)]], device float *y [[buffer(5)]],
                       constant DeltaParams &p [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                       uint lane [[thread_index_in_simdgroup]]) {
    device const SegmentParams &segment = segments[group.y];
    uint head = group.x, column = group.z * LANES + lane;
    if (column >= p.value_dim) return;
    uint values = p.heads * p.value_dim, keys = p.keys * p.key_dim, stride = 2 * keys + values;
    uint key = (p.before + head) / p.group * p.key_dim;
    device float *s = state + (ulong(segment.slot) * p.heads + head) * p.key_dim * p.value_dim + column;
    for (uint row = segment.first; row < segment.first + segment.count; row++) {
        device const float *q = qkv + ulong(row) * stride + key, *k = q + keys;
        float v = qkv[ulong(row) * stride + 2 * keys + head * p.value_dim + column];
        device const float *decay = decays + (ulong(row) * p.heads + head) * p.decays;
        float seen = 0;
        for (uint i = 0; i < p.key_dim; i++) seen = fma(k[i], s[i * p.value_dim] * decay[p.decays > 1 ? i : 0], seen);
        float delta = (v - seen) * betas[ulong(row) * p.heads + head], out = 0;
        for (uint i = 0; i < p.key_dim; i++) {
            float value = fma(k[i], delta, s[i * p.value_dim] * decay[p.decays > 1 ? i : 0]);
            s[i * p.value_dim] = value;
            out = fma(q[i], value, out);
        }
        y[ulong(row) * values + head * p.value_dim + column] = out;
    }
}
