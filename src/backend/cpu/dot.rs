//! The dot products of one canonical leaf: rows of a stored matrix with any number of activation rows.
#![allow(clippy::needless_range_loop, reason = "register tiles are clearest, and unrolled, by index")]

use std::ops::Range;

use super::ahead::Ahead;
use super::arithmetic::{Products, Xs};
use super::linear::Shared;
use super::math::load_some;
use super::rows::{Place, Rows};
use super::simd::{Isa, LANES, Simd};
use super::stream::{Block, DEPTH, Out, stream};
use crate::partition::Step;
use crate::weights::Matrix;

/// From this many activation rows on, weights are widened once into scratch memory; packed ones sooner, where `stream.rs` says so.
pub(super) const WIDEN_FROM: usize = 8;

/// Activation rows of one pass over the weights.
pub(super) const BLOCK_TOKENS: usize = 64;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Writes the products of the rows `rows` of `matrix` with every `x` over the columns `cols`.
///
/// `out` is `[xs, rows]`. Every product is summed in one order that depends on `cols` alone: sixteen lanes, lane i
/// adding the columns i, i + 16, … from the start of `cols` (in pairs: 2i + 1, 2i, 2i + 33, …), then [`Simd::sum`].
pub(super) fn leaf_products(
    isa: Isa,
    matrix: &Matrix,
    rows: Range<usize>,
    xs: Xs<'_>,
    cols: Range<usize>,
    out: &mut [f32],
) {
    assert!(rows.end <= matrix.out_features() && cols.end <= matrix.in_features());
    assert!(xs.reach(cols.end) && out.len() == xs.len() * rows.len());
    block_products(isa, &Block { matrix, rows, next: None }, xs, &[Step { columns: cols, merges: 0 }], out, 0);
}

/// Writes the products of the rows of `block` with every `x`, summed over `steps`: `[xs, rows]`, and as much for each further sum
/// that is left, `apart` values on.
pub(super) fn block_products(isa: Isa, block: &Block<'_>, xs: Xs<'_>, steps: &[Step], out: &mut [f32], apart: usize) {
    let stride = block.rows.len();
    let further = steps.len() - 1 - steps.iter().map(|step| step.merges).sum::<usize>();
    assert!(out.len() >= further * apart + xs.len() * stride && further < DEPTH);
    let to = Shared::new(out);
    xs.chunks(BLOCK_TOKENS, |first, xs| {
        // SAFETY: `out` is as large as that by the assertion, and this function's own
        unsafe { stream(isa, block, xs, steps, Out { start: to.pointer(first * stride), stride, apart }) };
    });
}

/// Writes `count` weights from `at` on to scratch memory, with zeros up to a whole step; each step `APART` steps after the last.
///
/// # Safety
/// As [`Rows`]; `to` has room for whole steps.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd, K: Products<S>, R: Rows, const APART: usize>(
    w: R,
    (row, col): (usize, usize),
    count: usize,
    to: *mut K::X,
) {
    let whole = count / K::STEP * K::STEP;
    // SAFETY: the caller's promise
    unsafe {
        let mut i = 0;
        while i < whole {
            let group = w.group::<S>(w.group_at(row, col + i));
            let end = whole.min(i.saturating_add(w.left_in_group(col + i).max(K::STEP)));
            while i < end {
                K::store(to.add(i * APART), K::weights(w, w.place(row, col + i), group));
                i += K::STEP;
            }
        }
        if whole < count {
            let group = w.group::<S>(w.group_at(row, col + whole));
            K::store(to.add(whole * APART), K::weights_some(w, w.place(row, col + whole), count - whole, group));
        }
    }
}

/// Asks for as many lines a row as begin in the columns from `col` on, `columns` of them.
#[inline(always)]
unsafe fn fetch<S: Simd, R: Rows, const ROWS: usize>(ahead: Option<&mut Ahead>, col: usize, columns: usize) {
    let Some(ahead) = ahead else { return };
    let bytes = columns * R::BITS / 8;
    let whole = bytes.is_multiple_of(LINE);
    if whole || col * R::BITS / 8 % LINE < bytes {
        for _ in 0..if whole { bytes / LINE } else { 1 } {
            // SAFETY: the instruction set is available
            unsafe { ahead.fetch::<S, ROWS>() };
        }
    }
}

/// Adds the products of a step: of the weights at `places`, all of `groups`, with activations from `k` on. Then `places` are the next.
#[inline(always)]
unsafe fn step<S: Simd, K: Products<S>, R: Rows, const ROWS: usize, const TOKENS: usize>(
    w: R,
    places: &mut [Place; ROWS],
    x: &[*const K::X; TOKENS],
    k: usize,
    groups: &[R::Group<S>; ROWS],
    acc: &mut [[S::V; ROWS]; TOKENS],
) {
    // SAFETY: the ranges were checked by the callers
    unsafe {
        let mut wv = [K::weights(w, places[0], groups[0]); ROWS];
        for r in 1..ROWS {
            wv[r] = K::weights(w, places[r], groups[r]);
        }
        for t in 0..TOKENS {
            let xv = K::load(x[t].add(k));
            for r in 0..ROWS {
                acc[t][r] = K::add(acc[t][r], wv[r], xv);
            }
        }
        for r in 0..ROWS {
            places[r] = places[r].after::<R>(K::STEP);
        }
    }
}

/// Where the next weights of some rows are, from one leaf to the next.
#[derive(Clone, Copy)]
pub(super) struct Cursor<const ROWS: usize> {
    places: [Place; ROWS],
    // the first one's group, and how far on the next row's is
    number: usize,
    apart: usize,
    // columns of a group, or of a step that has several
    per_group: usize,
}

impl<const ROWS: usize> Cursor<ROWS> {
    /// At column `col`, where a leaf begins, of the rows from `row` on, for steps of `step` columns.
    #[inline(always)]
    pub(super) fn at<R: Rows>(w: R, row: usize, col: usize, step: usize) -> Self {
        let mut places = [w.place(row, col); ROWS];
        for r in 1..ROWS {
            places[r] = w.place(row + r, col);
        }
        let number = w.group_at(row, col);
        let apart = w.group_at(row + 1, col).wrapping_sub(number);
        // leaves begin with a group
        Self { places, number, apart, per_group: w.left_in_group(col).max(step).min(usize::MAX / 2) }
    }
}

/// `ROWS` × `TOKENS` products of the columns `cols` in registers, of weights from `cursor` on; a line of `ahead` is asked for with
/// each that is read.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, K: Products<S>, R: Rows, const ROWS: usize, const TOKENS: usize>(
    w: R,
    cursor: &mut Cursor<ROWS>,
    xs: &[&[K::X]],
    cols: &Range<usize>,
    mut ahead: Option<&mut Ahead>,
) -> [[f32; ROWS]; TOKENS] {
    // SAFETY: the ranges were checked by the callers
    unsafe {
        let mut x = [std::ptr::null::<K::X>(); TOKENS];
        for t in 0..TOKENS {
            x[t] = xs[t].as_ptr().add(cols.start);
        }
        let mut acc = [[S::splat(0.0); ROWS]; TOKENS];
        let (col, len, whole) = (cols.start, cols.len(), cols.len() / K::STEP * K::STEP);
        let Cursor { mut places, mut number, apart, per_group } = *cursor;
        let mut k = 0;
        // groups of the usual size are unrolled
        let usual = const { R::GROUP > 0 } && per_group == R::GROUP;
        while k < whole {
            let mut groups = [w.group::<S>(number); ROWS];
            for r in 1..ROWS {
                groups[r] = w.group::<S>(number + r * apart);
            }
            number += 1;
            if usual {
                fetch::<S, R, ROWS>(ahead.as_deref_mut(), col + k, R::GROUP);
                for _ in 0..R::GROUP / K::STEP {
                    step::<S, K, R, ROWS, TOKENS>(w, &mut places, &x, k, &groups, &mut acc);
                    k += K::STEP;
                }
                continue;
            }
            let end = whole.min(k + per_group);
            // and so are runs of known size
            while R::RUN > K::STEP && k + R::RUN <= end {
                fetch::<S, R, ROWS>(ahead.as_deref_mut(), col + k, R::RUN);
                for _ in 0..R::RUN / K::STEP {
                    step::<S, K, R, ROWS, TOKENS>(w, &mut places, &x, k, &groups, &mut acc);
                    k += K::STEP;
                }
            }
            while k < end {
                fetch::<S, R, ROWS>(ahead.as_deref_mut(), col + k, K::STEP);
                step::<S, K, R, ROWS, TOKENS>(w, &mut places, &x, k, &groups, &mut acc);
                k += K::STEP;
            }
        }
        if k < len {
            // operands first: accumulators are registers where only a loop as small as this one has them
            let mut wv = [K::weights_some(w, places[0], len - k, w.group::<S>(w.group_of(places[0]))); ROWS];
            for r in 1..ROWS {
                wv[r] = K::weights_some(w, places[r], len - k, w.group::<S>(w.group_of(places[r])));
            }
            let mut xv = [wv[0]; TOKENS];
            for t in 0..TOKENS {
                xv[t] = K::load_some(x[t].add(k), len - k);
            }
            for t in 0..TOKENS {
                for r in 0..ROWS {
                    acc[t][r] = K::add(acc[t][r], wv[r], xv[t]);
                }
            }
            for r in 0..ROWS {
                places[r] = places[r].after::<R>(len - k);
            }
            number = w.group_of(places[0]);
        }
        *cursor = Cursor { places, number, ..*cursor };
        let mut sums = [[0.0; ROWS]; TOKENS];
        if ROWS == 4 && TOKENS == 4 {
            let mut square = [[S::splat(0.0); 4]; 4];
            for t in 0..TOKENS {
                square[t % 4].copy_from_slice(&acc[t][..4]);
            }
            let all = if K::RIFFLED { S::sum16_riffled(square) } else { S::sum16(square) };
            for t in 0..TOKENS {
                sums[t].copy_from_slice(&all[t][..ROWS]);
            }
            return sums;
        }
        for t in 0..TOKENS {
            for (sums, acc) in sums[t].as_chunks_mut::<4>().0.iter_mut().zip(acc[t].as_chunks::<4>().0) {
                *sums = if K::RIFFLED { S::sum4_riffled(*acc) } else { S::sum4(*acc) };
            }
            for r in ROWS / 4 * 4..ROWS {
                sums[t][r] = if K::RIFFLED { S::sum4_riffled([acc[t][r]; 4])[0] } else { S::sum(acc[t][r]) };
            }
        }
        sums
    }
}

/// The dot product of two vectors of one length in the order of a single leaf.
///
/// # Safety
/// As [`Simd`]; both pointers are valid for `len` values.
#[inline(always)]
pub(super) unsafe fn dot<S: Simd>(a: *const f32, b: *const f32, len: usize) -> f32 {
    let whole = len / LANES * LANES;
    // SAFETY: the caller's promise
    unsafe {
        let mut acc = S::splat(0.0);
        for k in (0..whole).step_by(LANES) {
            acc = S::fma(S::load(a.add(k)), S::load(b.add(k)), acc);
        }
        if whole < len {
            let rest = len - whole;
            acc = S::fma(load_some::<S>(a.add(whole), rest), load_some::<S>(b.add(whole), rest), acc);
        }
        S::sum(acc)
    }
}
