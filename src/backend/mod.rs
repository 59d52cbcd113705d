//! The transformer's operations behind one trait; `cpu` defines what each of them computes.

mod batch;
mod check;
pub mod cpu;
mod exchange;

mod lines;
mod memory;
pub mod metal;
mod peak;
mod shapes;
mod state;
mod tensor;

pub use batch::{Batch, Segment};
pub use cpu::Cpu;
pub use exchange::{Crossing, Exchange};
pub use lines::Lines;
pub use memory::{Constant, DeviceMemory, Memory};
pub use metal::{Fence, Metal};
pub use peak::Peak;

pub use shapes::{
    AttentionShape, DeltaGates, DeltaShape, ExpertWeights, Experts, HeadGroups, LatentShape, RopeStyle, Router, Routes,
    Scores, SharedExpert,
};
pub use state::{DeltaStore, KvStore, KvType, LatentStore, LayerState, PAGE, TILE};
pub use tensor::{Piece, Tensor};

use std::ops::Range;

use crate::error::Result;
use crate::partition::Fold;
use crate::weights::{Matrix, Runs};

/// What is rounded where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// f32 activations, weights as exact as their format is.
    #[default]
    Exact,
    /// In matrix products with affine weights of 4 or 8 bits activations are rounded to 8 bits, 32 columns at a time; with other
    /// weights both operands are rounded to bf16. So are the keys, values and latent vectors of the cache. Everything else is
    /// exact.
    Fast,
}

impl Arithmetic {
    /// Its name, which changes when any bit of a result may.
    pub fn id(self) -> &'static str {
        match self {
            Self::Exact => "exact-2",
            Self::Fast => "fast-3",
        }
    }

    /// How it keeps keys and values.
    pub fn kv_type(self) -> KvType {
        match self {
            Self::Exact => KvType::F32,
            Self::Fast => KvType::Bf16,
        }
    }
}

/// Fused transformer operations on one device. Activations are `[rows, features]`, a row a token of a [`Batch`].
///
/// **Invariant:** a row's result does not depend on the other rows of the call, nor on the number of threads.
pub trait Backend: Send + Sync {
    /// What runs the operations, for people.
    fn name(&self) -> String;

    /// `len` zeros for the state of sequences, in memory that the device reads and writes.
    ///
    /// # Errors
    /// If it has no room for them.
    fn zeros(&self, len: usize) -> Result<Memory>;

    /// How it keeps the keys and values of sequences.
    fn kv_type(&self) -> KvType {
        KvType::F32
    }

    /// A prompt whose passes have a multiple of so many tokens, and then one of the rest, has the same bits however it is cut.
    fn grain(&self) -> usize {
        1
    }

    /// The same values in memory that the device reads.
    fn upload(&self, x: Tensor) -> Tensor;

    /// Takes `w` to where it is used, so that the first token need not. What is returned are those of its bytes that were
    /// copied: they are not looked at again.
    ///
    /// # Errors
    /// If the device has no room for it.
    fn keep(&self, w: &Matrix) -> Result<Vec<Runs>>;

    /// Waits until everything that was asked for has run. What a tensor shows the host is what was computed only if this
    /// says so afterwards.
    ///
    /// # Errors
    /// If the device has failed.
    fn finish(&self) -> Result<()>;

    /// Takes `partial`, this rank's part of a sum over ranks, to the host. Where the device can go on meanwhile it comes with
    /// a tensor of `shape` that the sum will be, and on which operations are asked for as on any other; nothing is read by the
    /// host, and nothing finished, before the sum is there.
    ///
    /// # Errors
    /// If the device has failed, or two sums are on their way already.
    fn post(&self, partial: Tensor, shape: (usize, usize)) -> Result<Exchange>;

    /// `[rows, cols]` that `pieces` fill.
    fn arrange(&self, rows: usize, cols: usize, pieces: &[Piece<'_>]) -> Tensor;

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
    fn rms_norm(&self, x: &Tensor, weight: &Constant, eps: f32) -> Tensor;

    /// x + added in place, and [`Backend::rms_norm`] of that, with the bits of one after the other.
    fn add_rms_norm(&self, x: &mut Tensor, added: &Tensor, weight: &Constant, eps: f32) -> Tensor {
        self.add(x, added);
        self.rms_norm(x, weight, eps)
    }

    /// RMSNorm over runs of `weight.len()` values, times silu(gate).
    fn rms_norm_gated(&self, x: &Tensor, gate: &Tensor, weight: &Constant, eps: f32) -> Tensor;

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

    /// Appends latent vectors `[rows, width]` to the cache, then attends causally with `q` (`[rows, heads · width]`):
    /// `[rows, heads · values]`.
    fn latent_attention(
        &self,
        q: &Tensor,
        latent: &Tensor,
        store: &mut LatentStore,
        batch: &Batch,
        shape: &LatentShape,
    ) -> Tensor;

    /// A matrix of its own for every head of `x` (`[rows, heads · in]`), all of one shape: `x · wᵀ`, or `x · w` if they
    /// are `turned`. `[rows, heads · out]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn per_head(&self, x: &Tensor, ws: &[Matrix], turned: bool) -> Result<Tensor>;

    /// Depthwise causal convolution with `weight` (`[taps + 1, channels]`), then silu.
    fn conv_silu(&self, x: &Tensor, weight: &Constant, store: &mut DeltaStore, batch: &Batch) -> Tensor;

    /// Decay and write strength of a gated delta net from its projections `a` (`[rows, v_heads]`, or `[rows, v_heads ·
    /// key_dim]`) and `b` (`[rows, v_heads]`); `a_log` and `dt_bias` have a value a column of `a`.
    fn delta_gates(&self, a: &Tensor, b: &Tensor, a_log: &Constant, dt_bias: &Constant) -> DeltaGates;

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

    /// x + y in place.
    fn add(&self, x: &mut Tensor, y: &Tensor);

    /// x + bias in place, the same for every row.
    fn add_bias(&self, x: &mut Tensor, bias: &Constant);

    /// The experts that router logits `[rows, experts]` ask for.
    fn route(&self, logits: &Tensor, router: &Router<'_>) -> Routes;

    /// The routed (and shared) experts' SwiGLU: one `[rows, hidden]` block per subtree of the fold.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn experts(&self, x: &Tensor, routes: &Routes, experts: &Experts<'_>) -> Result<Tensor>;

    /// The largest value of each of the rows `rows` of `x`, whose columns are those from `first` on of a whole row:
    /// `[rows, Peak::WORDS]`, a [`Peak`] a row.
    fn argmax(&self, x: &Tensor, rows: Range<usize>, first: usize) -> Tensor;
}
