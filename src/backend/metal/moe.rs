//! Mixture of experts: the choice, the chosen experts' SwiGLU, and their sum leaf by leaf; for few tokens here, for many in
//! `grouped.rs`.

use bytemuck::bytes_of;

use super::grouped;
use super::linear::{MANY, ROWS, THREADS, joined, linears, steps};
use super::memory::{Values, tensor};
use super::rowwise::combine;
use super::tables::Table;
use super::{LANES, Metal};
use crate::backend::{Constant, Experts, Router, Routes, Scores, SharedExpert, Tensor, check};
use crate::error::{Error, Result};
use crate::gpu::params::{ExpertParams, RouterParams, StepParams, TreeParams};
use crate::partition::{Fold, Leaves};

/// Experts of a router at most, and groups of them: what the kernel has room for.
const EXPERTS: usize = 1024;
const GROUPS: usize = 32;

/// The experts of every row, the lower index first among equals.
pub(super) fn route(metal: &Metal, logits: &Tensor, router: &Router<'_>) -> Result<Routes> {
    let (rows, experts, top_k) = (logits.rows(), logits.cols(), router.top_k);
    let none = Constant::default();
    let (sigmoid, bias, groups, top_groups) = match router.scores {
        Scores::Softmax => (false, &none, 1, 1),
        Scores::Sigmoid { bias, groups, top_groups } => (true, bias, groups, top_groups),
    };
    if experts > EXPERTS || groups > GROUPS || top_k > experts {
        let error =
            format!("the kernel chooses among {EXPERTS} experts in {GROUPS} groups at most, not {experts} in {groups}");
        return Err(Error::msg(error));
    }
    let params = RouterParams {
        experts: experts as u32,
        top_k: top_k as u32,
        sigmoid_scores: sigmoid.into(),
        groups: groups as u32,
        top_groups: top_groups as u32,
        normalise: router.normalise.into(),
        scale: router.scale,
    };
    let from = metal.input(logits)?;
    let bias = if sigmoid { Some(metal.residents.constant(&metal.stream, bias)?) } else { None };
    let (chosen, weights) = (metal.scratch(rows * top_k)?, metal.scratch(rows * top_k)?);
    let reads = [&*from, bias.as_ref().map_or(&*from, |bias| bias.region())];
    let writes = [chosen.region(), weights.region()];
    metal.run(("route", ""), &reads, &writes, bytes_of(&params), ([rows, 1, 1], LANES));
    Ok(Routes { experts: tensor(rows, top_k, chosen), weights: tensor(rows, top_k, weights) })
}

/// The sum of the chosen experts' (and the shared expert's) outputs: one `[tokens, hidden]` block per subtree.
pub(super) fn experts(metal: &Metal, x: &Tensor, routes: &Routes, experts: &Experts<'_>) -> Result<Tensor> {
    check::routes(x, routes)?;
    // a table holds what is alike
    check::experts(x, 0..experts.routed.gate.len().min(1), experts)?;
    let (tokens, hidden, top_k) = (x.rows(), x.cols(), routes.top_k());
    let (fold, own) = (experts.fold, steps(experts.fold));
    let tables = |ws| Ok::<_, Error>(metal.tables.of(metal, ws)?.filter(|_| tokens > 0 && !own.is_empty()));
    let [gate, up, down] = [&experts.routed.gate, &experts.routed.up, &experts.routed.down].map(|ws| tables(ws));
    let (Some(gate), Some(up), Some(down)) = (gate?, up?, down?) else {
        return Ok(tensor(fold.roots.len() * tokens, hidden, metal.scratch(fold.roots.len() * tokens * hidden)?));
    };
    if tokens >= MANY {
        return grouped::experts(metal, x, routes, experts, [&gate, &up, &down]);
    }
    let mut inner = first_half(metal, x, routes, &gate, fold.width())?;
    combine(metal, "swiglu", &mut inner, &first_half(metal, x, routes, &up, fold.width())?)?;
    let routed =
        Half { inner: &inner, table: &down, chosen: Some(&routes.experts), weights: Some(&routes.weights), top_k };
    let shared = match &experts.shared {
        None => None,
        Some(shared) => {
            let inner = shared_inner(metal, x, shared)?;
            let table = metal.tables.of(metal, std::slice::from_ref(shared.down))?;
            table.map(|table| (inner, table, steps(shared.fold), shared.weights.as_ref()))
        }
    };
    let leaves = metal.scratch(own.len() * tokens * hidden)?;
    second_half(metal, &routed, &own, (tokens, hidden), &leaves)?;
    if let Some((inner, table, steps, weights)) = &shared {
        let half = Half { inner, table, chosen: None, weights: *weights, top_k: 1 };
        second_half(metal, &half, steps, (tokens, hidden), &leaves)?;
    }
    let params = TreeParams { tokens: tokens as u32, width: hidden as u32, steps: own.len() as u32 };
    let params = joined(&[bytes_of(&params), bytemuck::cast_slice(&own)]);
    let y = metal.scratch(fold.roots.len() * tokens * hidden)?;
    let work = ([hidden.div_ceil(LANES), tokens, 1], LANES);
    metal.run(("tree", ""), &[leaves.region()], &[y.region()], &params, work);
    Ok(tensor(fold.roots.len() * tokens, hidden, y))
}

/// What the expert that every token uses has before its down projection.
pub(super) fn shared_inner(metal: &Metal, x: &Tensor, shared: &SharedExpert<'_>) -> Result<Tensor> {
    let mut pair = linears(metal, x, &[shared.gate, shared.up], &Fold::whole(Leaves::unsharded(x.cols())))?;
    let (up, mut inner) = (pair.swap_remove(1), pair.swap_remove(0));
    combine(metal, "swiglu", &mut inner, &up)?;
    Ok(inner)
}

/// The product of every token with a matrix of each of its experts: `[tokens · top_k, out]`.
fn first_half(metal: &Metal, x: &Tensor, routes: &Routes, table: &Table, out: usize) -> Result<Tensor> {
    let (pairs, steps) = (x.rows() * routes.top_k(), steps(&Fold::whole(Leaves::unsharded(x.cols()))));
    let params = ExpertParams {
        tokens: x.rows() as u32,
        top_k: routes.top_k() as u32,
        in_features: x.cols() as u32,
        out_features: out as u32,
        steps: steps.len() as u32,
        ..Default::default()
    };
    let params = joined(&[bytes_of(&table.params), bytes_of(&params), bytemuck::cast_slice(&steps)]);
    let (from, chosen) = (metal.input(x)?, metal.input(&routes.experts)?);
    let y = metal.scratch(pairs * out)?;
    let work = ([out.div_ceil(ROWS), pairs, 1], THREADS);
    metal.run(("experts", table.format), &[&from, &chosen, table.entries.region()], &[y.region()], &params, work);
    Ok(tensor(pairs, out, y))
}

/// Down projections: of chosen experts, or of one that every token uses.
struct Half<'a> {
    inner: &'a Tensor,
    table: &'a Table,
    /// `None`: the table's only one, added to what is there.
    chosen: Option<&'a Tensor>,
    /// As they are for chosen experts, else before the sigmoid; `None` weighs one.
    weights: Option<&'a Tensor>,
    top_k: usize,
}

/// The leaves of the down projections: `[steps, tokens, hidden]`.
fn second_half(
    metal: &Metal,
    half: &Half<'_>,
    steps: &[StepParams],
    (tokens, hidden): (usize, usize),
    leaves: &Values,
) -> Result<()> {
    let single = half.chosen.is_none();
    let params = ExpertParams {
        tokens: tokens as u32,
        top_k: half.top_k as u32,
        single: single.into(),
        in_features: half.inner.cols() as u32,
        out_features: hidden as u32,
        weighing: if half.weights.is_none() { 2 } else { single.into() },
        adds: single.into(),
        steps: steps.len() as u32,
    };
    let params = joined(&[bytes_of(&half.table.params), bytes_of(&params), bytemuck::cast_slice(steps)]);
    let inner = metal.input(half.inner)?;
    let chosen = metal.input(half.chosen.unwrap_or(half.inner))?;
    let weights = metal.input(half.weights.unwrap_or(half.inner))?;
    let reads = [&*inner, &chosen, &weights, half.table.entries.region()];
    let work = ([hidden.div_ceil(ROWS), tokens, steps.len()], THREADS);
    metal.run(("experts_down", half.table.format), &reads, &[leaves.region()], &params, work);
    Ok(())
}
