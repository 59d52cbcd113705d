//! The reference backend and the product on Linux: SIMD kernels, one file an operation, one order of additions.

mod ahead;
mod argmax;
mod arithmetic;
mod attention;
mod delta;
mod dot;
mod heads;
mod int8;
mod least;
mod linear;
mod math;
mod moe;
mod operands;
mod packed;
mod pool;
mod routing;
mod rows;
mod rowwise;
mod scales;
mod simd;
mod stream;
mod turned;
mod wide;

use std::ops::Range;

pub use pool::Pool;
pub(super) use rows::gather;
pub use simd::Isa;

use super::{
    Arithmetic, AttentionShape, Backend, Batch, Constant, DeltaGates, DeltaShape, DeltaStore, Exchange, Experts,
    KvStore, KvType, LatentShape, LatentStore, Memory, Piece, RopeStyle, Router, Routes, Tensor,
};
use crate::error::{Error, Result};
use crate::partition::Fold;
use crate::weights::{Matrix, Runs};

/// SIMD kernels on a pool of threads.
#[derive(Debug)]
pub struct Cpu {
    pool: Pool,
    isa: Isa,
    arithmetic: Arithmetic,
}

impl Cpu {
    /// Uses `threads` threads and the widest instruction set of this processor.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_isa(threads, Isa::best())
    }

    /// Uses `threads` threads and the instruction set `isa`.
    ///
    /// # Errors
    /// If this processor does not have it, or the system refuses a thread.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self> {
        if !Isa::available().contains(&isa) {
            return Err(Error::msg(format!("this processor has no {}", isa.name())));
        }
        Ok(Self { pool: Pool::new(threads)?, isa, arithmetic: Arithmetic::Exact })
    }

    /// Computes in another arithmetic than [`Arithmetic::Exact`].
    #[must_use]
    pub fn computing(self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self }
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        let fast = if self.arithmetic == Arithmetic::Fast { " fast" } else { "" };
        format!("cpu {}{fast} {} threads", self.isa.name(), self.pool.threads())
    }

    fn zeros(&self, len: usize) -> Result<Memory> {
        Memory::zeros(len)
    }

    fn kv_type(&self) -> KvType {
        self.arithmetic.kv_type()
    }

    fn upload(&self, x: Tensor) -> Tensor {
        x
    }

    fn keep(&self, _: &Matrix) -> Result<Vec<Runs>> {
        Ok(Vec::new())
    }

    fn post(&self, partial: Tensor, _: (usize, usize)) -> Result<Exchange> {
        Ok(Exchange::Here(partial))
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }

    fn arrange(&self, rows: usize, cols: usize, pieces: &[Piece<'_>]) -> Tensor {
        rowwise::arrange(rows, cols, pieces)
    }

    fn embed(&self, table: &Matrix, ids: &[u32]) -> Result<Tensor> {
        gather(self.isa, table, ids)
    }

    fn linears(&self, x: &Tensor, ws: &[&Matrix], fold: &Fold) -> Result<Vec<Tensor>> {
        linear::linears(self, x, ws, fold)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Constant, eps: f32) -> Tensor {
        rowwise::rms_norm(self, x, weight, eps)
    }

    fn rms_norm_gated(&self, x: &Tensor, gate: &Tensor, weight: &Constant, eps: f32) -> Tensor {
        rowwise::rms_norm_gated(self, x, gate, weight, eps)
    }

    fn rope(&self, x: &mut Tensor, head_dim: usize, table: &Tensor, style: RopeStyle) {
        rowwise::rope(self, x, head_dim, table, style);
    }

    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        store: &mut KvStore,
        batch: &Batch,
        shape: &AttentionShape,
    ) -> Tensor {
        attention::store(store, k, v, batch);
        attention::attention(self, q, store, batch, shape)
    }

    fn latent_attention(
        &self,
        q: &Tensor,
        latent: &Tensor,
        store: &mut LatentStore,
        batch: &Batch,
        shape: &LatentShape,
    ) -> Tensor {
        attention::store_latent(store, latent, batch);
        attention::latent_attention(self, q, store, batch, shape)
    }

    fn per_head(&self, x: &Tensor, ws: &[Matrix], turned: bool) -> Result<Tensor> {
        heads::per_head(self, x, ws, turned)
    }

    fn conv_silu(&self, x: &Tensor, weight: &Constant, store: &mut DeltaStore, batch: &Batch) -> Tensor {
        delta::conv_silu(self, x, weight, store, batch)
    }

    fn delta_gates(&self, a: &Tensor, b: &Tensor, a_log: &Constant, dt_bias: &Constant) -> DeltaGates {
        delta::delta_gates(self, a, b, a_log, dt_bias)
    }

    fn delta_rule(
        &self,
        qkv: Tensor,
        gates: &DeltaGates,
        store: &mut DeltaStore,
        batch: &Batch,
        shape: &DeltaShape,
    ) -> Tensor {
        delta::delta_rule(self, qkv, gates, store, batch, shape)
    }

    fn swiglu(&self, gate: Tensor, up: &Tensor) -> Tensor {
        rowwise::swiglu(self, gate, up)
    }

    fn gate_sigmoid(&self, x: &mut Tensor, gate: &Tensor) {
        rowwise::gate_sigmoid(self, x, gate);
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        rowwise::add(self, x, y);
    }

    fn add_bias(&self, x: &mut Tensor, bias: &Constant) {
        rowwise::add_bias(self, x, bias);
    }

    fn route(&self, logits: &Tensor, router: &Router<'_>) -> Routes {
        routing::route(self, logits, router)
    }

    fn experts(&self, x: &Tensor, routes: &Routes, experts: &Experts<'_>) -> Result<Tensor> {
        moe::experts(self, x, routes, experts)
    }

    fn argmax(&self, x: &Tensor, rows: Range<usize>, first: usize) -> Tensor {
        argmax::argmax(self, x, rows, first)
    }
}
