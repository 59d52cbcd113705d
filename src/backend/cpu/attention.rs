//! Grouped-query attention over paged tiles, folded left to right with an online softmax.
#![allow(clippy::needless_range_loop, reason = "register tiles are clearest, and unrolled, by index")]

use std::ops::Range;

use super::Cpu;
use super::linear::Shared;
use super::math::{exp, load_some, scale_by, store_some, zip};
use super::simd::{LANES, Simd, dispatch};
use crate::backend::state::{KvStore, PAGE, TILE};
use crate::backend::{AttentionShape, Batch, Segment, Tensor};

/// Query rows (a token and a head) that share the loads of one tile.
const QUERIES: usize = 4;
/// Positions whose tiles are folded one after the other.
const SPAN: usize = 1024;
const _: () = assert!(SPAN.is_multiple_of(PAGE));
const _: () = assert!(TILE == 2 * LANES, "the kernel holds the scores of a tile in two registers");

/// Writes the rows of `k` and `v` (`[rows, kv_heads · head_dim]`) to their positions.
pub(super) fn store(store: &mut KvStore, k: &Tensor, v: &Tensor, batch: &Batch) {
    let (heads, dim) = (store.kv_heads, store.head_dim);
    for segment in batch.segments() {
        for row in segment.rows.clone() {
            let position = segment.position(row);
            for head in 0..heads {
                let tile = store.tile_at(&segment.pages, head, position);
                let (keys, values) = store.data[tile..][..2 * TILE * dim].split_at_mut(TILE * dim);
                let column = position % TILE;
                for (i, k) in k.row(row)[head * dim..][..dim].iter().enumerate() {
                    keys[i * TILE + column] = *k;
                }
                values[column * dim..][..dim].copy_from_slice(&v.row(row)[head * dim..][..dim]);
            }
        }
    }
}

/// softmax(q kᵀ · scale) v for every query row over the positions up to its own: `[rows, heads · head_dim]`.
///
/// Positions are folded tile by tile inside spans of [`SPAN`], and the spans' results from left to right: so a long
/// sequence of few heads keeps all threads busy, and nothing depends on how many there are.
pub(super) fn attention(cpu: &Cpu, q: &Tensor, kv: &KvStore, batch: &Batch, shape: &AttentionShape) -> Tensor {
    let dim = kv.head_dim;
    let heads = shape.heads;
    assert!(
        q.cols() == heads.heads * dim && kv.kv_heads == heads.shared,
        "queries of {} columns are not {} heads of {dim} over {} of the cache",
        q.cols(),
        heads.heads,
        kv.kv_heads
    );
    assert_eq!(q.rows(), batch.rows());
    // query rows whose states fit the first-level cache
    let rows_per_unit = (64 / heads.group.max(1)).max(1);
    let mut units = Vec::new();
    for segment in batch.segments() {
        for first in segment.rows.clone().step_by(rows_per_unit) {
            let rows = first..(first + rows_per_unit).min(segment.rows.end);
            units.extend((0..heads.shared).map(|kv_head| Unit { segment, rows: rows.clone(), kv_head }));
        }
    }
    let work = Work { cpu, q, kv, shape, spans: units.iter().map(Unit::spans).max().unwrap_or(0) };
    let mut out = Tensor::scratch(q.rows(), q.cols());
    if work.spans > 1 && units.len() < 4 * cpu.pool.threads() {
        work.split(&units, &mut out);
    } else {
        work.whole(&units, &mut out);
    }
    out
}

/// Query rows of one sequence that share a head of keys and values.
struct Unit<'a> {
    segment: &'a Segment,
    rows: Range<usize>,
    kv_head: usize,
}

impl Unit<'_> {
    fn spans(&self) -> usize {
        self.segment.position(self.rows.end).div_ceil(SPAN)
    }
}

/// What all units of a call share.
#[derive(Clone, Copy)]
struct Work<'a> {
    cpu: &'a Cpu,
    q: &'a Tensor,
    kv: &'a KvStore,
    shape: &'a AttentionShape,
    spans: usize,
}

impl Work<'_> {
    /// A task a unit.
    fn whole(self, units: &[Unit<'_>], out: &mut Tensor) {
        let (dim, width) = (self.kv.head_dim, out.cols());
        let to = Shared::new(out.data_mut());
        self.cpu.pool.run(units.len(), |task| {
            let unit = &units[task];
            // SAFETY: every (row, head) belongs to one task
            let mut queries = self.queries(unit, |row, head| unsafe {
                to.part(row * width + head * dim..row * width + (head + 1) * dim)
            });
            self.fold_span(unit, 0, &mut queries);
            if unit.spans() > 1 {
                let mut next = Tensor::scratch(queries.len(), dim);
                for span in 1..unit.spans() {
                    let mut outs = next.data_mut().chunks_exact_mut(dim);
                    let mut part = self.queries(unit, |_, _| outs.next().unwrap_or_default());
                    self.fold_span(unit, span, &mut part);
                    queries.iter_mut().zip(&part).for_each(|(query, part)| self.merge(query, part.found()));
                }
            }
            queries.iter_mut().for_each(Query::finish);
        });
    }

    /// A task a span of a unit, and then one a query.
    fn split(self, units: &[Unit<'_>], out: &mut Tensor) {
        let (dim, width, spans, heads) = (self.kv.head_dim, out.cols(), self.spans, self.shape.heads.heads);
        let place = |row: usize, head: usize, span: usize| (row * heads + head) * spans + span;
        let mut outs = Tensor::scratch(out.rows() * heads * spans, dim);
        // the maximum and the sum; no sum where the query sees nothing of the span
        let mut states = Tensor::scratch(out.rows() * heads * spans, 2);
        let (to, to_states) = (Shared::new(outs.data_mut()), Shared::new(states.data_mut()));
        self.cpu.pool.run(units.len() * spans, |task| {
            let (unit, span) = (&units[task / spans], task % spans);
            let mut at = Vec::new();
            let mut queries = self.queries(unit, |row, head| {
                let place = place(row, head, span);
                at.push(place);
                // SAFETY: every (row, head, span) belongs to one task
                unsafe { to.part(place * dim..(place + 1) * dim) }
            });
            self.fold_span(unit, span, &mut queries);
            for (query, place) in queries.iter().zip(at) {
                // SAFETY: as above
                unsafe { to_states.part(2 * place..2 * place + 2) }.copy_from_slice(&[query.max, query.sum]);
            }
        });
        let part = |place: usize| {
            let [max, sum] = [states.data()[2 * place], states.data()[2 * place + 1]];
            Part { max, sum, out: &outs.data()[place * dim..][..dim] }
        };
        let to = Shared::new(out.data_mut());
        self.cpu.pool.run(self.q.rows() * heads, |task| {
            let (row, head) = (task / heads, task % heads);
            // SAFETY: every (row, head) belongs to one task
            let out = unsafe { to.part(row * width + head * dim..row * width + (head + 1) * dim) };
            let first = part(place(row, head, 0));
            out.copy_from_slice(first.out);
            let mut query = Query { q: &[], positions: 0, max: first.max, sum: first.sum, out };
            (1..spans).for_each(|span| self.merge(&mut query, part(place(row, head, span))));
            query.finish();
        });
    }

    fn queries<'b>(&'b self, unit: &Unit<'_>, mut out: impl FnMut(usize, usize) -> &'b mut [f32]) -> Vec<Query<'b>> {
        let dim = self.kv.head_dim;
        let mut queries = Vec::new();
        for row in unit.rows.clone() {
            for head in self.shape.heads.sharing(unit.kv_head) {
                let q = &self.q.row(row)[head * dim..][..dim];
                queries.push(Query {
                    q,
                    positions: unit.segment.position(row) + 1,
                    max: 0.0,
                    sum: 0.0,
                    out: out(row, head),
                });
            }
        }
        queries
    }

    /// Folds the tiles of span `span` into queries that know nothing yet.
    fn fold_span(&self, unit: &Unit<'_>, span: usize, queries: &mut [Query<'_>]) {
        let (kv, dim, scale) = (self.kv, self.kv.head_dim, self.shape.scale);
        let last = queries.iter().map(|query| query.positions).max().unwrap_or(0);
        for start in (span * SPAN..last.min((span + 1) * SPAN)).step_by(TILE) {
            let at = kv.tile_at(&unit.segment.pages, unit.kv_head, start);
            let tile = &kv.data[at..][..2 * TILE * dim];
            // positions grow with the rows, so the queries that see this tile are a suffix
            let first = queries.iter().position(|query| query.positions > start).unwrap_or(queries.len());
            for block in queries[first..].chunks_mut(QUERIES) {
                // SAFETY: the instruction set is available; `tile` holds TILE keys and values of `dim`, as all queries do
                unsafe {
                    dispatch!(
                        self.cpu.isa,
                        fold_block(block: &mut [Query<'_>], tile: &[f32], start: usize, scale: f32)
                    );
                };
            }
        }
    }

    /// Adds what a later span has found, if it has found anything.
    fn merge(&self, query: &mut Query<'_>, part: Part<'_>) {
        if part.sum != 0.0 {
            // SAFETY: the instruction set is available; both outputs have `dim` values
            unsafe { dispatch!(self.cpu.isa, merge(query: &mut Query<'_>, part: Part<'_>)) };
        }
    }
}

/// What one span has found for a query: the largest score, the sum of the weights, and the weighted values.
struct Part<'a> {
    max: f32,
    sum: f32,
    out: &'a [f32],
}

struct Query<'a> {
    q: &'a [f32],
    /// Positions that the query sees.
    positions: usize,
    max: f32,
    sum: f32,
    out: &'a mut [f32],
}

impl Query<'_> {
    fn found(&self) -> Part<'_> {
        Part { max: self.max, sum: self.sum, out: self.out }
    }

    fn finish(&mut self) {
        let sum = self.sum;
        self.out.iter_mut().for_each(|value| *value /= sum);
    }
}

#[inline(always)]
unsafe fn merge<S: Simd>(query: &mut Query<'_>, part: Part<'_>) {
    let top = if part.max > query.max { part.max } else { query.max };
    // SAFETY: the caller's promise
    unsafe {
        let (old, new) = (shrinking::<S>(query.max, top), shrinking::<S>(part.max, top));
        query.sum = query.sum * old + part.sum * new;
        scale_by::<S>(query.out, old);
        let out = &mut *query.out;
        zip!(S, out, part.out, |out, part| S::fma(part, S::splat(new), out));
    }
    query.max = top;
}

/// exp(max − top).
#[inline(always)]
unsafe fn shrinking<S: Simd>(max: f32, top: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    // SAFETY: the caller's promise
    unsafe { S::store(lanes.as_mut_ptr(), exp::<S>(S::splat(max - top))) };
    lanes[0]
}

#[inline(always)]
unsafe fn fold_block<S: Simd>(block: &mut [Query<'_>], tile: &[f32], start: usize, scale: f32) {
    // SAFETY: the caller's promise
    unsafe {
        match block.len() {
            4 => fold::<S, 4>(block, tile, start, scale),
            3 => fold::<S, 3>(block, tile, start, scale),
            2 => fold::<S, 2>(block, tile, start, scale),
            _ => fold::<S, 1>(block, tile, start, scale),
        }
    }
}

/// Folds one tile into `N` queries.
///
/// A score adds its products dimension by dimension, the output its values position by position: no order depends on
/// the register width or on which queries share the tile.
#[inline(always)]
unsafe fn fold<S: Simd, const N: usize>(queries: &mut [Query<'_>], tile: &[f32], start: usize, scale: f32) {
    let dim = queries[0].q.len();
    let (keys, values) = tile.split_at(TILE * dim);
    // SAFETY: the caller's promise: keys are [dim, TILE], values [TILE, dim], queries and outputs have `dim` values
    unsafe {
        let mut scores = [[S::splat(0.0); 2]; N];
        for d in 0..dim {
            let k = [S::load(keys.as_ptr().add(d * TILE)), S::load(keys.as_ptr().add(d * TILE + LANES))];
            for n in 0..N {
                let q = S::splat(*queries[n].q.get_unchecked(d));
                scores[n][0] = S::fma(q, k[0], scores[n][0]);
                scores[n][1] = S::fma(q, k[1], scores[n][1]);
            }
        }
        let mut weights = [[0.0f32; TILE]; N];
        let mut counts = [0; N];
        let scale = S::splat(scale);
        for n in 0..N {
            let query = &mut queries[n];
            let weights = &mut weights[n];
            S::store(weights.as_mut_ptr(), S::mul(scores[n][0], scale));
            S::store(weights.as_mut_ptr().add(LANES), S::mul(scores[n][1], scale));
            let count = (query.positions - start).min(TILE);
            let first = start.is_multiple_of(SPAN);
            weights[count..].fill(f32::NEG_INFINITY);
            let halves = [S::load(weights.as_ptr()), S::load(weights.as_ptr().add(LANES))];
            let mut lanes = [0.0f32; LANES];
            S::store(lanes.as_mut_ptr(), S::max(halves[0], halves[1]));
            let highest = lanes.iter().fold(f32::NEG_INFINITY, |max, score| if *score > max { *score } else { max });
            let max = if first || highest > query.max { highest } else { query.max };
            let top = S::splat(max);
            for half in [0, LANES] {
                S::store(weights.as_mut_ptr().add(half), exp::<S>(S::sub(halves[half / LANES], top)));
            }
            weights[count..].fill(0.0);
            let sum = S::sum(S::add(S::load(weights.as_ptr()), S::load(weights.as_ptr().add(LANES))));
            if first {
                query.sum = sum;
                query.out.fill(0.0);
            } else {
                let shrink = shrinking::<S>(query.max, max);
                query.sum = query.sum * shrink + sum;
                scale_by::<S>(query.out, shrink);
            }
            query.max = max;
            counts[n] = count;
        }
        add_values::<S, N>(queries, &weights, counts, values, dim);
    }
}

#[inline(always)]
unsafe fn add_values<S: Simd, const N: usize>(
    queries: &mut [Query<'_>],
    weights: &[[f32; TILE]; N],
    counts: [usize; N],
    values: &[f32],
    dim: usize,
) {
    let shared = counts.iter().copied().min().unwrap_or(0);
    let whole = dim / LANES * LANES;
    // SAFETY: as in `fold`
    unsafe {
        for d in (0..whole).step_by(LANES) {
            let mut acc = [S::splat(0.0); N];
            for n in 0..N {
                acc[n] = S::load(queries[n].out.as_ptr().add(d));
            }
            for j in 0..shared {
                let v = S::load(values.as_ptr().add(j * dim + d));
                for n in 0..N {
                    acc[n] = S::fma(S::splat(weights[n][j]), v, acc[n]);
                }
            }
            for n in 0..N {
                for j in shared..counts[n] {
                    acc[n] = S::fma(S::splat(weights[n][j]), S::load(values.as_ptr().add(j * dim + d)), acc[n]);
                }
                S::store(queries[n].out.as_mut_ptr().add(d), acc[n]);
            }
        }
        for n in 0..N {
            for d in whole..dim {
                for j in 0..counts[n] {
                    let out = &mut queries[n].out[d];
                    *out = weights[n][j].mul_add(values[j * dim + d], *out);
                }
            }
        }
    }
}
