//! Products with a few activation rows: every weight is read once, as it is stored, and the tree is summed on the way.
#![allow(clippy::needless_range_loop, reason = "register tiles are clearest, and unrolled, by index")]

use std::ops::Range;

use super::arithmetic::{Exact, Products, Xs};
use super::dot::{WIDEN_FROM, all_tokens, tile, widen};
use super::rows::{Rows, with_rows};
use super::simd::{Isa, Simd, dispatch, dispatch_fast};
use crate::backend::Tensor;
use crate::partition::{MAX_LEAVES, Step};
use crate::weights::Matrix;

/// Sums that wait for their sibling, and the one being made: a tree of [`MAX_LEAVES`] leaves.
const DEPTH: usize = MAX_LEAVES.ilog2() as usize + 2;

/// Writes the products of the rows `rows` of `matrix` with every `x`, summed over `steps`.
///
/// `out` is `[xs, stride]`, of which the first `rows` columns are written.
///
/// # Safety
/// `out` is valid for that, and nobody else reads or writes those values.
pub(super) unsafe fn stream(
    isa: Isa,
    matrix: &Matrix,
    rows: Range<usize>,
    xs: Xs<'_>,
    steps: &[Step],
    (out, stride): (*mut f32, usize),
) {
    assert!(rows.end <= matrix.out_features());
    assert!(steps.iter().all(|step| step.columns.end <= matrix.in_features()));
    assert!(xs.reach(matrix.in_features()) && xs.len() < WIDEN_FROM);
    // SAFETY (both): the instruction set is one of `Isa::available`; all ranges were checked just above
    match xs {
        // SAFETY: see above
        Xs::F32(xs) => unsafe {
            dispatch!(
                isa,
                exact(matrix: &Matrix, rows: Range<usize>, xs: &[&[f32]], steps: &[Step], out: *mut f32, stride: usize)
            );
        },
        // SAFETY: see above
        Xs::Bf16(xs) => unsafe {
            dispatch_fast!(
                isa,
                products(
                    matrix: &Matrix,
                    rows: Range<usize>,
                    xs: &[&[u16]],
                    steps: &[Step],
                    out: *mut f32,
                    stride: usize,
                )
            );
        },
    }
}

#[inline(always)]
unsafe fn exact<S: Simd>(
    matrix: &Matrix,
    rows: Range<usize>,
    xs: &[&[f32]],
    steps: &[Step],
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the ranges were checked by `stream`
    unsafe { products::<S, Exact>(matrix, rows, xs, steps, out, stride) }
}

#[inline(always)]
unsafe fn products<S: Simd, K: Products<S>>(
    matrix: &Matrix,
    rows: Range<usize>,
    xs: &[&[K::X]],
    steps: &[Step],
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the ranges were checked by `stream`
    unsafe {
        let done = with_rows!(matrix, stored => direct::<S, K, _>(stored, &rows, xs, steps, (out, stride)));
        if !done {
            widened::<S, K>(matrix, &rows, xs, steps, (out, stride));
        }
    }
}

/// Reads the weights as they are stored, if rows of `R` can be read so.
#[inline(always)]
unsafe fn direct<S: Simd, K: Products<S>, R: Rows>(
    w: R,
    rows: &Range<usize>,
    xs: &[&[K::X]],
    steps: &[Step],
    (out, stride): (*mut f32, usize),
) -> bool {
    if const { if K::PAIRS { R::DIRECT_PAIRS } else { R::DIRECT } } {
        let mut t = 0;
        while t < xs.len() {
            // SAFETY: the ranges were checked by `stream`
            unsafe {
                let (xs, out) = (&xs[t..], out.add(t * stride));
                t += match xs.len() {
                    4.. => run::<S, K, R, 4>(w, rows, xs, steps, (out, stride)),
                    2.. => run::<S, K, R, 2>(w, rows, xs, steps, (out, stride)),
                    _ => run::<S, K, R, 1>(w, rows, xs, steps, (out, stride)),
                };
            }
        }
        return true;
    }
    false
}

/// Widens four rows of a leaf at a time.
#[inline(always)]
unsafe fn widened<S: Simd, K: Products<S>>(
    matrix: &Matrix,
    rows: &Range<usize>,
    xs: &[&[K::X]],
    steps: &[Step],
    (out, stride): (*mut f32, usize),
) {
    let widest = steps.iter().map(|step| step.columns.len().next_multiple_of(K::STEP)).max().unwrap_or(0);
    let mut memory = Tensor::scratch(4, widest);
    let scratch = memory.data_mut().as_mut_ptr().cast::<K::X>();
    let mut stack = [[0.0f32; 4 * WIDEN_FROM]; DEPTH];
    let mut row = rows.start;
    while row < rows.end {
        let tall = if rows.end - row >= 4 { 4 } else { 1 };
        let mut height = 0;
        for Step { columns, merges } in steps {
            let width = columns.len().next_multiple_of(K::STEP);
            // SAFETY: the ranges were checked by `stream`
            unsafe {
                with_rows!(matrix, stored => for r in 0..tall {
                    widen::<S, K, _>(stored, (row + r, columns.start), columns.len(), scratch.add(r * width));
                });
                all_tokens::<S, K>(K::wide(scratch, width), tall, xs, columns, &mut stack[height], 4);
            }
            for _ in 0..*merges {
                height -= 1;
                let (sums, rest) = stack.split_at_mut(height + 1);
                sums[height].iter_mut().zip(&rest[0]).for_each(|(sum, value)| *sum += value);
            }
            height += 1;
        }
        for t in 0..xs.len() {
            for r in 0..tall {
                // SAFETY: the caller's promise
                unsafe { *out.add(t * stride + row - rows.start + r) = stack[0][4 * t + r] };
            }
        }
        row += tall;
    }
}

/// All rows, four at a time, for `TOKENS` tokens; returns `TOKENS`.
#[inline(always)]
unsafe fn run<S: Simd, K: Products<S>, R: Rows, const TOKENS: usize>(
    w: R,
    rows: &Range<usize>,
    xs: &[&[K::X]],
    steps: &[Step],
    (out, stride): (*mut f32, usize),
) -> usize {
    let mut row = rows.start;
    // SAFETY: the ranges were checked by `stream`
    unsafe {
        while row + 4 <= rows.end {
            tree::<S, K, R, 4, TOKENS>(w, row, xs, steps, (out.add(row - rows.start), stride));
            row += 4;
        }
        while row < rows.end {
            tree::<S, K, R, 1, TOKENS>(w, row, xs, steps, (out.add(row - rows.start), stride));
            row += 1;
        }
    }
    TOKENS
}

/// `ROWS` × `TOKENS` products over all leaves.
#[inline(always)]
unsafe fn tree<S: Simd, K: Products<S>, R: Rows, const ROWS: usize, const TOKENS: usize>(
    w: R,
    row: usize,
    xs: &[&[K::X]],
    steps: &[Step],
    (out, stride): (*mut f32, usize),
) {
    let mut stack = [[[0.0f32; ROWS]; TOKENS]; DEPTH];
    let mut height = 0;
    for Step { columns, merges } in steps {
        // SAFETY: the ranges were checked by `stream`
        stack[height] = unsafe { tile::<S, K, R, ROWS, TOKENS>(w, (row, columns.start), xs, columns) };
        for _ in 0..*merges {
            height -= 1;
            for t in 0..TOKENS {
                for r in 0..ROWS {
                    stack[height][t][r] += stack[height + 1][t][r];
                }
            }
        }
        height += 1;
    }
    for t in 0..TOKENS {
        for r in 0..ROWS {
            // SAFETY: the caller's promise
            unsafe { *out.add(t * stride + r) = stack[0][t][r] };
        }
    }
}
