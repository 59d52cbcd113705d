//! Grouped-query attention over paged tiles, folded left to right with an online softmax.
#![allow(clippy::needless_range_loop, reason = "register tiles are clearest, and unrolled, by index")]

use super::Cpu;
use super::linear::Shared;
use super::math::{exp, scale_by};
use super::simd::{LANES, Simd, dispatch};
use crate::backend::state::{KvStore, TILE};
use crate::backend::{AttentionShape, Batch, Segment, Tensor};

/// Query rows (a token and a head) that share the loads of one tile.
const QUERIES: usize = 4;
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
    let mut out = Tensor::zeros(q.rows(), q.cols());
    let width = q.cols();
    let to = Shared::new(out.data_mut());
    // a task: one kv head, and query rows whose states fit the first-level cache
    let rows_per_task = (64 / heads.group.max(1)).max(1);
    let mut tasks = Vec::new();
    for segment in batch.segments() {
        for first in segment.rows.clone().step_by(rows_per_task) {
            let rows = first..(first + rows_per_task).min(segment.rows.end);
            tasks.extend((0..heads.shared).map(|head| (segment, rows.clone(), head)));
        }
    }
    cpu.pool.run(tasks.len(), |task| {
        let (segment, rows, kv_head) = &tasks[task];
        let queries: Vec<Query<'_>> = rows
            .clone()
            .flat_map(|row| heads.sharing(*kv_head).map(move |head| (row, head)))
            .map(|(row, head)| {
                let at = row * width + head * dim;
                // SAFETY: every (row, head) belongs to one task
                let out = unsafe { to.part(at..at + dim) };
                Query { q: &q.data()[at..at + dim], positions: segment.position(row) + 1, max: 0.0, sum: 0.0, out }
            })
            .collect();
        fold_tiles(cpu, kv, segment, *kv_head, shape.scale, queries);
    });
    out
}

struct Query<'a> {
    q: &'a [f32],
    /// Positions that the query sees.
    positions: usize,
    max: f32,
    sum: f32,
    out: &'a mut [f32],
}

fn fold_tiles(cpu: &Cpu, kv: &KvStore, segment: &Segment, kv_head: usize, scale: f32, mut queries: Vec<Query<'_>>) {
    let dim = kv.head_dim;
    let last = queries.iter().map(|query| query.positions).max().unwrap_or(0);
    for start in (0..last).step_by(TILE) {
        let at = kv.tile_at(&segment.pages, kv_head, start);
        let tile = &kv.data[at..][..2 * TILE * dim];
        // positions grow with the rows, so the queries that see this tile are a suffix
        let first = queries.iter().position(|query| query.positions > start).unwrap_or(queries.len());
        for block in queries[first..].chunks_mut(QUERIES) {
            // SAFETY: the instruction set is available; `tile` holds TILE keys and values of `dim`, as all queries do
            unsafe { dispatch!(cpu.isa, fold_block(block: &mut [Query<'_>], tile: &[f32], start: usize, scale: f32)) };
        }
    }
    for query in &mut queries {
        let sum = query.sum;
        query.out.iter_mut().for_each(|value| *value /= sum);
    }
}

#[inline(always)]
unsafe fn fold_block<S: Simd>(block: &mut [Query<'_>], tile: &[f32], start: usize, scale: f32) {
    // SAFETY: the caller's promise
    unsafe {
        if block.len() == QUERIES {
            fold::<S, QUERIES>(block, tile, start, scale);
        } else {
            for query in block.chunks_mut(1) {
                fold::<S, 1>(query, tile, start, scale);
            }
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
            let first = start == 0;
            let mut max = if first { weights[0] } else { query.max };
            for score in &weights[..count] {
                max = if *score > max { *score } else { max };
            }
            weights[count..].fill(max);
            let top = S::splat(max);
            for half in [0, LANES] {
                let at = weights.as_mut_ptr().add(half);
                S::store(at, exp::<S>(S::sub(S::load(at), top)));
            }
            if !first {
                let mut shrink = [0.0; LANES];
                S::store(shrink.as_mut_ptr(), exp::<S>(S::sub(S::splat(query.max), top)));
                query.sum *= shrink[0];
                scale_by::<S>(query.out, shrink[0]);
            }
            for weight in &weights[..count] {
                query.sum += weight;
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
