//! The shapes of the operations: heads and who shares them, routers, experts.

use std::ops::Range;

use super::{Constant, Tensor};
use crate::error::Result;
use crate::partition::Fold;
use crate::weights::Matrix;

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
    /// `[rows, v_heads]`, or `[rows, v_heads · key_dim]` where every channel of a key has its own (Kimi Delta Attention,
    /// arXiv 2510.26692).
    pub decay: Tensor,
    /// `[rows, v_heads]`.
    pub beta: Tensor,
}

/// The heads of an attention whose keys and values are one latent vector a position (MLA, arXiv 2405.04434).
#[derive(Debug, Clone, Copy)]
pub struct LatentShape {
    /// Query heads; they share the latent vectors.
    pub heads: usize,
    /// Values of a latent vector, and of a query head.
    pub width: usize,
    /// How many of them, from the first on, are the value too.
    pub values: usize,
    /// What scores are multiplied by.
    pub scale: f32,
}

/// How a router's logits become the experts of a row.
#[derive(Debug, Clone, Copy)]
pub struct Router<'a> {
    /// What is compared.
    pub scores: Scores<'a>,
    /// Experts a row.
    pub top_k: usize,
    /// Weights of the chosen experts are scaled to sum to one.
    pub normalise: bool,
    /// What weights are multiplied by in the end.
    pub scale: f32,
}

/// How much a router wants each expert.
#[derive(Debug, Clone, Copy)]
pub enum Scores<'a> {
    /// A softmax over all experts.
    Softmax,
    /// Each expert's sigmoid. The choice is made with a bias added, and among the best groups only (DeepSeek-V3's
    /// `noaux_tc`, arXiv 2412.19437).
    Sigmoid {
        /// One for every expert.
        bias: &'a Constant,
        /// Groups of consecutive experts, equally large.
        groups: usize,
        /// Groups that experts are chosen from: those whose two best experts add up to most.
        top_groups: usize,
    },
}

/// The experts chosen for every row, best first.
#[derive(Debug)]
pub struct Routes {
    /// `[rows, top_k]`: numbers of experts, as the bits of the values.
    pub experts: Tensor,
    /// `[rows, top_k]`.
    pub weights: Tensor,
}

impl Routes {
    /// Of as many rows as `experts` and `weights` have times `top_k`.
    ///
    /// # Errors
    /// If that is no whole number, or not one number for both.
    pub fn new(top_k: usize, experts: &[u32], weights: Vec<f32>) -> Result<Self> {
        let rows = experts.len() / top_k.max(1);
        let experts = experts.iter().map(|expert| f32::from_bits(*expert)).collect();
        Ok(Self { experts: Tensor::from_vec(rows, top_k, experts)?, weights: Tensor::from_vec(rows, top_k, weights)? })
    }

    /// Experts a row.
    pub fn top_k(&self) -> usize {
        self.experts.cols()
    }

    /// `[rows, top_k]`.
    pub fn experts(&self) -> &[u32] {
        bytemuck::cast_slice(self.experts.data())
    }
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

/// What [`Backend::experts`](super::Backend::experts) sums.
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
