//! Mixture of experts: the chosen experts' SwiGLU summed leaf by leaf in the order of their ranking.

use std::cell::RefCell;
use std::ops::Range;

use super::Cpu;
use super::arithmetic::Xs;
use super::dot::leaf_products;
use super::linear::{Shared, fold_tree, tree_values};
use super::math::{load_some, store_some, zip};
use super::routing::sigmoids;
use super::rowwise::silu_mul;
use super::simd::{LANES, Simd, dispatch};
use crate::backend::{ExpertWeights, Experts, Routes, Tensor};
use crate::error::{Error, Result};
use crate::partition::{Fold, Leaves};
use crate::weights::Matrix;

/// Rows of a weight in one task.
const ROWS: usize = 16;

thread_local! {
    static BUFFERS: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// A (token, rank) pair of the routing, grouped by expert.
struct Grouped {
    /// Expert, and its run of the grouped pairs.
    runs: Vec<(usize, Range<usize>)>,
    /// The token of every grouped pair.
    tokens: Vec<usize>,
    /// Where the pair `token · top_k + rank` stands in the grouped order.
    place: Vec<usize>,
}

impl Grouped {
    fn new(routes: &Routes) -> Self {
        let mut pairs: Vec<usize> = (0..routes.experts.len()).collect();
        pairs.sort_by_key(|pair| (routes.experts[*pair], *pair));
        let mut grouped = Self { runs: Vec::new(), tokens: Vec::new(), place: vec![0; pairs.len()] };
        for (at, pair) in pairs.iter().enumerate() {
            grouped.place[*pair] = at;
            grouped.tokens.push(pair / routes.top_k);
            let expert = routes.experts[*pair] as usize;
            match grouped.runs.last_mut() {
                Some((last, run)) if *last == expert => run.end = at + 1,
                _ => grouped.runs.push((expert, at..at + 1)),
            }
        }
        grouped
    }
}

/// The sum of the chosen experts' (and the shared expert's) outputs: one `[tokens, hidden]` block per subtree.
pub(super) fn experts(cpu: &Cpu, x: &Tensor, routes: &Routes, experts: &Experts<'_>) -> Result<Tensor> {
    let grouped = Grouped::new(routes);
    if routes.experts.len() != x.rows() * routes.top_k || routes.weights.len() != routes.experts.len() {
        return Err(Error::msg(format!("{} routes for {} tokens", routes.experts.len(), x.rows())));
    }
    for (expert, _) in &grouped.runs {
        let ExpertWeights { gate, up, down } = experts.routed;
        match (gate.get(*expert), up.get(*expert), down.get(*expert)) {
            (Some(gate), Some(up), Some(down)) => check_expert(x, [gate, up, down], experts.fold)?,
            _ => return Err(Error::msg(format!("there is no expert {expert}"))),
        }
    }
    if let Some(shared) = &experts.shared {
        check_expert(x, [shared.gate, shared.up, shared.down], shared.fold)?;
        if shared.fold.roots != experts.fold.roots {
            return Err(Error::msg("the shared expert is cut into other leaves than the routed ones"));
        }
    }
    let tokens: Vec<&[f32]> = x.rows_iter().collect();
    let pairs: Vec<&[f32]> = grouped.tokens.iter().map(|t| tokens[*t]).collect();
    let mut inner = Tensor::zeros(pairs.len(), experts.fold.width());
    let jobs: Vec<Inner<'_>> = grouped
        .runs
        .iter()
        .map(|(e, run)| Inner {
            gate: &experts.routed.gate[*e],
            up: &experts.routed.up[*e],
            xs: &pairs[run.clone()],
            run,
        })
        .collect();
    hidden(cpu, &jobs, &mut inner);
    let shared = experts.shared.as_ref().map(|shared| {
        let mut inner = Tensor::zeros(x.rows(), shared.fold.width());
        let run = 0..x.rows();
        let job = Inner { gate: shared.gate, up: shared.up, xs: &tokens, run: &run };
        hidden(cpu, &[job], &mut inner);
        inner
    });
    Ok(outer(cpu, x, routes, experts, &grouped, &inner, shared.as_ref()))
}

/// Checks that the matrices of an expert fit the activations, and each other along the columns of `fold`.
fn check_expert(x: &Tensor, [gate, up, down]: [&Matrix; 3], fold: &Fold) -> Result<()> {
    let shape = |matrix: &Matrix| (matrix.out_features(), matrix.in_features());
    let (inner, hidden) = (fold.width(), x.cols());
    if shape(gate) == (inner, hidden) && shape(up) == (inner, hidden) && shape(down) == (hidden, inner) {
        return Ok(());
    }
    Err(Error::msg(format!(
        "an expert of gate {:?}, up {:?} and down {:?} does not fit {hidden} features and leaves of {inner}",
        shape(gate),
        shape(up),
        shape(down)
    )))
}

/// One expert's first half: the activations of its tokens go to the rows `run`.
struct Inner<'a> {
    gate: &'a Matrix,
    up: &'a Matrix,
    xs: &'a [&'a [f32]],
    run: &'a Range<usize>,
}

/// silu(gate · x) · (up · x) of every job.
fn hidden(cpu: &Cpu, jobs: &[Inner<'_>], to: &mut Tensor) {
    let width = to.cols();
    if width == 0 {
        return;
    }
    let tasks_each = width.div_ceil(ROWS);
    let shared = Shared::new(to.data_mut());
    cpu.pool.run(jobs.len() * tasks_each, |task| {
        let (job, block) = (&jobs[task / tasks_each], task % tasks_each);
        let rows = block * ROWS..((block + 1) * ROWS).min(width);
        let leaves = Leaves::unsharded(job.up.in_features());
        let size = rows.len() * job.xs.len();
        BUFFERS.with_borrow_mut(|(gate, up)| {
            for (matrix, buffer) in [(job.gate, &mut *gate), (job.up, &mut *up)] {
                buffer.resize(tree_values(leaves.count(), size), 0.0);
                fold_tree(&(0..leaves.count()), buffer, size, &mut |leaf, out| {
                    leaf_products(cpu.isa, matrix, rows.clone(), Xs::F32(job.xs), leaves.columns(leaf), out);
                });
            }
            let (gate, up) = (&mut gate[..size], &up[..size]);
            // SAFETY: the instruction set is available, both slices have one length
            unsafe { dispatch!(cpu.isa, silu_mul(gate: &mut [f32], up: &[f32])) };
            for (t, values) in gate.chunks_exact(rows.len()).enumerate() {
                let row = (job.run.start + t) * width;
                // SAFETY: every (pair, block of columns) belongs to one task
                unsafe { shared.part(row + rows.start..row + rows.end) }.copy_from_slice(values);
            }
        });
    });
}

/// The down projections: inside a leaf experts are added in the order of their ranking, the shared one last.
fn outer(
    cpu: &Cpu,
    x: &Tensor,
    routes: &Routes,
    experts: &Experts<'_>,
    grouped: &Grouped,
    inner: &Tensor,
    shared_inner: Option<&Tensor>,
) -> Tensor {
    let (tokens, hidden, top_k) = (x.rows(), x.cols(), routes.top_k);
    let fold = experts.fold;
    let mut y = Tensor::zeros(fold.roots.len() * tokens, hidden);
    let pairs: Vec<&[f32]> = inner.rows_iter().collect();
    let shared_rows: Vec<&[f32]> = shared_inner.iter().flat_map(|inner| inner.rows_iter()).collect();
    let logits = experts.shared.as_ref().and_then(|shared| shared.weights.as_ref());
    let shared_weights = logits.map(|logits| sigmoids(cpu, logits.data()));
    let to = Shared::new(y.data_mut());
    cpu.pool.run(hidden.div_ceil(ROWS), |task| {
        let rows = task * ROWS..((task + 1) * ROWS).min(hidden);
        let (height, size) = (rows.len(), rows.len() * tokens);
        BUFFERS.with_borrow_mut(|(products, sums)| {
            products.resize(pairs.len().max(tokens) * height, 0.0);
            sums.resize(tree_values(fold.leaves.count(), size), 0.0);
            for (root, node) in fold.roots.iter().enumerate() {
                fold_tree(node, sums, size, &mut |leaf, out| {
                    for (expert, run) in &grouped.runs {
                        let down = &experts.routed.down[*expert];
                        let products = &mut products[run.start * height..run.end * height];
                        let cols = fold.local_columns(leaf);
                        leaf_products(cpu.isa, down, rows.clone(), Xs::F32(&pairs[run.clone()]), cols, products);
                    }
                    for (t, out) in out.chunks_exact_mut(height).enumerate() {
                        out.fill(0.0);
                        for pair in t * top_k..(t + 1) * top_k {
                            let product = &products[grouped.place[pair] * height..][..height];
                            let (to, weight) = (&mut *out, routes.weights[pair]);
                            // SAFETY: the instruction set is available, both slices have one length
                            unsafe { dispatch!(cpu.isa, add_weighted(to: &mut [f32], product: &[f32], weight: f32)) };
                        }
                    }
                    if let Some(shared) = &experts.shared {
                        let products = &mut products[..size];
                        let cols = shared.fold.local_columns(leaf);
                        leaf_products(cpu.isa, shared.down, rows.clone(), Xs::F32(&shared_rows), cols, products);
                        for (t, out) in out.chunks_exact_mut(height).enumerate() {
                            let weight = shared_weights.as_ref().map_or(1.0, |weights| weights[t]);
                            let product = &products[t * height..][..height];
                            // SAFETY: as above
                            unsafe { dispatch!(cpu.isa, add_weighted(out: &mut [f32], product: &[f32], weight: f32)) };
                        }
                    }
                });
                for (t, sums) in sums[..size].chunks_exact(height).enumerate() {
                    let row = (root * tokens + t) * hidden;
                    // SAFETY: every task owns its columns of `y`
                    unsafe { to.part(row + rows.start..row + rows.end) }.copy_from_slice(sums);
                }
            }
        });
    });
    y
}

#[inline(always)]
unsafe fn add_weighted<S: Simd>(to: &mut [f32], from: &[f32], weight: f32) {
    // SAFETY: the caller's promise: one length
    unsafe { zip!(S, to, from, |to, from| S::fma(S::splat(weight), from, to)) }
}
