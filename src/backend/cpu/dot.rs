//! The dot products of one canonical leaf: rows of a stored matrix with any number of activation rows.
#![allow(clippy::needless_range_loop, reason = "register tiles are clearest, and unrolled, by index")]

use std::ops::Range;

use super::arithmetic::{Exact, Products, Xs};
use super::math::load_some;
use super::rows::{Rows, with_rows};
use super::simd::{Isa, LANES, Simd, dispatch, dispatch_fast};
use super::stream::stream;
use crate::backend::Tensor;
use crate::partition::Step;
use crate::weights::Matrix;

/// From this many activation rows on, weights are widened once into scratch memory.
pub(super) const WIDEN_FROM: usize = 8;

/// Bytes of a cache line.
const LINE: usize = 64;
/// How many rows ahead one token's pass asks for weights: with rows this apart, streams are too short for the hardware.
const AHEAD: usize = 8;

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
    if xs.len() < WIDEN_FROM {
        let (stride, steps) = (rows.len(), [Step { columns: cols, merges: 0 }]);
        // SAFETY: `out` is `[xs, rows]` by the assertion, and this function's own
        unsafe { stream(isa, matrix, rows, xs, &steps, (out.as_mut_ptr(), stride)) };
        return;
    }
    // SAFETY (both): the instruction set is one of `Isa::available`; all ranges were checked just above
    match xs {
        // SAFETY: see above
        Xs::F32(xs) => unsafe {
            dispatch!(
                isa,
                exact(matrix: &Matrix, rows: Range<usize>, xs: &[&[f32]], cols: Range<usize>, out: &mut [f32])
            );
        },
        // SAFETY: see above
        Xs::Bf16(xs) => unsafe {
            dispatch_fast!(
                isa,
                products(matrix: &Matrix, rows: Range<usize>, xs: &[&[u16]], cols: Range<usize>, out: &mut [f32])
            );
        },
    }
}

#[inline(always)]
unsafe fn exact<S: Simd>(matrix: &Matrix, rows: Range<usize>, xs: &[&[f32]], cols: Range<usize>, out: &mut [f32]) {
    // SAFETY: the ranges were checked by `leaf_products`
    unsafe { products::<S, Exact>(matrix, rows, xs, cols, out) }
}

#[inline(always)]
unsafe fn products<S: Simd, K: Products<S>>(
    matrix: &Matrix,
    rows: Range<usize>,
    xs: &[&[K::X]],
    cols: Range<usize>,
    out: &mut [f32],
) {
    let out_stride = rows.len();
    let width = cols.len().next_multiple_of(K::STEP);
    let mut memory = Tensor::scratch(4, width);
    let scratch = memory.data_mut().as_mut_ptr().cast::<K::X>();
    let mut row = rows.start;
    while row < rows.end {
        let height = if rows.end - row >= 4 { 4 } else { 1 };
        let to = &mut out[row - rows.start..];
        // SAFETY: the ranges were checked by `leaf_products`
        unsafe {
            with_rows!(matrix, stored => for r in 0..height {
                widen::<S, K, _>(stored, (row + r, cols.start), cols.len(), scratch.add(r * width));
            });
            all_tokens::<S, K>(K::wide(scratch, width), height, xs, &cols, to, out_stride);
        }
        row += height;
    }
}

/// Writes `count` weights from `at` on to scratch memory, with zeros up to a whole step.
///
/// # Safety
/// As [`Rows`]; `to` has room for whole steps.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd, K: Products<S>, R: Rows>(
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
            let group = w.group::<S>(row, col + i);
            let end = whole.min(i.saturating_add(w.left_in_group(col + i).max(K::STEP)));
            while i < end {
                K::store(to.add(i), K::weights(w, row, col + i, group));
                i += K::STEP;
            }
        }
        if whole < count {
            let group = w.group::<S>(row, col + whole);
            K::store(to.add(whole), K::weights_some(w, row, col + whole, count - whole, group));
        }
    }
}

/// Runs the tiles of `height` widened rows over all `xs`.
#[inline(always)]
pub(super) unsafe fn all_tokens<S: Simd, K: Products<S>>(
    w: K::Wide,
    height: usize,
    xs: &[&[K::X]],
    cols: &Range<usize>,
    out: &mut [f32],
    stride: usize,
) {
    let mut t = 0;
    while t < xs.len() {
        let (xs, to) = (&xs[t..], &mut out[t * stride..]);
        // SAFETY: the ranges were checked by `leaf_products`
        t += unsafe {
            match (height, xs.len()) {
                (4, 4..) => tile_to::<S, K, 4, 4>(w, xs, cols, to, stride),
                (4, _) => tile_to::<S, K, 4, 1>(w, xs, cols, to, stride),
                (_, 4..) => tile_to::<S, K, 1, 4>(w, xs, cols, to, stride),
                _ => tile_to::<S, K, 1, 1>(w, xs, cols, to, stride),
            }
        };
    }
}

/// Adds the products of one step, `k` columns after `col`.
#[inline(always)]
unsafe fn step<S: Simd, K: Products<S>, R: Rows, const ROWS: usize, const TOKENS: usize>(
    w: R,
    (row, col): (usize, usize),
    x: &[*const K::X; TOKENS],
    k: usize,
    groups: &[R::Group<S>; ROWS],
    acc: &mut [[S::V; ROWS]; TOKENS],
) {
    // SAFETY: the ranges were checked by the callers
    unsafe {
        if TOKENS == 1 && (k * R::BITS / 8).is_multiple_of(LINE) {
            for r in 0..ROWS {
                w.prefetch::<S>(row + r + AHEAD, col + k);
            }
        }
        let mut wv = [K::weights(w, row, col + k, groups[0]); ROWS];
        for r in 1..ROWS {
            wv[r] = K::weights(w, row + r, col + k, groups[r]);
        }
        for t in 0..TOKENS {
            let xv = K::load(x[t].add(k));
            for r in 0..ROWS {
                acc[t][r] = K::add(acc[t][r], wv[r], xv);
            }
        }
    }
}

/// `ROWS` × `TOKENS` products of the columns `cols` in registers; `at` is where they start in `w`.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, K: Products<S>, R: Rows, const ROWS: usize, const TOKENS: usize>(
    w: R,
    (row, col): (usize, usize),
    xs: &[&[K::X]],
    cols: &Range<usize>,
) -> [[f32; ROWS]; TOKENS] {
    // SAFETY: the ranges were checked by the callers
    unsafe {
        let mut x = [std::ptr::null::<K::X>(); TOKENS];
        for t in 0..TOKENS {
            x[t] = xs[t].as_ptr().add(cols.start);
        }
        let mut acc = [[S::splat(0.0); ROWS]; TOKENS];
        let (len, whole) = (cols.len(), cols.len() / K::STEP * K::STEP);
        let mut k = 0;
        while k < whole {
            let mut groups = [w.group::<S>(row, col + k); ROWS];
            for r in 1..ROWS {
                groups[r] = w.group::<S>(row + r, col + k);
            }
            if R::GROUP > 0 && k + R::GROUP <= whole {
                // a group of known size is unrolled
                for i in (0..R::GROUP).step_by(K::STEP) {
                    step::<S, K, R, ROWS, TOKENS>(w, (row, col), &x, k + i, &groups, &mut acc);
                }
                k += R::GROUP;
                continue;
            }
            let end = whole.min(k.saturating_add(w.left_in_group(col + k).max(K::STEP)));
            while k < end {
                step::<S, K, R, ROWS, TOKENS>(w, (row, col), &x, k, &groups, &mut acc);
                k += K::STEP;
            }
        }
        if k < len {
            for t in 0..TOKENS {
                let xv = K::load_some(x[t].add(k), len - k);
                for r in 0..ROWS {
                    let group = w.group::<S>(row + r, col + k);
                    acc[t][r] = K::add(acc[t][r], K::weights_some(w, row + r, col + k, len - k, group), xv);
                }
            }
        }
        let mut sums = [[0.0; ROWS]; TOKENS];
        if ROWS == 4 && TOKENS == 4 {
            let all = S::sum16(std::array::from_fn(|t| std::array::from_fn(|r| acc[t % TOKENS][r % ROWS])));
            for t in 0..TOKENS {
                sums[t].copy_from_slice(&all[t][..ROWS]);
            }
            return sums;
        }
        for t in 0..TOKENS {
            if ROWS == 4 {
                let four = S::sum4([acc[t][0], acc[t][1 % ROWS], acc[t][2 % ROWS], acc[t][3 % ROWS]]);
                sums[t].copy_from_slice(&four[..ROWS]);
            } else {
                for r in 0..ROWS {
                    sums[t][r] = S::sum(acc[t][r]);
                }
            }
        }
        sums
    }
}

/// A tile whose products go to `out`, `stride` values from token to token; returns `TOKENS`.
#[inline(always)]
unsafe fn tile_to<S: Simd, K: Products<S>, const ROWS: usize, const TOKENS: usize>(
    w: K::Wide,
    xs: &[&[K::X]],
    cols: &Range<usize>,
    out: &mut [f32],
    stride: usize,
) -> usize {
    // SAFETY: the ranges were checked by `leaf_products`
    let sums = unsafe { tile::<S, K, K::Wide, ROWS, TOKENS>(w, (0, 0), xs, cols) };
    for t in 0..TOKENS {
        out[t * stride..][..ROWS].copy_from_slice(&sums[t]);
    }
    TOKENS
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
