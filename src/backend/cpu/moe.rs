//! Mixture of experts: the chosen experts' SwiGLU summed leaf by leaf in the order of their ranking.

use std::cell::RefCell;
use std::ops::Range;

use super::Cpu;
use super::dot::{BLOCK_TOKENS, WIDEN_FROM, block_products};
use super::linear::{Shared, fold_tree, tree_values};
use super::math::{load_some, store_some, zip};
use super::operands::{Operands, Rounded};
use super::routing::sigmoids;
use super::rowwise::silu_mul;
use super::simd::{LANES, Simd, dispatch};
use super::stream::{Block, DEPTH};
use crate::backend::{Experts, Routes, Tensor, check};
use crate::error::Result;
use crate::partition::{Fold, Leaves, Step};
use crate::weights::Matrix;

/// Rows of a weight in one task: many where they are streamed for a few tokens, few where many tokens share them.
const ROWS: usize = 16;
const SHARED_ROWS: usize = 32;
const STREAM_ROWS: usize = 128;
/// Products of down projections that are made before they are summed: they stay in the second-level cache.
const AT_ONCE: usize = 1 << 15;

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
        let experts = routes.experts();
        let mut pairs: Vec<usize> = (0..experts.len()).collect();
        pairs.sort_by_key(|pair| (experts[*pair], *pair));
        let mut grouped = Self { runs: Vec::new(), tokens: Vec::new(), place: vec![0; pairs.len()] };
        for (at, pair) in pairs.iter().enumerate() {
            grouped.place[*pair] = at;
            grouped.tokens.push(pair / routes.top_k());
            let expert = experts[*pair] as usize;
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
    check::routes(x, routes)?;
    check::experts(x, grouped.runs.iter().map(|(expert, _)| *expert), experts)?;
    let shared = experts.shared.as_ref();
    let chosen = || grouped.runs.iter().map(|(expert, _)| *expert);
    let first = chosen().flat_map(|e| [&experts.routed.gate[e], &experts.routed.up[e]]);
    let rounded = Rounded::of(cpu, x, first.chain(shared.into_iter().flat_map(|shared| [shared.gate, shared.up])));
    let tokens = Operands::of(cpu, x, &rounded);
    let pairs = tokens.chosen(&grouped.tokens);
    let mut inner = Tensor::scratch(pairs.len(), experts.fold.width());
    let mut shared_inner = shared.map(|shared| Tensor::scratch(x.rows(), shared.fold.width()));
    let to = Shared::new(inner.data_mut());
    let mut jobs: Vec<Inner<'_>> = Vec::with_capacity(grouped.runs.len() + 1);
    if let (Some(shared), Some(inner)) = (shared, &mut shared_inner) {
        let to = Shared::new(inner.data_mut());
        jobs.push(Inner { gate: shared.gate, up: shared.up, xs: &tokens, rows: 0..x.rows(), to });
    }
    jobs.extend(grouped.runs.iter().map(|(e, run)| Inner {
        gate: &experts.routed.gate[*e],
        up: &experts.routed.up[*e],
        xs: &pairs,
        rows: run.clone(),
        to,
    }));
    hidden(cpu, &jobs);
    drop(jobs);
    let shared_inner = shared_inner.unwrap_or_else(|| Tensor::zeros(0, 0));
    let rounded = Rounded::of(cpu, &inner, chosen().map(|e| &experts.routed.down[e]));
    let shared_rounded = Rounded::of(cpu, &shared_inner, shared.into_iter().map(|shared| shared.down));
    let inner = [Operands::of(cpu, &inner, &rounded), Operands::of(cpu, &shared_inner, &shared_rounded)];
    Ok(outer(cpu, x, routes, experts, &grouped, &inner))
}

/// One expert's first half: what becomes of the rows `rows` of `xs` goes to the same rows.
struct Inner<'a> {
    gate: &'a Matrix,
    up: &'a Matrix,
    xs: &'a Operands<'a>,
    rows: Range<usize>,
    to: Shared,
}

/// Rows of one task among `rows` of all weights, of which a task has at most `most` tokens.
fn rows_each(cpu: &Cpu, rows: usize, most: usize) -> usize {
    let largest = match most {
        ..WIDEN_FROM => STREAM_ROWS,
        WIDEN_FROM..BLOCK_TOKENS => SHARED_ROWS,
        _ => ROWS,
    };
    (rows / (cpu.pool.threads() * 8)).next_multiple_of(ROWS).clamp(ROWS, largest)
}

/// silu(gate · x) · (up · x) of every job.
fn hidden(cpu: &Cpu, jobs: &[Inner<'_>]) {
    let width = |job: &Inner<'_>| job.up.out_features();
    let most = jobs.iter().map(|job| job.rows.len()).max().unwrap_or(0);
    let each = rows_each(cpu, jobs.iter().map(width).sum(), most);
    let blocks = |job: usize| (0..width(&jobs[job])).step_by(each).map(move |start| (job, start));
    let tasks: Vec<(usize, usize)> = (0..jobs.len()).flat_map(blocks).collect();
    let fold = Fold::whole(Leaves::unsharded(jobs.first().map_or(0, |job| job.up.in_features())));
    cpu.pool.run(tasks.len(), |task| {
        let (job, start) = (&jobs[tasks[task].0], tasks[task].1);
        let width = width(job);
        let rows = start..(start + each).min(width);
        let next = tasks.get(task + cpu.pool.threads()).map(|(job, start)| (jobs[*job].gate, *start));
        BUFFERS.with_borrow_mut(|(gate, up)| {
            for (matrix, next, buffer) in [(job.gate, Some((job.up, start)), &mut *gate), (job.up, next, &mut *up)] {
                buffer.resize(rows.len() * job.rows.len(), 0.0);
                let block = Block { matrix, rows: rows.clone(), next };
                block_products(cpu.isa, &block, job.xs.xs(job.rows.clone(), matrix), fold.steps(0), buffer, 0);
            }
            let (gate, up) = (&mut gate[..], &up[..]);
            // SAFETY: the instruction set is available, both slices have one length
            unsafe { dispatch!(cpu.isa, silu_mul(gate: &mut [f32], up: &[f32])) };
            for (t, values) in gate.chunks_exact(rows.len()).enumerate() {
                let row = (job.rows.start + t) * width;
                // SAFETY: every (pair, block of columns) belongs to one task
                unsafe { job.to.part(row + rows.start..row + rows.end) }.copy_from_slice(values);
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
    [pairs, shared_rows]: &[Operands<'_>; 2],
) -> Tensor {
    let (tokens, hidden, top_k) = (x.rows(), x.cols(), routes.top_k());
    let fold = experts.fold;
    let mut y = Tensor::zeros(fold.roots.len() * tokens, hidden);
    let logits = experts.shared.as_ref().and_then(|shared| shared.weights.as_ref());
    let shared_weights = logits.map(|logits| sigmoids(cpu, logits.data()));
    let to = Shared::new(y.data_mut());
    let most = grouped.runs.iter().map(|(_, run)| run.len()).chain([shared_rows.len()]).max().unwrap_or(0);
    let each = rows_each(cpu, hidden, most);
    cpu.pool.run(hidden.div_ceil(each), |task| {
        let rows = task * each..((task + 1) * each).min(hidden);
        let (height, size) = (rows.len(), rows.len() * tokens);
        // the products of a leaf: those of all pairs, then those of the shared expert
        let leaf_values = (pairs.len() + shared_rows.len()) * height;
        let at_once = (AT_ONCE / leaf_values.max(1)).clamp(1, DEPTH);
        BUFFERS.with_borrow_mut(|(products, sums)| {
            products.resize(at_once * leaf_values, 0.0);
            sums.resize(tree_values(fold.leaves.count(), size), 0.0);
            for (root, node) in fold.roots.iter().enumerate() {
                let mut made = node.start..node.start;
                // as many each time
                let at_once = node.len().div_ceil(node.len().div_ceil(at_once));
                fold_tree(node, sums, size, &mut |leaf, out| {
                    if !made.contains(&leaf) {
                        // an expert's rows are read through before the next one's
                        made = leaf..(leaf + at_once).min(node.end);
                        let steps = leaf_steps(fold, &made);
                        for (i, (expert, run)) in grouped.runs.iter().enumerate() {
                            let matrix = &experts.routed.down[*expert];
                            let next = grouped.runs.get(i + 1).map(|(next, _)| &experts.routed.down[*next]);
                            let next = next.or(experts.shared.as_ref().map(|shared| shared.down));
                            let block = Block { matrix, rows: rows.clone(), next: next.map(|next| (next, rows.start)) };
                            let xs = pairs.xs(run.clone(), matrix);
                            let to = &mut products[run.start * height..];
                            block_products(cpu.isa, &block, xs, &steps[..made.len()], to, leaf_values);
                        }
                        if let Some(shared) = &experts.shared {
                            let block = Block { matrix: shared.down, rows: rows.clone(), next: None };
                            let xs = shared_rows.xs(0..tokens, shared.down);
                            let to = &mut products[pairs.len() * height..];
                            let steps = leaf_steps(shared.fold, &made);
                            block_products(cpu.isa, &block, xs, &steps[..made.len()], to, leaf_values);
                        }
                    }
                    let products = &products[(leaf - made.start) * leaf_values..][..leaf_values];
                    for (t, out) in out.chunks_exact_mut(height).enumerate() {
                        out.fill(0.0);
                        let chosen =
                            (t * top_k..(t + 1) * top_k).map(|pair| (grouped.place[pair], routes.weights.data()[pair]));
                        let weight = shared_weights.as_ref().map_or(1.0, |weights| weights[t]);
                        let shared = experts.shared.is_some().then_some((pairs.len() + t, weight));
                        for (place, weight) in chosen.chain(shared) {
                            let (to, product) = (&mut *out, &products[place * height..][..height]);
                            // SAFETY: the instruction set is available, both slices have one length
                            unsafe { dispatch!(cpu.isa, add_weighted(to: &mut [f32], product: &[f32], weight: f32)) };
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

/// The leaves `leaves`, of which none is merged with another.
fn leaf_steps(fold: &Fold, leaves: &Range<usize>) -> [Step; DEPTH] {
    std::array::from_fn(|i| {
        let leaf = leaves.start + i;
        let columns = if leaf < leaves.end { fold.local_columns(leaf) } else { 0..0 };
        Step { columns, merges: 0 }
    })
}

#[inline(always)]
unsafe fn add_weighted<S: Simd>(to: &mut [f32], from: &[f32], weight: f32) {
    // SAFETY: the caller's promise: one length
    unsafe { zip!(S, to, from, |to, from| S::fma(S::splat(weight), from, to)) }
}
