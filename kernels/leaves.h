// One leaf of a dot product, and how SIMD-groups share rows and tokens out.
#include "formats.h"

// Output rows of one SIMD-group, and SIMD-groups of a threadgroup.
constant constexpr uint ROWS = 4;
constant constexpr uint SIMDS = 4;
// Levels of a tree of 32 leaves.
constant constexpr uint LEVELS = 6;

// The leaves of a subtree so far: sums on a stack, of which pairs become one as the tree has them.
struct Subtree {
    float sums[LEVELS];
    uint depth;

    void add(float leaf, uint merges) {
        sums[depth++] = leaf;
        for (uint merge = 0; merge < merges; merge++) {
            depth--;
            sums[depth - 1] += sums[depth];
        }
    }
};

// The columns start..end of ROWS rows from `first_row` on, times T tokens: lane l has the product of row l / T and token
// l % T. A lane adds the columns 8 · lane, 8 · (lane + 32), … in order, then the lanes are added.
template <typename F, uint T>
inline float leaf(Stored w, constant MatrixParams &m, uint first_row, device const float *thread *xs, uint start, uint end,
                  uint lane) {
    float sums[ROWS][T] = {};
    for (uint column = start + lane * RUN; column < end; column += LANES * RUN) {
        float values[T][RUN];
        for (uint t = 0; t < T; t++)
            for (uint i = 0; i < RUN; i++) values[t][i] = column + i < end ? xs[t][column + i] : 0.0f;
        for (uint r = 0; r < ROWS; r++) {
            float weights[RUN];
            F::load(w, m, min(first_row + r, m.out_features - 1), column, end, weights);
            for (uint t = 0; t < T; t++)
                for (uint i = 0; i < RUN; i++) sums[r][t] = fma(weights[i], values[t][i], sums[r][t]);
        }
    }
    float own = 0;
    for (uint r = 0; r < ROWS; r++)
        for (uint t = 0; t < T; t++) {
            float sum = simd_sum(sums[r][t]);
            own = lane == r * T + t ? sum : own;
        }
    return own;
}
