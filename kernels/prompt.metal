// Attention of prompts, by SIMD-group matrices: what `attention` computes, for rows of one sequence that share what they read.
// Scores add their products in the order of the values, results in that of the positions.
#include "cache.h"

// Rows of a threadgroup.
constant constexpr uint BLOCK = 32;
// Values from row to row of its scores: neighbours lie in different banks.
constant constexpr uint SCORES_PITCH = TILE + 4;
constant constexpr uint SCORES = BLOCK * SCORES_PITCH;

// Makes zeros of values that are not finite and ones in their places in `broken`; whether there were any.
inline bool without_broken(thread simdgroup_float8x8 &values, thread simdgroup_float8x8 &broken) {
    bool found = false;
    for (uint e = 0; e < 2; e++) {
        bool finite = isfinite(values.thread_elements()[e]);
        broken.thread_elements()[e] = finite ? 0.0f : 1.0f;
        values.thread_elements()[e] = finite ? values.thread_elements()[e] : 0.0f;
        found = found || !finite;
    }
    return simd_any(found);
}

// What becomes of sums that a `broken` value belongs to: those of rows that have `seen` it.
inline void with_broken(thread simdgroup_float8x8 &sums, simdgroup_float8x8 weights, simdgroup_float8x8 values,
                        simdgroup_float8x8 seen, simdgroup_float8x8 broken) {
    simdgroup_float8x8 count = simdgroup_float8x8(0.0f), spoilt;
    simdgroup_multiply_accumulate(count, seen, broken, count);
    simdgroup_multiply_accumulate(spoilt, weights, values, sums);
    for (uint e = 0; e < 2; e++)
        if (count.thread_elements()[e] > 0.0f) sums.thread_elements()[e] = spoilt.thread_elements()[e];
}

// softmax(q kᵀ · scale) v of one head and a block's rows. Threadgroups: heads, blocks. S SIMD-groups share the scores of a tile
// and the rows whose weights they become; then each has the N matrices of columns of the result that are its own. What one tile
// leaves in threadgroup memory lies apart from what the next one does, so two barriers a tile are enough. A position that
// a row does not see weighs zero and is multiplied all the same: where there are some, values that are not finite stay out of the
// matrices, and the sums of rows that see one are those with it.
template <typename Cache, uint S, uint N>
kernel void attention_prompt(device const float *q [[buffer(0)]], device const BlockParams *blocks [[buffer(1)]],
                             device const uint *tables [[buffer(2)]], device const float *cache [[buffer(3)]],
                             device float *y [[buffer(4)]], constant AttentionParams &p [[buffer(5)]],
                             uint3 group [[threadgroup_position_in_grid]], uint simd [[simdgroup_index_in_threadgroup]],
                             uint lane [[thread_index_in_simdgroup]]) {
    // matrices of scores, and rows of weights, of a SIMD-group
    constexpr uint MATRICES = BLOCK / 8 * (TILE / 8) / S, ROWS_EACH = BLOCK / S;
    threadgroup float scores[2 * SCORES];
    threadgroup float factors[2 * BLOCK];
    device const BlockParams &block = blocks[group.y];
    uint head = group.x, shared = (p.before + head) / p.group, end = block.position + block.count;

    // where a lane's two values of a matrix stand is not documented: a matrix of numbers tells
    threadgroup float *numbers = scores + SCORES + simd * 64;
    numbers[lane] = float(lane);
    numbers[lane + LANES] = float(lane + LANES);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_float8x8 places;
    simdgroup_load(places, numbers, 8);
    uint matrix_row[2], matrix_column[2];
    for (uint i = 0; i < 2; i++) {
        matrix_row[i] = uint(places.thread_elements()[i]) / 8;
        matrix_column[i] = uint(places.thread_elements()[i]) % 8;
    }

    uint scored_row = simd * MATRICES / 4 * 8, scored_position = simd * MATRICES % 4 * 8;
    device const float *queries[2];
    for (uint i = 0; i < 2; i++) {
        uint row = block.first + min(scored_row + matrix_row[i], block.count - 1);
        queries[i] = q + (ulong(row) * p.heads + head) * p.width + matrix_column[i];
    }
    simdgroup_float8x8 results[BLOCK / 8][N];
    for (uint i = 0; i < BLOCK / 8; i++)
        for (uint n = 0; n < N; n++) results[i][n] = simdgroup_float8x8(0.0f);
    // lane r: of the row r of this SIMD-group's
    float most = -INFINITY, sum = 0;
    uint turn = 0;
    for (uint position = 0; position < end; position += TILE, turn ^= 1) {
        Cache tile(cache, tables[block.pages + position / PAGE], position, shared, p);
        threadgroup float *weights = scores + turn * SCORES, *shrinks = factors + turn * BLOCK;
        simdgroup_float8x8 products[MATRICES];
        for (uint m = 0; m < MATRICES; m++) products[m] = simdgroup_float8x8(0.0f);
        for (uint d = 0; d < p.width; d += 8) {
            simdgroup_float8x8 query, keys;
            for (uint i = 0; i < 2; i++) query.thread_elements()[i] = queries[i][d];
            for (uint m = 0; m < MATRICES; m++) {
                tile.keys(keys, d, scored_position + 8 * m);
                simdgroup_multiply_accumulate(products[m], query, keys, products[m]);
            }
        }
        for (uint m = 0; m < MATRICES; m++)
            simdgroup_store(products[m], weights + scored_row * SCORES_PITCH + scored_position + 8 * m, SCORES_PITCH);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint r = 0; r < ROWS_EACH; r++) {
            uint row = simd * ROWS_EACH + r;
            threadgroup float *weight = weights + row * SCORES_PITCH + lane;
            bool visible = position + lane <= block.position + row;
            float score = visible ? *weight * p.scale : -INFINITY, before = simd_shuffle(most, ushort(r));
            float top = max(before, simd_max(score)), shrink = exp(before - top);
            float own = visible ? exp(score - top) : 0.0f, all = simd_sum(own);
            *weight = own;
            if (lane == r) {
                sum = sum * shrink + all;
                most = top;
                shrinks[row] = shrink;
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = 0; i < BLOCK / 8; i++)
            for (uint e = 0; e < 2; e++) {
                float shrink = shrinks[8 * i + matrix_row[e]];
                for (uint n = 0; n < N; n++) results[i][n].thread_elements()[e] *= shrink;
            }
        for (uint k = 0; k < TILE; k += 8) {
            simdgroup_float8x8 left[BLOCK / 8], values;
            for (uint i = 0; i < BLOCK / 8; i++) simdgroup_load(left[i], weights + 8 * i * SCORES_PITCH + k, SCORES_PITCH);
            for (uint n = 0; n < N; n++) {
                uint column = (simd * N + n) * 8;
                if (column >= p.values) break;
                tile.values(values, k, column);
                simdgroup_float8x8 broken;
                bool spoilt = position + TILE > block.position + 1 && without_broken(values, broken);
                for (uint i = 0; i < BLOCK / 8; i++) simdgroup_multiply_accumulate(results[i][n], left[i], values, results[i][n]);
                if (!spoilt) continue;
                tile.values(values, k, column);
                for (uint i = 0; i < BLOCK / 8; i++) {
                    simdgroup_float8x8 seen;
                    for (uint e = 0; e < 2; e++) {
                        bool visible = position + k + matrix_column[e] <= block.position + 8 * i + matrix_row[e];
                        seen.thread_elements()[e] = visible ? 1.0f : 0.0f;
                    }
                    with_broken(results[i][n], left[i], values, seen, broken);
                }
            }
        }
    }
    threadgroup float *sums = factors + turn * BLOCK;
    if (lane < ROWS_EACH) sums[simd * ROWS_EACH + lane] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < BLOCK / 8; i++)
        for (uint e = 0; e < 2; e++) {
            uint row = 8 * i + matrix_row[e];
            if (row >= block.count) continue;
            device float *to = y + (ulong(block.first + row) * p.heads + head) * p.values + matrix_column[e];
            for (uint n = 0; n < N; n++) {
                uint column = (simd * N + n) * 8;
                if (column < p.values) to[column] = results[i][n].thread_elements()[e] / sums[row];
            }
        }
}

#define PROMPT(name, Cache, S, N) \
    template [[host_name("attention_prompt_" #name)]] [[kernel]] decltype(attention_prompt<Cache, S, N>) \
        attention_prompt<Cache, S, N>;
PROMPT(heads2, Heads, 4, 2)
PROMPT(heads4, Heads, 4, 4)
PROMPT(heads8, Heads, 4, 8)
PROMPT(latent2, Latent, 8, 2)
PROMPT(latent8, Latent, 8, 8)
