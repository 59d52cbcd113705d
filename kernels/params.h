// What the host hands to kernels beside buffers. The build makes Rust structures of these, so a field is a uint, a float
// or a device_address, and every structure is a whole number of its widest field.

// x · rsqrt(mean x² + eps) · weight over runs of `width` values; where `gated`, times silu(gate)
struct NormParams {
    uint width;
    uint gated;
    float eps;
};

// `count` values, or runs of `width` values that share `width` others
struct RunParams {
    uint count;
    uint width;
};

// Runs of `width` values from one tensor to another.
struct PieceParams {
    uint width;
    uint count;
    uint from_start;
    uint from_stride;
    uint to_start;
    uint to_stride;
};

// The first 2 · `half_dim` values of every head of `head_dim`; `pairs`: neighbours belong together, else halves.
struct RopeParams {
    uint heads;
    uint head_dim;
    uint half_dim;
    uint pairs;
};

// How a matrix is read: `row_bytes` from row to row, and the row and column of its first block that it starts at (FP8; 0 in other
// formats). Dtypes of scales: 0 f32, 1 f16, 2 bf16, 3 E8M0, 4 E4M3.
struct MatrixParams {
    uint out_features;
    uint row;
    uint column;
    uint row_bytes;
    uint group;
    uint groups_a_row;
    uint scales;
    uint biased;
};

// A matrix among others that are read alike: where it lies, and the row and column of its first block that it starts at.
struct MatrixAt {
    device_address values;
    device_address scales;
    device_address biases;
    uint row;
    uint column;
};

// A product of `rows` rows of `in_features` values; `steps` steps follow.
struct LinearParams {
    uint rows;
    uint in_features;
    uint steps;
};

// A leaf's columns; after it `merges` pairs of sums become one, and where `last` the subtree is done.
struct StepParams {
    uint start;
    uint end;
    uint merges;
    uint last;
};

// A product a head: `rows` rows of `heads` times `in_features` values become rows of `heads` times `out_features`.
struct HeadsParams {
    uint rows;
    uint heads;
    uint in_features;
    uint out_features;
};

// The experts of `tokens` tokens, `top_k` each (all the expert 0 where `single`). Weights: 0 as they are, 1 their sigmoid, 2 one.
// `adds`: to what is there. `steps` steps follow.
struct ExpertParams {
    uint tokens;
    uint top_k;
    uint single;
    uint in_features;
    uint out_features;
    uint weighing;
    uint adds;
    uint steps;
};

// Sums of `steps` leaves, `width` values each, become those of `tokens` tokens.
struct TreeParams {
    uint tokens;
    uint width;
    uint steps;
};

// Pairs of a token and an expert.
struct PairsParams {
    uint pairs;
};

// Pairs of one expert: `count` of them from `first` on, in the order of their experts.
struct PairRun {
    uint expert;
    uint first;
    uint count;
};

// Products of `pairs` pairs, `sharing` of which have one row of `in_features` values, with the rows from `first` on of their
// experts' matrices; `steps` steps follow.
struct GroupedParams {
    uint pairs;
    uint sharing;
    uint in_features;
    uint first;
    uint out_features;
    uint steps;
};

// Leaves of `top_k` experts of `tokens` tokens, and of one that they share (0 none, 1 weighed by a sigmoid, 2 by one), become the
// `width` columns from `first` on of rows of `hidden` values; `steps` steps follow.
struct RankParams {
    uint tokens;
    uint top_k;
    uint shared;
    uint first;
    uint width;
    uint hidden;
    uint steps;
};

// Columns of rows of `width` values, which are those from `first` on of whole rows, in `chunks` runs of `chunk`; rows from `row` on.
struct ArgmaxParams {
    uint width;
    uint row;
    uint first;
    uint chunk;
    uint chunks;
};

// How logits become experts; the best `top_groups` of `groups` groups are chosen from where sigmoid scores are compared.
struct RouterParams {
    uint experts;
    uint top_k;
    uint sigmoid_scores;
    uint groups;
    uint top_groups;
    uint normalise;
    float scale;
};

// Keys and values of rows, to their places in the cache.
struct CacheParams {
    uint kv_heads;
    uint head_dim;
};

// Query heads over the cache: head h uses the cache's head (before + h) / group, `chunks` threadgroups each. A head has
// `width` values and gives `values`; a row's positions are folded in `spans` spans. Rows from `first` on.
struct AttentionParams {
    uint first;
    uint heads;
    uint kv_heads;
    uint group;
    uint before;
    uint chunks;
    uint width;
    uint values;
    uint spans;
    float scale;
};

// Where a row of a batch stands: its position, and where its page table starts, counted in words.
struct RowParams {
    uint pages;
    uint position;
};

// Up to 32 rows of one sequence from `first` on, the first of which stands at `position`; `pages` as a row's.
struct BlockParams {
    uint first;
    uint count;
    uint pages;
    uint position;
};

// Rows of one sequence, and the slot of its state.
struct SegmentParams {
    uint slot;
    uint first;
    uint count;
};

// A causal convolution over `taps` past inputs and the newest.
struct ConvParams {
    uint channels;
    uint taps;
};

// Heads of a gated delta net: head h uses the key (before + h) / group. `decays`: one a head, or one a channel of a key.
struct DeltaParams {
    uint heads;
    uint keys;
    uint group;
    uint before;
    uint key_dim;
    uint value_dim;
    uint decays;
};

// Runs of `width` values, the first `count` of every row of `stride` values, of length one; then the first `scaled` runs
// are multiplied by `scale`.
struct LengthParams {
    uint width;
    uint count;
    uint stride;
    uint scaled;
    float scale;
};

// `count` values between a kernel and the host.
struct ShareParams {
    uint count;
};

// The number of an exchange.
struct SignalParams {
    uint number;
};

// A wait for the sum of exchange `number`, of one look and `looks` more at most; `words` words of counts.
struct WaitParams {
    uint number;
    uint looks;
    uint words;
};
