//! One tile of the cache folded into a few queries.
#![allow(clippy::needless_range_loop, reason = "register tiles are clearest, and unrolled, by index")]

use super::cached::Cached;
use crate::backend::cpu::dot::LINE;
use crate::backend::cpu::math::{exp, load_some, scale_by, store_some, zip};
use crate::backend::cpu::simd::{LANES, Simd};
use crate::backend::state::TILE;

const _: () = assert!(TILE == 2 * LANES, "the kernel holds the scores of a tile in two registers");

/// What one span has found for a query: the largest score, the sum of the weights, and the weighted values.
pub(super) struct Part<'a> {
    pub(super) max: f32,
    pub(super) sum: f32,
    pub(super) out: &'a [f32],
}

/// One row and head of the queries, and what it has found so far.
pub(super) struct Query<'a> {
    pub(super) q: &'a [f32],
    /// Positions that the query sees.
    pub(super) positions: usize,
    pub(super) max: f32,
    pub(super) sum: f32,
    pub(super) out: &'a mut [f32],
}

impl Query<'_> {
    pub(super) fn found(&self) -> Part<'_> {
        Part { max: self.max, sum: self.sum, out: self.out }
    }

    pub(super) fn finish(&mut self) {
        let sum = self.sum;
        self.out.iter_mut().for_each(|value| *value /= sum);
    }
}

/// Keys and values of [`TILE`] positions.
#[derive(Clone, Copy)]
pub(super) enum Tile<'a, C> {
    /// Keys `[head_dim, TILE]`, values `[TILE, head_dim]`.
    Heads { keys: &'a [C], values: &'a [C] },
    /// Latent vectors `[TILE, width]`, keys as a whole and values in their first part.
    Latent(&'a [C]),
}

impl<C> Tile<'_, C> {
    /// Where its keys are.
    pub(super) fn start(self) -> *const u8 {
        let (Self::Heads { keys: values, .. } | Self::Latent(values)) = self;
        values.as_ptr().cast()
    }
}

#[inline(always)]
pub(super) unsafe fn merge<S: Simd>(query: &mut Query<'_>, part: Part<'_>) {
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
pub(super) unsafe fn fold_block<S: Simd, C: Cached>(
    block: &mut [Query<'_>],
    tile: Tile<'_, C>,
    next: *const u8,
    start: usize,
    scale: f32,
    first: bool,
) {
    // SAFETY: the caller's promise
    unsafe {
        match block.len() {
            4 => fold::<S, C, 4>(block, tile, next, start, scale, first),
            3 => fold::<S, C, 3>(block, tile, next, start, scale, first),
            2 => fold::<S, C, 2>(block, tile, next, start, scale, first),
            _ => fold::<S, C, 1>(block, tile, next, start, scale, first),
        }
    }
}

/// Folds one tile into `N` queries, and asks for its values and for what is at `next`, unless that is null; `first` if it is the
/// first one that they see in this span.
///
/// No order of additions depends on the register width or on which queries share the tile.
#[inline(always)]
unsafe fn fold<S: Simd, C: Cached, const N: usize>(
    queries: &mut [Query<'_>],
    tile: Tile<'_, C>,
    next: *const u8,
    start: usize,
    scale: f32,
    first: bool,
) {
    // SAFETY: the caller's promise
    unsafe {
        let (scores, values, stride) = match tile {
            Tile::Heads { keys, values } => {
                (turned_scores::<S, C, N>(queries, keys, !next.is_null()), values, queries[0].q.len())
            }
            Tile::Latent(vectors) => (row_scores::<S, C, N>(queries, vectors), vectors, queries[0].q.len()),
        };
        let mut weights = [[0.0f32; TILE]; N];
        let mut counts = [0; N];
        let scale = S::splat(scale);
        for n in 0..N {
            let query = &mut queries[n];
            let weights = &mut weights[n];
            for half in [0, LANES] {
                S::store(weights.as_mut_ptr().add(half), S::mul(S::load(scores[n].as_ptr().add(half)), scale));
            }
            let count = (query.positions - start).min(TILE);
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
        add_values::<S, C, N>(queries, &weights, counts, (values, next), stride);
    }
}

/// Scores from turned keys: a score adds its products dimension by dimension.
#[inline(always)]
unsafe fn turned_scores<S: Simd, C: Cached, const N: usize>(
    queries: &[Query<'_>],
    keys: &[C],
    ahead: bool,
) -> [[f32; TILE]; N] {
    let mut scores = [[0.0; TILE]; N];
    // SAFETY: the caller's promise: keys are [dim, TILE], queries have `dim` values
    unsafe {
        let mut acc = [[S::splat(0.0); 2]; N];
        for d in 0..queries[0].q.len() {
            let k = C::turned::<S>(keys.as_ptr(), d);
            if ahead {
                // values lie behind keys
                let values = keys.as_ptr().wrapping_add(keys.len() + d * TILE).cast::<u8>();
                for line in 0..TILE * size_of::<C>() / LINE {
                    S::prefetch_once(values.wrapping_add(line * LINE));
                }
            }
            for n in 0..N {
                let q = S::splat(*queries[n].q.get_unchecked(d));
                acc[n][0] = S::fma(q, k[0], acc[n][0]);
                acc[n][1] = S::fma(q, k[1], acc[n][1]);
            }
        }
        for n in 0..N {
            S::store(scores[n].as_mut_ptr(), acc[n][0]);
            S::store(scores[n].as_mut_ptr().add(LANES), acc[n][1]);
        }
    }
    scores
}

/// Keys whose products with a few queries are summed at once.
const KEYS: usize = 4;

/// Adds the products of `count` values from `d` on of `N` queries and [`KEYS`] keys.
#[inline(always)]
unsafe fn add_lanes<S: Simd, C: Cached, const N: usize>(
    queries: &[Query<'_>],
    (keys, first): (*const C, usize),
    (d, count): (usize, usize),
    acc: &mut [[S::V; KEYS]; KEYS],
) {
    let dim = queries[0].q.len();
    // SAFETY: the caller's promise: keys and queries have `dim` values, of which `count` follow `d`
    unsafe {
        let mut k = [S::splat(0.0); KEYS];
        for i in (0..KEYS).step_by(2) {
            let pair = (first + i) / 2;
            [k[i], k[i + 1]] = if count == LANES {
                C::rows::<S>(keys, dim, pair, d)
            } else {
                C::rows_some::<S>(keys, dim, pair, d, count)
            };
        }
        for n in 0..N {
            let q = queries[n].q.as_ptr().add(d);
            let q = if count == LANES { S::load(q) } else { load_some::<S>(q, count) };
            for i in 0..KEYS {
                acc[n][i] = S::fma(q, k[i], acc[n][i]);
            }
        }
    }
}

/// Scores from rows of keys: sixteen lanes, then [`Simd::sum`].
#[inline(always)]
unsafe fn row_scores<S: Simd, C: Cached, const N: usize>(queries: &[Query<'_>], keys: &[C]) -> [[f32; TILE]; N] {
    let dim = queries[0].q.len();
    let whole = dim / LANES * LANES;
    let mut scores = [[0.0; TILE]; N];
    for j in (0..TILE).step_by(KEYS) {
        // SAFETY: the caller's promise: keys are [TILE, dim], queries have `dim` values
        unsafe {
            let mut acc = [[S::splat(0.0); KEYS]; KEYS];
            for d in (0..whole).step_by(LANES) {
                add_lanes::<S, C, N>(queries, (keys.as_ptr(), j), (d, LANES), &mut acc);
            }
            if whole < dim {
                add_lanes::<S, C, N>(queries, (keys.as_ptr(), j), (whole, dim - whole), &mut acc);
            }
            let sums = S::sum16(acc);
            for n in 0..N {
                scores[n][j..j + KEYS].copy_from_slice(&sums[n][..KEYS]);
            }
        }
    }
    scores
}

#[inline(always)]
unsafe fn add_values<S: Simd, C: Cached, const N: usize>(
    queries: &mut [Query<'_>],
    weights: &[[f32; TILE]; N],
    counts: [usize; N],
    (values, next): (&[C], *const u8),
    stride: usize,
) {
    let dim = queries[0].out.len();
    // whole pairs of rows that all queries see
    let pairs = counts.iter().copied().min().unwrap_or(0) / 2;
    let lines = 2 * LANES * size_of::<C>() / LINE;
    let values = values.as_ptr();
    let whole = dim / LANES * LANES;
    // SAFETY: as in `fold`
    unsafe {
        for d in (0..whole).step_by(LANES) {
            let mut acc = [S::splat(0.0); N];
            for n in 0..N {
                acc[n] = S::load(queries[n].out.as_ptr().add(d));
            }
            for pair in 0..pairs {
                if !next.is_null() {
                    for line in 0..lines {
                        S::prefetch_once(next.wrapping_add(((d + pair) * lines + line) * LINE));
                    }
                }
                let v = C::rows::<S>(values, stride, pair, d);
                for half in 0..2 {
                    for n in 0..N {
                        acc[n] = S::fma(S::splat(weights[n][2 * pair + half]), v[half], acc[n]);
                    }
                }
            }
            for n in 0..N {
                for j in 2 * pairs..counts[n] {
                    let v = C::rows::<S>(values, stride, j / 2, d)[j % 2];
                    acc[n] = S::fma(S::splat(weights[n][j]), v, acc[n]);
                }
                S::store(queries[n].out.as_mut_ptr().add(d), acc[n]);
            }
        }
        for n in 0..N {
            for d in whole..dim {
                for j in 0..counts[n] {
                    let out = &mut queries[n].out[d];
                    *out = weights[n][j].mul_add(C::value(values, stride, j, d), *out);
                }
            }
        }
    }
}
