// A matrix of its own for every head: twin of src/backend/cpu/heads.rs.
#include "tiles.h"

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

// What `heads` computes for many tokens, in tiles that share what they read; with its order of additions: the columns 8 · lane,
// 8 · (lane + 32), … of a lane, then the lanes. Four of them are runs of a tile's columns.
template <typename F>
kernel void heads_many(device const float *x [[buffer(0)]], device const MatrixAt *table [[buffer(1)]],
                       device float *y [[buffer(2)]], constant MatrixParams &m [[buffer(3)]],
                       uint3 group [[threadgroup_position_in_grid]], uint thread_in_group [[thread_index_in_threadgroup]],
                       uint simd [[simdgroup_index_in_threadgroup]]) {
    constexpr uint AT_ONCE = TILE_COLUMNS / RUN;
    constant HeadsParams &p = *(constant HeadsParams *)(&m + 1);
    threadgroup float weights[TILE_VALUES];
    threadgroup float tokens[TILE_VALUES];
    Tile tile(weights, tokens, thread_in_group, simd);
    Stored w = stored_at(table[group.z]);
    uint first_row = group.x * TILE_ROWS, token = group.y * TILE_TOKENS + tile.line;
    uint row = min(first_row + tile.line, p.out_features - 1), count = p.rows - group.y * TILE_TOKENS;
    ulong at = ulong(min(token, p.rows - 1)) * p.heads + group.z;
    device const float *own = x + at * p.in_features;
    Tile::clear(tile.sums);
    for (uint lanes = 0; lanes < LANES * RUN && lanes < p.in_features; lanes += TILE_COLUMNS) {
        simdgroup_float8x8 parts[AT_ONCE][4];
        for (uint l = 0; l < AT_ONCE; l++) Tile::clear(parts[l]);
        for (uint start = lanes; start < p.in_features; start += LANES * RUN) {
            uint column = start + tile.offset;
            float run[RUN] = {};
            if (column < p.in_features) F::load(w, m, row, column, p.in_features, run);
            tile.bring(run, own, column, p.in_features);
            if (tile.simd_token < count)
                for (uint l = 0; l < AT_ONCE; l++) tile.multiply<false>(parts[l], RUN * l);
        }
        for (uint l = 0; l < AT_ONCE; l++)
            for (uint i = 0; i < 4; i++)
                for (uint e = 0; e < 2; e++) tile.sums[i].thread_elements()[e] += parts[l][i].thread_elements()[e];
    }
    tile.push(0);
    tile.put(y + at * p.out_features, first_row + tile.offset, p.out_features, token < p.rows);
}

#define MANY(name, F) template [[host_name("heads_many_" #name)]] [[kernel]] decltype(heads_many<F>) heads_many<F>;
FOR_ALL_FORMATS(MANY)

// What `heads_turned` computes, in its order, for many tokens. A line of a tile has a row of the matrix, and columns of it.
template <typename F>
kernel void heads_turned_many(device const float *x [[buffer(0)]], device const MatrixAt *table [[buffer(1)]],
                              device float *y [[buffer(2)]], constant MatrixParams &m [[buffer(3)]],
                              uint3 group [[threadgroup_position_in_grid]],
                              uint thread_in_group [[thread_index_in_threadgroup]],
                              uint simd [[simdgroup_index_in_threadgroup]]) {
    constant HeadsParams &p = *(constant HeadsParams *)(&m + 1);
    threadgroup float weights[TILE_VALUES];
    threadgroup float tokens[TILE_VALUES];
    Tile tile(weights, tokens, thread_in_group, simd);
    Stored w = stored_at(table[group.z]);
    uint column = group.x * TILE_ROWS + tile.offset, token = group.y * TILE_TOKENS + tile.line;
    uint count = p.rows - group.y * TILE_TOKENS;
    ulong at = ulong(min(token, p.rows - 1)) * p.heads + group.z;
    device const float *own = x + at * p.in_features;
    Tile::clear(tile.sums);
    for (uint first = 0; first < p.in_features; first += TILE_COLUMNS) {
        uint row = first + tile.line;
        float run[RUN] = {};
        if (row < p.in_features && column < p.out_features) F::load(w, m, row, column, p.out_features, run);
        tile.bring(run, own, first + tile.offset, p.in_features);
        for (uint k = 0; k < TILE_COLUMNS && tile.simd_token < count; k += 8) tile.multiply<true>(tile.sums, k);
    }
    tile.push(0);
    tile.put(y + at * p.out_features, column, p.out_features, token < p.rows);
}

#define TURNED_MANY(name, F) \
    template [[host_name("heads_turned_many_" #name)]] [[kernel]] decltype(heads_turned_many<F>) heads_turned_many<F>;
FOR_ALL_FORMATS(TURNED_MANY)
