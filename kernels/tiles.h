// Tiles of a product with many rows, by SIMD-group matrices. Inside a leaf an element adds its products in the order of the
// columns.
#include "leaves.h"

// Output rows and tokens of a threadgroup, and columns that it has at once.
constant constexpr uint TILE_ROWS = 32;
constant constexpr uint TILE_TOKENS = 32;
constant constexpr uint TILE_COLUMNS = 32;
// Values from row to row in threadgroup memory: neighbours lie in different banks.
constant constexpr uint PITCH = TILE_COLUMNS + 4;
constant constexpr uint TILE_VALUES = 32 * PITCH;

// A threadgroup's tile as one of its 128 threads sees it: a SIMD-group has 16 rows and 16 tokens, four matrices. A thread brings
// eight columns of a line, which is a row and a token.
struct Tile {
    // TILE_VALUES each
    threadgroup float *weights;
    threadgroup float *tokens;
    uint line;
    uint offset;
    uint simd_row;
    uint simd_token;
    simdgroup_float8x8 sums[4];
    float2 stack[LEVELS][4];
    uint depth;

    Tile(threadgroup float *weights, threadgroup float *tokens, uint thread_in_group, uint simd)
        : weights(weights), tokens(tokens), line(thread_in_group / (TILE_COLUMNS / RUN)),
          offset(thread_in_group % (TILE_COLUMNS / RUN) * RUN), simd_row(simd / 2 * 16), simd_token(simd % 2 * 16), depth(0) {}

    // The columns of one leaf: `row` and `token` are those of this thread's line. Of the tile's tokens only `count` are asked for.
    template <typename F>
    void leaf(Stored w, constant MatrixParams &m, uint row, device const float *token, uint count, constant StepParams &step) {
        clear(sums);
        for (uint tile = step.start; tile < step.end; tile += TILE_COLUMNS) {
            float run[RUN] = {};
            if (tile + offset < step.end) F::load(w, m, row, tile + offset, step.end, run);
            bring(run, token, tile + offset, step.end);
            for (uint k = 0; k < TILE_COLUMNS && simd_token < count; k += 8) multiply<false>(sums, k);
        }
        push(step.merges);
    }

    static void clear(thread simdgroup_float8x8 *to) {
        for (uint i = 0; i < 4; i++) to[i] = simdgroup_float8x8(0.0f);
    }

    // Puts a run of weights to this thread's place, and what its token has from `column` on, before `end`.
    void bring(thread const float *run, device const float *token, uint column, uint end) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = 0; i < RUN; i++) {
            weights[line * PITCH + offset + i] = run[i];
            tokens[line * PITCH + offset + i] = column + i < end ? token[column + i] : 0.0f;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

    // Adds the products of eight columns, from `k` on of those that are there. A line of weights has the columns of a row; if they
    // are turned, the rows of a column.
    template <bool TURNED> void multiply(thread simdgroup_float8x8 *to, uint k) {
        simdgroup_float8x8 a[2], b[2];
        for (uint i = 0; i < 2; i++) {
            simdgroup_load(a[i], tokens + (simd_token + 8 * i) * PITCH + k, PITCH);
            if (TURNED)
                simdgroup_load(b[i], weights + k * PITCH + simd_row + 8 * i, PITCH);
            else
                simdgroup_load(b[i], weights + (simd_row + 8 * i) * PITCH + k, PITCH, ulong2(0, 0), true);
        }
        for (uint i = 0; i < 4; i++) simdgroup_multiply_accumulate(to[i], a[i / 2], b[i % 2], to[i]);
    }

    // Puts the sums on the stack; then `merges` pairs of what is there become one.
    void push(uint merges) {
        for (uint i = 0; i < 4; i++) stack[depth][i] = float2(sums[i].thread_elements()[0], sums[i].thread_elements()[1]);
        depth++;
        for (uint merge = 0; merge < merges; merge++) {
            depth--;
            for (uint i = 0; i < 4; i++) stack[depth - 1][i] += stack[depth][i];
        }
    }

    // The subtree that is done: this thread's eight rows of its line's token, from `row` on of `rows`, to `y`.
    void put(device float *y, uint row, uint rows, bool asked) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = 0; i < 4; i++) {
            sums[i].thread_elements()[0] = stack[0][i][0];
            sums[i].thread_elements()[1] = stack[0][i][1];
            simdgroup_store(sums[i], tokens + (simd_token + i / 2 * 8) * PITCH + simd_row + i % 2 * 8, PITCH);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = 0; i < RUN; i++)
            if (asked && row + i < rows) y[row + i] = tokens[line * PITCH + offset + i];
        depth = 0;
    }
};
