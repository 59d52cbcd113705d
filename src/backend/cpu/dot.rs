//! The dot products of one canonical leaf: rows of a stored matrix with any number of activation rows.
#![allow(clippy::needless_range_loop, reason = "register tiles are clearest, and unrolled, by index")]

use std::cell::RefCell;
use std::ops::Range;

use super::math::load_some;
use super::rows::{F32Rows, Rows, widen, with_rows};
use super::simd::{Isa, LANES, Simd, dispatch};
use crate::weights::Matrix;

/// From this many activation rows on, weights are widened once into scratch memory.
pub(super) const WIDEN_FROM: usize = 8;

/// Bytes of a cache line.
const LINE: usize = 64;
/// How many rows ahead one token's pass asks for weights: with rows this apart, streams are too short for the hardware.
const AHEAD: usize = 8;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Writes the products of the rows `rows` of `matrix` with every `x` over the columns `cols`.
///
/// `out` is `[xs, rows]`. Every product is summed in one order that depends on `cols` alone: sixteen lanes, lane i
/// adding the columns i, i + 16, … from the start of `cols`, then [`Simd::sum`].
pub(super) fn leaf_products(
    isa: Isa,
    matrix: &Matrix,
    rows: Range<usize>,
    xs: &[&[f32]],
    cols: Range<usize>,
    out: &mut [f32],
) {
    assert!(rows.end <= matrix.out_features() && cols.end <= matrix.in_features());
    assert!(xs.iter().all(|x| x.len() >= cols.end) && out.len() == xs.len() * rows.len());
    SCRATCH.with_borrow_mut(|scratch| {
        // SAFETY: the instruction set is one of `Isa::available`; all ranges were checked just above
        unsafe {
            dispatch!(
                isa,
                products(
                    matrix: &Matrix,
                    rows: Range<usize>,
                    xs: &[&[f32]],
                    cols: Range<usize>,
                    out: &mut [f32],
                    scratch: &mut Vec<f32>,
                )
            );
        }
    });
}

fn widen_from<R: Rows>(_rows: R) -> usize {
    if R::DIRECT { WIDEN_FROM } else { 1 }
}

#[inline(always)]
unsafe fn products<S: Simd>(
    matrix: &Matrix,
    rows: Range<usize>,
    xs: &[&[f32]],
    cols: Range<usize>,
    out: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let out_stride = rows.len();
    let mut row = rows.start;
    while row < rows.end {
        let height = if rows.end - row >= 4 { 4 } else { 1 };
        let to = &mut out[row - rows.start..];
        // SAFETY: the ranges were checked by `leaf_products`
        unsafe {
            with_rows!(matrix, stored => if xs.len() >= widen_from(stored) {
                scratch.resize(4 * cols.len(), 0.0);
                for r in 0..height {
                    widen::<S, _>(stored, row + r, cols.start, cols.len(), scratch.as_mut_ptr().add(r * cols.len()));
                }
                let wide = F32Rows { start: scratch.as_ptr().cast(), stride: cols.len() };
                all_tokens::<S, _>(wide, (0, 0), height, xs, &cols, to, out_stride);
            } else {
                all_tokens::<S, _>(stored, (row, cols.start), height, xs, &cols, to, out_stride);
            });
        }
        row += height;
    }
}

/// Runs the tiles of `height` rows over all `xs`; `at` is where the tile starts in `w`.
#[inline(always)]
unsafe fn all_tokens<S: Simd, R: Rows>(
    w: R,
    at: (usize, usize),
    height: usize,
    xs: &[&[f32]],
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
                (4, 4..) => tile_to::<S, R, 4, 4>(w, at, xs, cols, to, stride),
                (4, 3) => tile_to::<S, R, 4, 3>(w, at, xs, cols, to, stride),
                (4, 2) => tile_to::<S, R, 4, 2>(w, at, xs, cols, to, stride),
                (4, _) => tile_to::<S, R, 4, 1>(w, at, xs, cols, to, stride),
                (_, 4..) => tile_to::<S, R, 1, 4>(w, at, xs, cols, to, stride),
                _ => tile_to::<S, R, 1, 1>(w, at, xs, cols, to, stride),
            }
        };
    }
}

/// `ROWS` × `TOKENS` products of the columns `cols` in registers; `at` is where they start in `w`.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, R: Rows, const ROWS: usize, const TOKENS: usize>(
    w: R,
    (row, col): (usize, usize),
    xs: &[&[f32]],
    cols: &Range<usize>,
) -> [[f32; ROWS]; TOKENS] {
    // SAFETY: the ranges were checked by the callers
    unsafe {
        let mut x = [std::ptr::null::<f32>(); TOKENS];
        for t in 0..TOKENS {
            x[t] = xs[t].as_ptr().add(cols.start);
        }
        let mut acc = [[S::splat(0.0); ROWS]; TOKENS];
        let (len, whole) = (cols.len(), cols.len() / LANES * LANES);
        let mut k = 0;
        while k < whole {
            let mut groups = [w.group::<S>(row, col + k); ROWS];
            for r in 1..ROWS {
                groups[r] = w.group::<S>(row + r, col + k);
            }
            let end = whole.min(k.saturating_add(w.left_in_group(col + k)));
            while k < end {
                if TOKENS == 1 && (k * R::BITS / 8).is_multiple_of(LINE) {
                    for r in 0..ROWS {
                        S::prefetch(w.address(row + r + AHEAD, col + k));
                    }
                }
                let mut wv = [S::splat(0.0); ROWS];
                for r in 0..ROWS {
                    wv[r] = w.load::<S>(row + r, col + k, groups[r]);
                }
                for t in 0..TOKENS {
                    let xv = S::load(x[t].add(k));
                    for r in 0..ROWS {
                        acc[t][r] = S::fma(wv[r], xv, acc[t][r]);
                    }
                }
                k += LANES;
            }
        }
        if k < len {
            for t in 0..TOKENS {
                let xv = load_some::<S>(x[t].add(k), len - k);
                for r in 0..ROWS {
                    let wv = w.load_some::<S>(row + r, col + k, len - k, w.group::<S>(row + r, col + k));
                    acc[t][r] = S::fma(wv, xv, acc[t][r]);
                }
            }
        }
        let mut sums = [[0.0; ROWS]; TOKENS];
        for t in 0..TOKENS {
            if ROWS == 4 {
                let four = S::sum4([acc[t][0], acc[t][1 % ROWS], acc[t][2 % ROWS], acc[t][3 % ROWS]]);
                for r in 0..ROWS {
                    sums[t][r] = four[r];
                }
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
unsafe fn tile_to<S: Simd, R: Rows, const ROWS: usize, const TOKENS: usize>(
    w: R,
    at: (usize, usize),
    xs: &[&[f32]],
    cols: &Range<usize>,
    out: &mut [f32],
    stride: usize,
) -> usize {
    // SAFETY: the ranges were checked by `leaf_products`
    let sums = unsafe { tile::<S, R, ROWS, TOKENS>(w, at, xs, cols) };
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
