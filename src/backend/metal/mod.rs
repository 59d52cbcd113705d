//! The same operations as kernels of a GPU, encoded for a [`Device`]: twins of [`cpu`](super::cpu) by name.
//!
//! Nothing waits for the device but what reads its results, and sums over ranks (`fence/`). An operation that cannot be asked for is an error of the next
//! [`Backend::finish`]. Exact arithmetic only; sums are added in another order than on a CPU, which depends on the shapes of
//! the operands alone.

mod arena;
mod argmax;
mod attention;
mod delta;
mod fence;
mod grouped;
mod linear;
mod list;
mod memory;
mod moe;
mod rowwise;
mod stream;
mod tables;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

pub use self::fence::Fence;

use self::arena::Region;
use self::memory::{Operand, Residents, Taken, Values, region_of, tensor};
use self::stream::{Name, Stream, Work};
use self::tables::Tables;
use super::{
    AttentionShape, Backend, Batch, Constant, DeltaGates, DeltaShape, DeltaStore, Exchange, Experts, KvStore,
    LatentShape, LatentStore, Memory, Peak, Piece, RopeStyle, Router, Routes, Tensor,
};
use crate::error::Result;
use crate::gpu::Device;
use crate::partition::Fold;
use crate::weights::{Matrix, Runs};

/// Threads of a threadgroup where every thread has a value of its own.
const THREADS: usize = 256;
/// Threads of a SIMD-group.
const LANES: usize = 32;

/// Kernels of `kernels/*.metal` on one device.
#[derive(Debug)]
pub struct Metal {
    stream: Arc<Stream>,
    residents: Residents,
    tables: Tables,
    // the batch that was uploaded last
    batch: Mutex<Option<Arc<Rows>>>,
}

/// A batch where kernels see it.
#[derive(Debug)]
struct Rows {
    id: u64,
    // a structure a row, then the page tables
    rows: Taken,
    // a structure a segment
    segments: Taken,
    // a structure a block of rows of segments of many, and how many these are
    prompts: Option<(Taken, usize)>,
    // all rows, and those of segments of few, where they attend by themselves
    all: attention::Few,
    others: attention::Few,
}

impl Metal {
    /// The name of its arithmetic, which changes when any bit of a result may.
    pub const ARITHMETIC: &str = "metal-exact-3";

    /// Computes on `device`, and meets it as [`Fence::default`] says.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self::with_fence(device, Fence::default())
    }

    /// Computes on `device`, and meets it by `fence` where ranks sum.
    pub fn with_fence(device: Arc<dyn Device>, fence: Fence) -> Self {
        let stream = Arc::new(Stream::new(device, fence));
        Self { stream, residents: Residents::default(), tables: Tables::default(), batch: Mutex::default() }
    }

    /// How it meets its device where ranks sum.
    pub fn fence(&self) -> Fence {
        self.stream.fence
    }

    /// How often a wait of the device gave up, and was asked for again with all that came after it.
    pub fn resubmissions(&self) -> u64 {
        self.stream.asked().resubmissions
    }

    fn run(
        &self,
        name: Name,
        reads: &[&Region],
        writes: &[&Region],
        params: &[u8],
        (groups, threads): ([usize; 3], usize),
    ) {
        self.stream.run(&Work { name, reads, writes, params, groups, threads });
    }

    fn scratch(&self, len: usize) -> Result<Values> {
        Values::scratch(&self.stream, len)
    }

    /// Where `memory` is, or a copy of it.
    fn operand<'a>(&self, memory: &'a Memory) -> Result<Operand<'a>> {
        match region_of(memory) {
            Some(region) => Ok(Operand::There(region)),
            None => Ok(Operand::Copied(Values::upload(&self.stream, memory)?)),
        }
    }

    fn input<'a>(&self, x: &'a Tensor) -> Result<Operand<'a>> {
        self.operand(x.memory())
    }

    /// Where `x` is, which a kernel changes in place.
    fn in_place<'a>(&self, x: &'a mut Tensor) -> Result<&'a Region> {
        if region_of(x.memory()).is_none() {
            let values = Values::upload(&self.stream, x.data())?;
            *x = tensor(x.rows(), x.cols(), values);
        }
        region_of(x.memory()).ok_or_else(|| crate::error::Error::msg("a tensor is another device's"))
    }

    /// What an operation without a result of its own says of an error: it is noted, and there are zeros.
    fn or_zeros(&self, y: Result<Tensor>, rows: usize, cols: usize) -> Tensor {
        y.unwrap_or_else(|error| {
            self.stream.fail(&error);
            Tensor::zeros(rows, cols)
        })
    }

    fn or_noted(&self, done: Result<()>) {
        if let Err(error) = done {
            self.stream.fail(&error);
        }
    }

    fn rows_of(&self, batch: &Batch) -> Result<Arc<Rows>> {
        let mut last = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(rows) if rows.id == batch.id() => Ok(rows.clone()),
            _ => Ok(last.insert(Arc::new(attention::upload(self, batch)?)).clone()),
        }
    }
}

impl Drop for Metal {
    fn drop(&mut self) {
        // weights that kernels find by address alone must outlive what was asked for
        let _ = self.stream.finish();
    }
}

/// As many threads as values, in threadgroups of a row.
fn threads_for(values: usize) -> ([usize; 3], usize) {
    ([values.div_ceil(THREADS), 1, 1], THREADS)
}

impl Backend for Metal {
    fn name(&self) -> String {
        self.stream.device().name()
    }

    fn grain(&self) -> usize {
        // so many tokens are multiplied otherwise than fewer
        linear::MANY
    }

    fn zeros(&self, len: usize) -> Result<Memory> {
        Ok(Memory::Device(Box::new(Values::zeros(&self.stream, len)?)))
    }

    fn upload(&self, x: Tensor) -> Tensor {
        if region_of(x.memory()).is_some() {
            return x;
        }
        match Values::upload(&self.stream, x.data()) {
            Ok(values) => tensor(x.rows(), x.cols(), values),
            Err(error) => {
                self.stream.fail(&error);
                x
            }
        }
    }

    fn keep(&self, w: &Matrix) -> Result<Vec<Runs>> {
        linear::keep(self, w)
    }

    fn finish(&self) -> Result<()> {
        self.stream.finish()
    }

    fn post(&self, partial: Tensor, shape: (usize, usize)) -> Result<Exchange> {
        if self.stream.fence == Fence::Drain {
            return self.finish().map(|()| Exchange::Here(partial));
        }
        fence::crossing::post(self, partial, shape)
    }

    fn arrange(&self, rows: usize, cols: usize, pieces: &[Piece<'_>]) -> Tensor {
        self.or_zeros(rowwise::arrange(self, rows, cols, pieces), rows, cols)
    }

    fn embed(&self, table: &Matrix, ids: &[u32]) -> Result<Tensor> {
        linear::embed(self, table, ids)
    }

    fn linears(&self, x: &Tensor, ws: &[&Matrix], fold: &Fold) -> Result<Vec<Tensor>> {
        linear::linears(self, x, ws, fold)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Constant, eps: f32) -> Tensor {
        self.or_zeros(rowwise::rms_norm(self, x, None, weight, eps), x.rows(), x.cols())
    }

    fn rms_norm_gated(&self, x: &Tensor, gate: &Tensor, weight: &Constant, eps: f32) -> Tensor {
        self.or_zeros(rowwise::rms_norm(self, x, Some(gate), weight, eps), x.rows(), x.cols())
    }

    fn add_rms_norm(&self, x: &mut Tensor, added: &Tensor, weight: &Constant, eps: f32) -> Tensor {
        let (rows, cols) = (x.rows(), x.cols());
        self.or_zeros(rowwise::add_rms_norm(self, x, added, weight, eps), rows, cols)
    }

    fn rope(&self, x: &mut Tensor, head_dim: usize, table: &Tensor, style: RopeStyle) {
        self.or_noted(rowwise::rope(self, x, head_dim, table, style));
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
        self.or_zeros(attention::attention(self, q, (k, v), store, batch, shape), q.rows(), q.cols())
    }

    fn latent_attention(
        &self,
        q: &Tensor,
        latent: &Tensor,
        store: &mut LatentStore,
        batch: &Batch,
        shape: &LatentShape,
    ) -> Tensor {
        let cols = shape.heads * shape.values;
        self.or_zeros(attention::latent_attention(self, q, latent, store, batch, shape), q.rows(), cols)
    }

    fn per_head(&self, x: &Tensor, ws: &[Matrix], turned: bool) -> Result<Tensor> {
        linear::per_head(self, x, ws, turned)
    }

    fn conv_silu(&self, x: &Tensor, weight: &Constant, store: &mut DeltaStore, batch: &Batch) -> Tensor {
        self.or_zeros(delta::conv_silu(self, x, weight, store, batch), x.rows(), x.cols())
    }

    fn delta_gates(&self, a: &Tensor, b: &Tensor, a_log: &Constant, dt_bias: &Constant) -> DeltaGates {
        delta::delta_gates(self, a, b, a_log, dt_bias).unwrap_or_else(|error| {
            self.stream.fail(&error);
            DeltaGates { decay: Tensor::zeros(a.rows(), a.cols()), beta: Tensor::zeros(b.rows(), b.cols()) }
        })
    }

    fn delta_rule(
        &self,
        qkv: Tensor,
        gates: &DeltaGates,
        store: &mut DeltaStore,
        batch: &Batch,
        shape: &DeltaShape,
    ) -> Tensor {
        let rows = qkv.rows();
        self.or_zeros(delta::delta_rule(self, qkv, gates, store, batch, shape), rows, shape.values())
    }

    fn swiglu(&self, mut gate: Tensor, up: &Tensor) -> Tensor {
        self.or_noted(rowwise::combine(self, "swiglu", &mut gate, up));
        gate
    }

    fn gate_sigmoid(&self, x: &mut Tensor, gate: &Tensor) {
        self.or_noted(rowwise::combine(self, "gate_sigmoid", x, gate));
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        self.or_noted(rowwise::combine(self, "add", x, y));
    }

    fn add_bias(&self, x: &mut Tensor, bias: &Constant) {
        self.or_noted(rowwise::add_bias(self, x, bias));
    }

    fn route(&self, logits: &Tensor, router: &Router<'_>) -> Routes {
        moe::route(self, logits, router).unwrap_or_else(|error| {
            self.stream.fail(&error);
            let zeros = || Tensor::zeros(logits.rows(), router.top_k);
            Routes { experts: zeros(), weights: zeros() }
        })
    }

    fn experts(&self, x: &Tensor, routes: &Routes, experts: &Experts<'_>) -> Result<Tensor> {
        moe::experts(self, x, routes, experts)
    }

    fn argmax(&self, x: &Tensor, rows: Range<usize>, first: usize) -> Tensor {
        let count = rows.len();
        self.or_zeros(argmax::argmax(self, x, rows, first), count, Peak::WORDS)
    }
}
