// Chosen experts of many tokens: tokens that share an expert are multiplied in tiles. Twin of src/backend/cpu/moe.rs, as is
// moe.metal for few tokens.
#include "tiles.h"

// Puts the pairs `token · top_k + rank` in the order of their experts, and of their numbers for one, and cuts that into runs of
// one expert, some of which are empty. An expert's runs begin at a place that depends on the pairs before alone: those before,
// divided by a run's length, and one for every expert before, are room enough. Threadgroups: experts, a SIMD-group each.
kernel void group_pairs(device const uint *chosen [[buffer(0)]], device uint *order [[buffer(1)]],
                        device PairRun *runs [[buffer(2)]], constant PairsParams &p [[buffer(3)]],
                        uint expert [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
    uint before = 0, own = 0;
    for (uint pair = lane; pair < p.pairs; pair += LANES) {
        before += chosen[pair] < expert ? 1 : 0;
        own += chosen[pair] == expert ? 1 : 0;
    }
    before = simd_sum(before);
    own = simd_sum(own);
    uint place = before;
    for (uint first = 0; first < p.pairs && own > 0; first += LANES) {
        uint mine = first + lane < p.pairs && chosen[first + lane] == expert ? 1 : 0;
        uint at = place + simd_prefix_exclusive_sum(mine);
        if (mine != 0) order[at] = first + lane;
        place += simd_sum(mine);
    }
    uint begin = before / TILE_TOKENS + expert, end = (before + own) / TILE_TOKENS + expert + 1;
    for (uint run = begin + lane; run < end; run += LANES) {
        uint first = min((run - begin) * TILE_TOKENS, own);
        runs[run].expert = expert;
        runs[run].first = before + first;
        runs[run].count = min(own - first, TILE_TOKENS);
    }
}

// The products of pairs with a matrix of their experts, leaves and tree as `linear`: one [pairs, out] block a subtree, from the
// row `first` of every matrix on. Threadgroups: output rows, runs.
template <typename F>
kernel void experts_many(device const float *x [[buffer(0)]], device const uint *order [[buffer(1)]],
                         device const PairRun *runs [[buffer(2)]], device const MatrixAt *table [[buffer(3)]],
                         device float *y [[buffer(4)]], constant MatrixParams &m [[buffer(5)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint thread_in_group [[thread_index_in_threadgroup]], uint simd [[simdgroup_index_in_threadgroup]]) {
    constant GroupedParams &p = *(constant GroupedParams *)(&m + 1);
    constant StepParams *steps = (constant StepParams *)(&p + 1);
    threadgroup float weights[TILE_VALUES];
    threadgroup float tokens[TILE_VALUES];
    device const PairRun &run = runs[group.y];
    if (run.count == 0) return;
    Tile tile(weights, tokens, thread_in_group, simd);
    Stored w = stored_at(table[run.expert]);
    uint pair = order[run.first + min(tile.line, run.count - 1)], first_row = group.x * TILE_ROWS, root = 0;
    uint row = p.first + min(first_row + tile.line, p.out_features - 1);
    device const float *own = x + ulong(pair / p.sharing) * p.in_features;
    for (uint s = 0; s < p.steps; s++) {
        tile.leaf<F>(w, m, row, own, run.count, steps[s]);
        if (steps[s].last) {
            device float *to = y + (ulong(root) * p.pairs + pair) * p.out_features;
            tile.put(to, first_row + tile.offset, p.out_features, tile.line < run.count);
            root++;
        }
    }
}

#define EXPERTS_MANY(name, F) \
    template [[host_name("experts_many_" #name)]] [[kernel]] decltype(experts_many<F>) experts_many<F>;
FOR_ALL_FORMATS(EXPERTS_MANY)

// Weighs the leaves of the down projections of pairs [steps, tokens · top_k, width] and of the expert that all tokens share
// [steps, tokens, width], adds those of a token in the order of their ranking, the shared one last, and leaves to subtrees: columns
// of one [tokens, hidden] block each. A thread a value.
kernel void rank_tree(device const float *leaves [[buffer(0)]], device const float *weights [[buffer(1)]],
                      device const float *shared_leaves [[buffer(2)]], device const float *shared_weights [[buffer(3)]],
                      device float *y [[buffer(4)]], constant RankParams &p [[buffer(5)]],
                      uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
    constant StepParams *steps = (constant StepParams *)(&p + 1);
    uint column = group.x * LANES + lane, token = group.y;
    if (column >= p.width) return;
    float weight = p.shared == 1 ? sigmoid(shared_weights[token]) : 1.0f;
    Subtree sums = {};
    uint root = 0;
    for (uint s = 0; s < p.steps; s++) {
        float sum = 0;
        for (uint pair = token * p.top_k; pair < (token + 1) * p.top_k; pair++)
            sum = fma(weights[pair], leaves[(ulong(s) * p.tokens * p.top_k + pair) * p.width + column], sum);
        if (p.shared != 0) sum = fma(weight, shared_leaves[(ulong(s) * p.tokens + token) * p.width + column], sum);
        sums.add(sum, steps[s].merges);
        if (steps[s].last) {
            y[(ulong(root) * p.tokens + token) * p.hidden + p.first + column] = sums.sums[0];
            sums.depth = 0;
            root++;
        }
    }
}
