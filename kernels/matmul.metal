// Products with many tokens: what `linear` computes, in tiles that share what they read.
#include "tiles.h"

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
    Tile tile(weights, tokens, thread_in_group, simd);
    Stored w = {values, scales, biases, m.row, m.column};
    uint first_row = group.x * TILE_ROWS, first_token = group.y * TILE_TOKENS, token = first_token + tile.line, root = 0;
    uint row = min(first_row + tile.line, m.out_features - 1);
    device const float *own = x + ulong(min(token, p.rows - 1)) * p.in_features;
    for (uint s = 0; s < p.steps; s++) {
        tile.leaf<F>(w, m, row, own, p.rows - first_token, steps[s]);
        if (steps[s].last) {
            device float *to = y + (ulong(root) * p.rows + token) * m.out_features;
            tile.put(to, first_row + tile.offset, m.out_features, token < p.rows);
            root++;
        }
    }
}

#define MATMUL(name, F) template [[host_name("matmul_" #name)]] [[kernel]] decltype(matmul<F>) matmul<F>;
FOR_ALL_FORMATS(MATMUL)
