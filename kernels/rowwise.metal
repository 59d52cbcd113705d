// Operations on values by themselves, and copies: twin of src/backend/cpu/rowwise.rs. A thread a value.
#include "common.h"

kernel void add(device const float *y [[buffer(0)]], device float *x [[buffer(1)]], constant RunParams &p [[buffer(2)]],
                uint i [[thread_position_in_grid]]) {
    if (i < p.count) x[i] += y[i];
}

kernel void add_bias(device const float *bias [[buffer(0)]], device float *x [[buffer(1)]],
                     constant RunParams &p [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i < p.count) x[i] += bias[i % p.width];
}

kernel void swiglu(device const float *up [[buffer(0)]], device float *gate [[buffer(1)]],
                   constant RunParams &p [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i < p.count) gate[i] = silu(gate[i]) * up[i];
}

kernel void gate_sigmoid(device const float *gate [[buffer(0)]], device float *x [[buffer(1)]],
                         constant RunParams &p [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i < p.count) x[i] *= sigmoid(gate[i]);
}

// A thread a value of a piece.
kernel void arrange(device const float *from [[buffer(0)]], device float *to [[buffer(1)]],
                    constant PieceParams &p [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i >= p.width * p.count) return;
    uint run = i / p.width, at = i % p.width;
    to[p.to_start + run * p.to_stride + at] = from[p.from_start + run * p.from_stride + at];
}

// A thread a pair: rotates it by the angle of its row, whose cosines and then sines are in the table.
kernel void rope(device const float *table [[buffer(0)]], device float *x [[buffer(1)]],
                 constant RopeParams &p [[buffer(2)]], uint3 at [[thread_position_in_grid]]) {
    uint i = at.x, head = at.y, row = at.z;
    if (i >= p.half_dim) return;
    device float *values = x + (ulong(row) * p.heads + head) * p.head_dim;
    device const float *angles = table + ulong(row) * 2 * p.half_dim;
    uint a = p.pairs ? 2 * i : i, b = p.pairs ? 2 * i + 1 : i + p.half_dim;
    float first = values[a], second = values[b], c = angles[i], s = angles[p.half_dim + i];
    values[a] = first * c - second * s;
    values[b] = second * c + first * s;
}
