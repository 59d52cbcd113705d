// Attention over paged tiles, folded left to right with an online softmax: twin of src/backend/cpu/attention.
#include "cache.h"

// Positions of a span, whose tiles are folded one after the other.
constant constexpr uint SPAN = 1024;
// Query heads that share the loads of a tile.
constant constexpr uint HEADS_AT_ONCE = 4;

// Threadgroups: kv heads, rows. A page has, per kv head and tile, keys [head_dim, TILE] and then values [TILE, head_dim].
kernel void store_kv(device const float *k [[buffer(0)]], device const float *v [[buffer(1)]],
                     device const RowParams *rows [[buffer(2)]], device float *cache [[buffer(3)]],
                     constant CacheParams &p [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                     uint lane [[thread_index_in_simdgroup]]) {
    device const RowParams &row = rows[group.y];
    uint page = ((device const uint *)rows)[row.pages + row.position / PAGE], column = row.position % TILE;
    uint tile = (page * p.kv_heads + group.x) * (PAGE / TILE) + row.position % PAGE / TILE;
    device float *keys = cache + ulong(tile) * 2 * TILE * p.head_dim;
    device float *values = keys + TILE * p.head_dim + column * p.head_dim;
    ulong at = (ulong(group.y) * p.kv_heads + group.x) * p.head_dim;
    for (uint d = lane; d < p.head_dim; d += LANES) {
        keys[d * TILE + column] = k[at + d];
        values[d] = v[at + d];
    }
}

// Latent vectors, [PAGE, head_dim] a page.
kernel void store_latent(device const float *latent [[buffer(0)]], device const RowParams *rows [[buffer(1)]],
                         device float *cache [[buffer(2)]], constant CacheParams &p [[buffer(3)]],
                         uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
    device const RowParams &row = rows[group.y];
    uint page = ((device const uint *)rows)[row.pages + row.position / PAGE];
    device float *to = cache + (ulong(page) * PAGE + row.position % PAGE) * p.head_dim;
    for (uint d = lane; d < p.head_dim; d += LANES) to[d] = latent[ulong(group.y) * p.head_dim + d];
}

// softmax(q kᵀ · scale) v of one row and up to HEADS_AT_ONCE heads over one span; N · 32 values at most. Threadgroups: heads,
// rows, spans. A lane has a position of the tile, and then every 32nd value. With several spans a row, head and span leave
// the maximum, the sum and the values unscaled: [rows, heads, spans, 2 + values].
template <typename Cache, uint N>
kernel void attention(device const float *q [[buffer(0)]], device const RowParams *rows [[buffer(1)]],
                      device const float *cache [[buffer(2)]], device float *y [[buffer(3)]],
                      constant AttentionParams &p [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                      uint lane [[thread_index_in_simdgroup]]) {
    uint shared = group.x / p.chunks, row = p.first + group.y;
    uint before = shared * p.group + group.x % p.chunks * HEADS_AT_ONCE;
    uint from = max(before, p.before), to = min(min(before + HEADS_AT_ONCE, (shared + 1) * p.group), p.before + p.heads);
    if (from >= to) return;
    uint first = from - p.before, count = to - from;
    uint seen = rows[row].position + 1, start = group.z * SPAN, end = min(start + SPAN, seen);
    device const uint *pages = (device const uint *)rows + rows[row].pages;
    device const float *queries[HEADS_AT_ONCE];
    float most[HEADS_AT_ONCE], sum[HEADS_AT_ONCE], values[HEADS_AT_ONCE][N];
    for (uint h = 0; h < HEADS_AT_ONCE; h++) {
        queries[h] = q + (ulong(row) * p.heads + first + min(h, count - 1)) * p.width;
        most[h] = -INFINITY;
        sum[h] = 0;
        for (uint n = 0; n < N; n++) values[h][n] = 0;
    }
    for (uint position = start; position < end; position += TILE) {
        Cache tile(cache, pages[position / PAGE], position, shared, p);
        float scores[HEADS_AT_ONCE] = {};
        for (uint d = 0; d < p.width; d++) {
            float key = tile.key(d, lane);
            for (uint h = 0; h < HEADS_AT_ONCE; h++) scores[h] = fma(queries[h][d], key, scores[h]);
        }
        bool visible = position + lane < end;
        float weights[HEADS_AT_ONCE];
        for (uint h = 0; h < HEADS_AT_ONCE; h++) {
            float score = visible ? scores[h] * p.scale : -INFINITY;
            float top = max(most[h], simd_max(score)), shrinks = exp(most[h] - top);
            weights[h] = visible ? exp(score - top) : 0.0f;
            sum[h] = sum[h] * shrinks + simd_sum(weights[h]);
            most[h] = top;
            for (uint n = 0; n < N; n++) values[h][n] *= shrinks;
        }
        uint positions = min(end - position, TILE);
        for (uint j = 0; j < positions; j++) {
            float weight[HEADS_AT_ONCE];
            for (uint h = 0; h < HEADS_AT_ONCE; h++) weight[h] = simd_shuffle(weights[h], ushort(j));
            for (uint n = 0; n < N; n++) {
                uint d = n * LANES + lane;
                float value = d < p.values ? tile.value(j, d) : 0.0f;
                for (uint h = 0; h < HEADS_AT_ONCE; h++) values[h][n] = fma(weight[h], value, values[h][n]);
            }
        }
    }
    for (uint h = 0; h < count; h++) {
        // parts are those of this call's rows alone
        ulong place = ulong(p.spans == 1 ? row : group.y) * p.heads + first + h;
        device float *out = y + (p.spans == 1 ? place * p.values : (place * p.spans + group.z) * (2 + p.values));
        if (p.spans > 1) {
            if (lane == 0) {
                out[0] = most[h];
                out[1] = sum[h];
            }
            out += 2;
        }
        for (uint n = 0; n < N; n++)
            if (n * LANES + lane < p.values) out[n * LANES + lane] = p.spans == 1 ? values[h][n] / sum[h] : values[h][n];
    }
}

#define ATTENTION(Cache, name, N) \
    template [[host_name("attention_" #name #N)]] [[kernel]] decltype(attention<Cache, N>) attention<Cache, N>;
ATTENTION(Heads, heads, 1)
ATTENTION(Heads, heads, 2)
ATTENTION(Heads, heads, 4)
ATTENTION(Heads, heads, 8)
ATTENTION(Latent, latent, 1)
ATTENTION(Latent, latent, 4)
ATTENTION(Latent, latent, 16)

// What the spans of a row and head have found, added from left to right. Threadgroups: heads, rows.
kernel void merge_spans(device const float *parts [[buffer(0)]], device float *y [[buffer(1)]],
                        constant AttentionParams &p [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                        uint lane [[thread_index_in_simdgroup]]) {
    ulong place = ulong(group.y) * p.heads + group.x;
    uint stride = 2 + p.values;
    device const float *part = parts + place * p.spans * stride;
    for (uint d = lane; d < p.values; d += LANES) {
        float most = part[0], sum = part[1], value = part[2 + d];
        for (uint span = 1; span < p.spans; span++) {
            device const float *next = part + span * stride;
            // a row sees nothing of the spans after its own
            if (next[1] == 0.0f) continue;
            float top = max(most, next[0]), old = exp(most - top), added = exp(next[0] - top);
            sum = sum * old + next[1] * added;
            value = fma(next[2 + d], added, value * old);
            most = top;
        }
        y[(ulong(p.first + group.y) * p.heads + group.x) * p.values + d] = value / sum;
    }
}
