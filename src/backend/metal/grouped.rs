//! Chosen experts of many tokens: those that share an expert are multiplied together, and leaves are ranked afterwards.

use bytemuck::bytes_of;

use super::linear::{THREADS, TILE, joined, product, steps};
use super::memory::{Values, tensor};
use super::moe::shared_inner;
use super::rowwise::combine;
use super::tables::Table;
use super::{LANES, Metal};
use crate::backend::{Experts, Routes, SharedExpert, Tensor};
use crate::error::Result;
use crate::gpu::params::{GroupedParams, PairRun, PairsParams, RankParams, StepParams};
use crate::partition::{Fold, Leaves};

/// Bytes of leaves that are kept until they are summed, and their columns at most: they are to be in the GPU's caches then.
const LEAVES: usize = 64 << 20;
const COLUMNS: usize = 1024;

/// The sum of the chosen experts' (and the shared expert's) outputs: one `[tokens, hidden]` block per subtree. `tables` are of
/// their gate, up and down projections.
pub(super) fn experts(
    metal: &Metal,
    x: &Tensor,
    routes: &Routes,
    experts: &Experts<'_>,
    tables: [&Table; 3],
) -> Result<Tensor> {
    let (tokens, hidden, top_k) = (x.rows(), x.cols(), routes.top_k());
    let (pairs, fold) = (Pairs::of(metal, routes, experts.routed.gate.len())?, experts.fold);
    let whole = steps(&Fold::whole(Leaves::unsharded(hidden)));
    let [gate, up] = [tables[0], tables[1]].map(|table| -> Result<Tensor> {
        let product = Product { x, sharing: top_k, table, first: 0, out: fold.width(), steps: &whole };
        Ok(tensor(pairs.count, fold.width(), pairs.multiply(metal, &product)?))
    });
    let (mut inner, up) = (gate?, up?);
    combine(metal, "swiglu", &mut inner, &up)?;
    let shared = experts.shared.as_ref().map(|shared| SharedHalf::of(metal, x, shared)).transpose()?;
    let (own, alone) = (steps(fold), alone(fold));
    let y = metal.scratch(fold.roots.len() * tokens * hidden)?;
    let rows = own.len() * (pairs.count + shared.as_ref().map_or(0, |_| tokens));
    let most = (LEAVES / (4 * rows).max(1) / TILE * TILE).clamp(TILE, COLUMNS);
    for first in (0..hidden).step_by(most) {
        let out = most.min(hidden - first);
        let product = Product { x: &inner, sharing: 1, table: tables[2], first, out, steps: &alone };
        let leaves = pairs.multiply(metal, &product)?;
        let shared_leaves = shared.as_ref().map(|shared| shared.leaves(metal, first, out)).transpose()?;
        let weights = metal.input(&routes.weights)?;
        let shared_weights = shared.as_ref().and_then(|shared| shared.expert.weights.as_ref());
        let shared_weights = metal.input(shared_weights.unwrap_or(&routes.weights))?;
        let params = RankParams {
            tokens: tokens as u32,
            top_k: top_k as u32,
            shared: shared.as_ref().map_or(0, |shared| if shared.expert.weights.is_some() { 1 } else { 2 }),
            first: first as u32,
            width: out as u32,
            hidden: hidden as u32,
            steps: own.len() as u32,
        };
        let params = joined(&[bytes_of(&params), bytemuck::cast_slice(&own)]);
        let shared_leaves = shared_leaves.as_ref().unwrap_or(&leaves);
        let reads = [leaves.region(), &weights, shared_leaves.region(), &shared_weights];
        let work = ([out.div_ceil(LANES), tokens, 1], LANES);
        metal.run(("rank_tree", ""), &reads, &[y.region()], &params, work);
    }
    Ok(tensor(fold.roots.len() * tokens, hidden, y))
}

/// The leaves of a fold, each of them by itself.
fn alone(fold: &Fold) -> Vec<StepParams> {
    steps(fold).into_iter().map(|step| StepParams { merges: 0, last: 1, ..step }).collect()
}

/// The pairs `token · top_k + rank` in the order of their experts.
struct Pairs {
    count: usize,
    order: Values,
    runs: Values,
    /// So many, of which some are empty.
    run_count: usize,
}

/// A product of every pair with rows of its expert's matrix.
struct Product<'a> {
    x: &'a Tensor,
    /// Pairs that share a row of `x`.
    sharing: usize,
    table: &'a Table,
    /// The rows `first..first + out`.
    first: usize,
    out: usize,
    steps: &'a [StepParams],
}

impl Pairs {
    fn of(metal: &Metal, routes: &Routes, experts: usize) -> Result<Self> {
        let count = routes.experts.rows() * routes.top_k();
        let run_count = count / TILE + experts;
        let order = metal.scratch(count)?;
        let runs = metal.scratch(run_count * size_of::<PairRun>() / 4)?;
        let chosen = metal.input(&routes.experts)?;
        let params = PairsParams { pairs: count as u32 };
        let work = ([experts, 1, 1], LANES);
        metal.run(("group_pairs", ""), &[&chosen], &[order.region(), runs.region()], bytes_of(&params), work);
        Ok(Self { count, order, runs, run_count })
    }

    /// One `[pairs, out]` block a subtree.
    fn multiply(&self, metal: &Metal, product: &Product<'_>) -> Result<Values> {
        let Product { x, sharing, table, first, out, steps } = *product;
        let params = GroupedParams {
            pairs: self.count as u32,
            sharing: sharing as u32,
            in_features: x.cols() as u32,
            first: first as u32,
            out_features: out as u32,
            steps: steps.len() as u32,
        };
        let params = joined(&[bytes_of(&table.params), bytes_of(&params), bytemuck::cast_slice(steps)]);
        let roots = steps.iter().filter(|step| step.last == 1).count();
        let y = metal.scratch(roots * self.count * out)?;
        let from = metal.input(x)?;
        let reads = [&*from, self.order.region(), self.runs.region(), table.entries.region()];
        let work = ([out.div_ceil(TILE), self.run_count, 1], THREADS);
        metal.run(("experts_many", table.format), &reads, &[y.region()], &params, work);
        Ok(y)
    }
}

/// The expert that every token uses, before its down projection.
struct SharedHalf<'a> {
    inner: Tensor,
    expert: &'a SharedExpert<'a>,
    /// Of its leaves, each of them by itself.
    steps: Vec<StepParams>,
}

impl<'a> SharedHalf<'a> {
    fn of(metal: &Metal, x: &Tensor, expert: &'a SharedExpert<'a>) -> Result<Self> {
        Ok(Self { inner: shared_inner(metal, x, expert)?, expert, steps: alone(expert.fold) })
    }

    /// The rows `first..first + out` of the down projection: one `[tokens, out]` block a leaf.
    fn leaves(&self, metal: &Metal, first: usize, out: usize) -> Result<Values> {
        let down = self.expert.down.part(first..first + out, 0..self.expert.down.in_features())?;
        product(metal, &self.inner, &down, &self.steps)
    }
}
