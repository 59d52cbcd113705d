// A matrix of its own for every head: twin of src/backend/cpu/heads.rs.
#include "leaves.h"

// A head's rows times its matrix transposed: one leaf. Threadgroups: output rows, tokens, heads.
template <typename F>
kernel void heads(device const float *x [[buffer(0)]], device const MatrixAt *table [[buffer(1)]],
                  device float *y [[buffer(2)]], constant MatrixParams &m [[buffer(3)]],
                  uint3 group [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
                  uint lane [[thread_index_in_simdgroup]]) {
    constant HeadsParams &p = *(constant HeadsParams *)(&m + 1);
    uint first_row = (group.x * SIMDS + simd) * ROWS, row = first_row + lane;
    if (first_row >= p.out_features) return;
    device const float *xs[1] = {x + (ulong(group.y) * p.heads + group.z) * p.in_features};
    float own = leaf<F, 1>(stored_at(table[group.z]), m, first_row, xs, 0, p.in_features, lane);
    if (lane < ROWS && row < p.out_features) y[(ulong(group.y) * p.heads + group.z) * p.out_features + row] = own;
}

#define HEADS(name, F) template [[host_name("heads_" #name)]] [[kernel]] decltype(heads<F>) heads<F>;
FOR_ALL_FORMATS(HEADS)

// A head's rows times its matrix, whose rows are added from first to last. A lane has RUN columns.
template <typename F>
kernel void heads_turned(device const float *x [[buffer(0)]], device const MatrixAt *table [[buffer(1)]],
                         device float *y [[buffer(2)]], constant MatrixParams &m [[buffer(3)]],
                         uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
    constant HeadsParams &p = *(constant HeadsParams *)(&m + 1);
    Stored w = stored_at(table[group.z]);
    uint column = (group.x * LANES + lane) * RUN;
    if (column >= p.out_features) return;
    ulong at = ulong(group.y) * p.heads + group.z;
    device const float *values = x + at * p.in_features;
    float sums[RUN] = {};
    for (uint row = 0; row < p.in_features; row++) {
        float weights[RUN];
        F::load(w, m, row, column, p.out_features, weights);
        for (uint i = 0; i < RUN; i++) sums[i] = fma(values[row], weights[i], sums[i]);
    }
    for (uint i = 0; i < RUN && column + i < p.out_features; i++) y[at * p.out_features + column + i] = sums[i];
}

#define TURNED(name, F) template [[host_name("heads_turned_" #name)]] [[kernel]] decltype(heads_turned<F>) heads_turned<F>;
FOR_ALL_FORMATS(TURNED)
