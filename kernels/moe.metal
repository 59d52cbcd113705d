// Experts that a router has chosen, for few tokens: twin of src/backend/cpu/moe.rs. Their matrices are found in a table.
#include "leaves.h"

// The product of a token with a matrix of each of its experts, leaves and tree as `linear`: [tokens · top_k, out].
template <typename F>
kernel void experts(device const float *x [[buffer(0)]], device const uint *chosen [[buffer(1)]],
                    device const MatrixAt *table [[buffer(2)]], device float *y [[buffer(3)]],
                    constant MatrixParams &m [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                    uint simd [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    constant ExpertParams &p = *(constant ExpertParams *)(&m + 1);
    constant StepParams *steps = (constant StepParams *)(&p + 1);
    uint first_row = (group.x * SIMDS + simd) * ROWS, row = first_row + lane, pair = group.y;
    if (first_row >= p.out_features) return;
    Stored w = stored_at(table[chosen[pair]]);
    device const float *xs[1] = {x + ulong(pair / p.top_k) * p.in_features};
    Subtree tree = {};
    for (uint s = 0; s < p.steps; s++) {
        tree.add(leaf<F, 1>(w, m, first_row, xs, steps[s].start, steps[s].end, lane), steps[s].merges);
    }
    if (lane < ROWS && row < p.out_features) y[ulong(pair) * p.out_features + row] = tree.sums[0];
}

#define EXPERTS(name, F) template [[host_name("experts_" #name)]] [[kernel]] decltype(experts<F>) experts<F>;
FOR_ALL_FORMATS(EXPERTS)

// The leaves of the down projections, [steps, tokens, out]: in each the experts' products are added in the order of their
// ranking. Threadgroups: output rows, tokens, leaves.
template <typename F>
kernel void experts_down(device const float *inner [[buffer(0)]], device const uint *chosen [[buffer(1)]],
                         device const float *weights [[buffer(2)]], device const MatrixAt *table [[buffer(3)]],
                         device float *y [[buffer(4)]], constant MatrixParams &m [[buffer(5)]],
                         uint3 group [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]]) {
    constant ExpertParams &p = *(constant ExpertParams *)(&m + 1);
    constant StepParams &step = ((constant StepParams *)(&p + 1))[group.z];
    uint first_row = (group.x * SIMDS + simd) * ROWS, row = first_row + lane;
    if (first_row >= p.out_features) return;
    bool own = lane < ROWS && row < p.out_features;
    ulong at = (ulong(group.z) * p.tokens + group.y) * p.out_features + row;
    float sum = own && p.adds ? y[at] : 0.0f;
    for (uint rank = 0; rank < p.top_k; rank++) {
        ulong pair = ulong(group.y) * p.top_k + rank;
        Stored w = stored_at(table[p.single ? 0 : chosen[pair]]);
        device const float *xs[1] = {inner + pair * p.in_features};
        float product = leaf<F, 1>(w, m, first_row, xs, step.start, step.end, lane);
        float weight = p.weighing == 2 ? 1.0f : weights[pair];
        sum = fma(p.weighing == 1 ? sigmoid(weight) : weight, product, sum);
    }
    if (own) y[at] = sum;
}

#define DOWN(name, F) template [[host_name("experts_down_" #name)]] [[kernel]] decltype(experts_down<F>) experts_down<F>;
FOR_ALL_FORMATS(DOWN)

// Leaves to subtrees: one [rows, width] block each. A thread a value.
kernel void tree(device const float *leaves [[buffer(0)]], device float *y [[buffer(1)]],
                 constant TreeParams &p [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                 uint lane [[thread_index_in_simdgroup]]) {
    constant StepParams *steps = (constant StepParams *)(&p + 1);
    uint column = group.x * LANES + lane, token = group.y;
    if (column >= p.width) return;
    Subtree sums = {};
    uint root = 0;
    for (uint s = 0; s < p.steps; s++) {
        sums.add(leaves[(ulong(s) * p.tokens + token) * p.width + column], steps[s].merges);
        if (steps[s].last) {
            y[(ulong(root) * p.tokens + token) * p.width + column] = sums.sums[0];
            sums.depth = 0;
            root++;
        }
    }
}
