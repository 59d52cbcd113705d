// Matrix products in canonical leaves and their tree: twin of src/backend/cpu/linear.rs and stream.rs.
#include "leaves.h"

// [rows, in] · [out, in]ᵀ: one [rows, out] block a subtree. A SIMD-group has ROWS output rows and T tokens.
template <typename F, uint T>
kernel void linear(device const float *x [[buffer(0)]], device const uchar *values [[buffer(1)]],
                   device const uchar *scales [[buffer(2)]], device const uchar *biases [[buffer(3)]],
                   device float *y [[buffer(4)]], constant MatrixParams &m [[buffer(5)]],
                   uint3 group [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]]) {
    constant LinearParams &p = *(constant LinearParams *)(&m + 1);
    constant StepParams *steps = (constant StepParams *)(&p + 1);
    Stored w = {values, scales, biases, m.row, m.column};
    uint first_row = (group.x * SIMDS + simd) * ROWS, first_token = group.y * T;
    if (first_row >= m.out_features) return;
    device const float *xs[T];
    for (uint t = 0; t < T; t++) xs[t] = x + ulong(min(first_token + t, p.rows - 1)) * p.in_features;
    Subtree tree = {};
    uint root = 0;
    for (uint s = 0; s < p.steps; s++) {
        tree.add(leaf<F, T>(w, m, first_row, xs, steps[s].start, steps[s].end, lane), steps[s].merges);
        if (steps[s].last) {
            uint row = first_row + lane / T, token = first_token + lane % T;
            if (lane < ROWS * T && row < m.out_features && token < p.rows)
                y[(ulong(root) * p.rows + token) * m.out_features + row] = tree.sums[0];
            tree.depth = 0;
            root++;
        }
    }
}

#define LINEAR(name, F) template [[host_name("linear_" #name)]] [[kernel]] decltype(linear<F, 4>) linear<F, 4>;
FOR_ALL_FORMATS(LINEAR)
#define ONE(name, F) template [[host_name("linear_one_" #name)]] [[kernel]] decltype(linear<F, 1>) linear<F, 1>;
FOR_ALL_FORMATS(ONE)
