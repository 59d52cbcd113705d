//! The transformer's operations behind one trait; `cpu` defines what each of them computes.

mod batch;
pub mod cpu;

mod state;
mod tensor;

pub use batch::{Batch, Segment};
pub use cpu::Cpu;

pub use state::{DeltaStore, KvStore, LayerState, PAGE, TILE};
pub use tensor::Tensor;

use std::ops::Range;

use crate::error::Result;
use crate::partition::Fold;
use crate::weights::Matrix;

/// What is rounded where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// f32 activations, weights as exact as their format is.
    #[default]
    Exact,
    /// Both operands of dense matrix products are rounded to bf16; everything else is exact.
    Fast,
}

impl Arithmetic {
    /// Its name, which changes when any bit of a result may.
    pub fn id(self) -> &'static str {
        match self {
            Self::Exact => "exact-2",
            Self::Fast => "fast-1",
        }
    }
}

/// Fused transformer operations on one device. Activations are `[rows, features]`, a row a token of a [`Batch`].
///
/// **Invariant:** a row's result does not depend on the other rows of the call, nor on the number of threads.
pub trait Backend: Send + Sync {
    /// What runs the operations, for people.
    fn name(&self) -> String;

    /// The rows `ids` of an embedding table: `[ids, in]`.
    ///
    /// # Errors
    /// If an id is not a row of the table.
    fn embed(&self, table: &Matrix, ids: &[u32]) -> Result<Tensor>;

    /// `x · wᵀ` of every matrix of `ws`, which have one width: for each one `[rows, out]` block per subtree of `fold`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn linears(&self, x: &Tensor, ws: &[&Matrix], fold: &Fold) -> Result<Vec<Tensor>>;

    /// [`Backend::linears`] of one matrix.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn linear(&self, x: &Tensor, w: &Matrix, fold: &Fold) -> Result<Tensor> {
        Ok(self.linears(x, &[w], fold)?.swap_remove(0))
    }

    /// RMSNorm over runs of `weight.len()` values.
    fn rms_norm(&self, x: &Tensor, weight: &[f32], eps: f32) -> Tensor;

    /// RMSNorm over runs of `weight.len()` values, times silu(gate).
    fn rms_norm_gated(&self, x: &Tensor, gate: &Tensor, weight: &[f32], eps: f32) -> Tensor;

    /// Rotates the heads of `x` in place; `table` is `[rows, cos | sin]` and may cover a part of `head_dim`.
    fn rope(&self, x: &mut Tensor, head_dim: usize, table: &Tensor, style: RopeStyle);

    /// Appends keys and values `[rows, kv_heads · head_dim]` to the cache, then attends causally with `q`
    /// (`[rows, heads · head_dim]`): `[rows, heads · head_dim]`.
    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        store: &mut KvStore,
        batch: &Batch,
        shape: &AttentionShape,
    ) -> Tensor;

    /// Depthwise causal convolution with `weight` (`[taps + 1, channels]`), then silu.
    fn conv_silu(&self, x: &Tensor, weight: &Tensor, store: &mut DeltaStore, batch: &Batch) -> Tensor;

    /// Decay and write strength of a gated delta net from its projections `a` and `b` (`[rows, v_heads]`).
    fn delta_gates(&self, a: &Tensor, b: &Tensor, a_log: &[f32], dt_bias: &[f32]) -> DeltaGates;

    /// The recurrent gated delta rule over `qkv` (`[rows, q | k | v]`): `[rows, v_heads · value_dim]`.
    fn delta_rule(
        &self,
        qkv: Tensor,
        gates: &DeltaGates,
        store: &mut DeltaStore,
        batch: &Batch,
        shape: &DeltaShape,
    ) -> Tensor;

    /// silu(gate) · up.
    fn swiglu(&self, gate: Tensor, up: &Tensor) -> Tensor;

    /// x · sigmoid(gate), in place.
    fn gate_sigmoid(&self, x: &mut Tensor, gate: &Tensor);

    /// x + y in place; a `y` of one row is added to every row.
    fn add(&self, x: &mut Tensor, y: &Tensor);

    /// Softmax over router logits `[rows, experts]`, then the `top_k` largest, scaled to sum to one if `normalise`.
    fn route(&self, logits: &Tensor, top_k: usize, normalise: bool) -> Routes;

    /// The routed (and shared) experts' SwiGLU: one `[rows, hidden]` block per subtree of the fold.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn experts(&self, x: &Tensor, routes: &Routes, experts: &Experts<'_>) -> Result<Tensor>;
}

/// How a rotary embedding pairs the values of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Value i with value i + half (NeoX).
    Halves,
    /// Value 2i with value 2i + 1 (interleaved).
    Pairs,
}

/// Heads that share other heads group by group: query heads a kv head, value heads a key head.
///
/// A rank owns a run of heads; where it starts or ends inside a group, it has that group's shared head too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadGroups {
    /// Heads here.
    pub heads: usize,
    /// Shared heads here.
    pub shared: usize,
    /// Heads of a whole group.
    pub group: usize,
    /// Heads of the first group that are not here but before.
    pub before: usize,
}

impl HeadGroups {
    /// All of `heads` heads over `shared` shared ones, which divide them.
    pub fn whole(heads: usize, shared: usize) -> Self {
        Self { heads, shared, group: heads / shared.max(1), before: 0 }
    }

    /// The run `heads` of them.
    pub fn run(&self, heads: Range<usize>) -> Self {
        let shared = self.shared_by(&heads);
        let before = if heads.is_empty() { 0 } else { (self.before + heads.start) % self.group };
        Self { heads: heads.len(), shared: shared.len(), before, ..*self }
    }

    /// The shared heads that the run `heads` needs.
    pub fn shared_by(&self, heads: &Range<usize>) -> Range<usize> {
        if heads.is_empty() {
            return 0..0;
        }
        self.of(heads.start)..self.of(heads.end - 1) + 1
    }

    /// The shared head of head `head`.
    pub fn of(&self, head: usize) -> usize {
        (self.before + head) / self.group
    }

    /// The heads that share head `shared`.
    pub fn sharing(&self, shared: usize) -> Range<usize> {
        let at = |group: usize| (group * self.group).saturating_sub(self.before).min(self.heads);
        at(shared)..at(shared + 1)
    }
}

/// The heads of a grouped-query attention.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Query heads, sharing key and value heads.
    pub heads: HeadGroups,
    /// What scores are multiplied by.
    pub scale: f32,
}

/// The heads of a gated delta net.
#[derive(Debug, Clone, Copy)]
pub struct DeltaShape {
    /// Value heads, sharing query and key heads.
    pub heads: HeadGroups,
    /// Values of a key.
    pub key_dim: usize,
    /// Values of a value: a multiple of 16.
    pub value_dim: usize,
}

impl DeltaShape {
    /// Values of all queries, and of all keys.
    pub fn keys(&self) -> usize {
        self.heads.shared * self.key_dim
    }

    /// Values of all values.
    pub fn values(&self) -> usize {
        self.heads.heads * self.value_dim
    }
}

/// Per row and v-head: what the state is multiplied by, and how strongly it is corrected.
#[derive(Debug, Clone)]
pub struct DeltaGates {
    /// `[rows, v_heads]`.
    pub decay: Tensor,
    /// `[rows, v_heads]`.
    pub beta: Tensor,
}

/// The experts chosen for every row, best first.
#[derive(Debug, Clone)]
pub struct Routes {
    /// Experts a row.
    pub top_k: usize,
    /// `[rows, top_k]`.
    pub experts: Vec<u32>,
    /// `[rows, top_k]`.
    pub weights: Vec<f32>,
}

/// The three matrices of every expert.
#[derive(Debug, Default)]
pub struct ExpertWeights {
    /// `[inner, hidden]` each.
    pub gate: Vec<Matrix>,
    /// `[inner, hidden]` each.
    pub up: Vec<Matrix>,
    /// `[hidden, inner]` each.
    pub down: Vec<Matrix>,
}

/// What [`Backend::experts`] sums.
#[derive(Debug)]
pub struct Experts<'a> {
    /// The experts a router chooses from.
    pub routed: &'a ExpertWeights,
    /// The leaves of the routed down projections.
    pub fold: &'a Fold,
    /// The expert that every row uses.
    pub shared: Option<SharedExpert<'a>>,
}

/// The expert that every row uses. Its fold has as many leaves as the routed one.
#[derive(Debug)]
pub struct SharedExpert<'a> {
    /// `[inner, hidden]`.
    pub gate: &'a Matrix,
    /// `[inner, hidden]`.
    pub up: &'a Matrix,
    /// `[hidden, inner]`.
    pub down: &'a Matrix,
    /// The leaves of the down projection.
    pub fold: &'a Fold,
    /// `[rows, 1]`, before the sigmoid; `None` weighs one.
    pub weights: Option<Tensor>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_heads_finds_the_shared_heads_that_the_whole_does() {
        for (heads, shared) in [(24, 4), (9, 3), (6, 2), (48, 16), (5, 5), (8, 1)] {
            let whole = HeadGroups::whole(heads, shared);
            for start in 0..=heads {
                for end in start..=heads {
                    let (run, needed) = (whole.run(start..end), whole.shared_by(&(start..end)));
                    assert_eq!((run.heads, run.shared), (end - start, needed.len()));
                    for head in 0..run.heads {
                        assert_eq!(
                            needed.start + run.of(head),
                            whole.of(start + head),
                            "{heads} over {shared}: {start}..{end}"
                        );
                    }
                    let tiled: Vec<usize> = (0..run.shared).flat_map(|shared| run.sharing(shared)).collect();
                    assert_eq!(tiled, (0..run.heads).collect::<Vec<_>>());
                    // a run of a run is a run
                    if run.heads > 2 {
                        let inner = run.run(1..run.heads - 1);
                        assert_eq!(inner, whole.run(start + 1..end - 1));
                    }
                }
            }
        }
    }
}
