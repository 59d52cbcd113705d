// Products with many tokens, by SIMD-group matrices: what `linear` computes, in tiles that share what they read. Inside a
// leaf an element adds its products in the order of the columns.
#include "leaves.h"

// Output rows and tokens of a threadgroup, and columns that it has at once.
constant constexpr uint TILE_ROWS = 32;
constant constexpr uint TILE_TOKENS = 32;
constant constexpr uint TILE_COLUMNS = 32;
// Values from row to row in threadgroup memory: neighbours lie in different banks.
constant constexpr uint PITCH = TILE_COLUMNS + 4;
constant constexpr uint TILE_VALUES = 32 * PITCH;

// A SIMD-group has 16 rows and 16 tokens: four matrices.
template <typename F>
kernel void matmul(device const float *x [[buffer(0)]], device const uchar *values [[buffer(1)]],
                   device const uchar *scales [[buffer(2)]], device const uchar *biases [[buffer(3)]],
                   device float *y [[buffer(4)]], constant MatrixParams &m [[buffer(5)]],
                   uint3 group [[threadgroup_position_in_grid]], uint thread_in_group [[thread_index_in_threadgroup]],
                   uint simd [[simdgroup_index_in_threadgroup]]) {
    constant LinearParams &p = *(constant LinearParams *)(&m + 1);
    constant StepParams *steps = (constant StepParams *)(&p + 1);
    threadgroup float weights[TILE_VALUES];
    threadgroup float tokens[TILE_VALUES];
    Stored w = {values, scales, biases, m.row, m.column};
    uint first_row = group.x * TILE_ROWS, first_token = group.y * TILE_TOKENS;
    // what this thread brings: eight columns of a row, and of a token
    uint line = thread_in_group / (TILE_COLUMNS / RUN), offset = thread_in_group % (TILE_COLUMNS / RUN) * RUN;
    uint row = min(first_row + line, m.out_features - 1);
    device const float *own = x + ulong(min(first_token + line, p.rows - 1)) * p.in_features;
    uint simd_row = simd / 2 * 16, simd_token = simd % 2 * 16;
    float2 stack[LEVELS][4];
    uint depth = 0, root = 0;
    for (uint s = 0; s < p.steps; s++) {
        uint start = steps[s].start, end = steps[s].end;
        simdgroup_float8x8 sums[4];
        for (uint i = 0; i < 4; i++) sums[i] = simdgroup_float8x8(0.0f);
        for (uint tile = start; tile < end; tile += TILE_COLUMNS) {
            uint column = tile + offset;
            float run[RUN] = {};
            if (column < end) F::load(w, m, row, column, end, run);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint i = 0; i < RUN; i++) {
                weights[line * PITCH + offset + i] = run[i];
                tokens[line * PITCH + offset + i] = column + i < end ? own[column + i] : 0.0f;
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint k = 0; k < TILE_COLUMNS; k += 8) {
                simdgroup_float8x8 a[2], b[2];
                for (uint i = 0; i < 2; i++) {
                    simdgroup_load(a[i], tokens + (simd_token + 8 * i) * PITCH + k, PITCH);
                    simdgroup_load(b[i], weights + (simd_row + 8 * i) * PITCH + k, PITCH, ulong2(0, 0), true);
                }
                for (uint i = 0; i < 4; i++) simdgroup_multiply_accumulate(sums[i], a[i / 2], b[i % 2], sums[i]);
            }
        }
        for (uint i = 0; i < 4; i++) stack[depth][i] = float2(sums[i].thread_elements()[0], sums[i].thread_elements()[1]);
        depth++;
        for (uint merge = 0; merge < steps[s].merges; merge++) {
            depth--;
            for (uint i = 0; i < 4; i++) stack[depth - 1][i] += stack[depth][i];
        }
        if (steps[s].last) {
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint i = 0; i < 4; i++) {
                sums[i].thread_elements()[0] = stack[0][i][0];
                sums[i].thread_elements()[1] = stack[0][i][1];
                simdgroup_store(sums[i], tokens + (simd_token + i / 2 * 8) * PITCH + simd_row + i % 2 * 8, PITCH);
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            uint token = first_token + line;
            for (uint i = 0; i < RUN; i++) {
                uint to = first_row + offset + i;
                if (token < p.rows && to < m.out_features)
                    y[(ulong(root) * p.rows + token) * m.out_features + to] = tokens[line * PITCH + offset + i];
            }
            depth = 0;
            root++;
        }
    }
}

#define MATMUL(name, F) template [[host_name("matmul_" #name)]] [[kernel]] decltype(matmul<F>) matmul<F>;
FOR_ALL_FORMATS(MATMUL)
