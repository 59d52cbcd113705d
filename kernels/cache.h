// Where the tiles of a sequence's keys and values lie, in pages of the cache.
#include "common.h"

// Positions of a tile, and of a page.
constant constexpr uint TILE = 32;
constant constexpr uint PAGE = 64;

// A tile of keys and values: keys [width, TILE], then values [TILE, width].
struct Heads {
    device const float *tile;
    uint width;

    Heads(device const float *cache, uint page, uint position, uint kv_head, constant AttentionParams &p)
        : tile(cache + ulong((page * p.kv_heads + kv_head) * (PAGE / TILE) + position % PAGE / TILE) * 2 * TILE * p.width),
          width(p.width) {}
    float key(uint d, uint position) const { return tile[d * TILE + position]; }
    float value(uint position, uint d) const { return tile[(TILE + position) * width + d]; }
    // 8 values of 8 positions: a value a row
    void keys(thread simdgroup_float8x8 &to, uint d, uint position) const { simdgroup_load(to, tile + d * TILE + position, TILE); }
    // 8 values of 8 positions: a position a row
    void values(thread simdgroup_float8x8 &to, uint position, uint d) const {
        simdgroup_load(to, tile + (TILE + position) * width + d, width);
    }
};

// A tile of latent vectors, [TILE, width]: keys as a whole and values in their first part.
struct Latent {
    device const float *tile;
    uint width;

    Latent(device const float *cache, uint page, uint position, uint, constant AttentionParams &p)
        : tile(cache + (ulong(page) * PAGE + position % PAGE) * p.width), width(p.width) {}
    float key(uint d, uint position) const { return tile[position * width + d]; }
    float value(uint position, uint d) const { return tile[position * width + d]; }
    void keys(thread simdgroup_float8x8 &to, uint d, uint position) const {
        simdgroup_load(to, tile + position * width + d, width, ulong2(0, 0), true);
    }
    void values(thread simdgroup_float8x8 &to, uint position, uint d) const {
        simdgroup_load(to, tile + position * width + d, width);
    }
};
