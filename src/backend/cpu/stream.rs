//! Products with a few activation rows: every weight is read once, as it is stored, and the tree is summed on the way.
#![allow(clippy::needless_range_loop, reason = "register tiles are clearest, and unrolled, by index")]

use std::cell::RefCell;
use std::ops::Range;

use super::dot::tile;
use super::rows::{F32Rows, Rows, widen, with_rows};
use super::simd::{Isa, Simd, dispatch};
use crate::partition::{MAX_LEAVES, Step};
use crate::weights::Matrix;

/// Sums that wait for their sibling, and the one being made: a tree of [`MAX_LEAVES`] leaves.
const DEPTH: usize = MAX_LEAVES.ilog2() as usize + 2;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

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
    xs: &[&[f32]],
    steps: &[Step],
    (out, stride): (*mut f32, usize),
) {
    assert!(rows.end <= matrix.out_features());
    assert!(steps.iter().all(|step| step.columns.end <= matrix.in_features()));
    assert!(xs.iter().all(|x| x.len() >= matrix.in_features()));
    SCRATCH.with_borrow_mut(|scratch| {
        // SAFETY: the instruction set is one of `Isa::available`; all ranges were checked just above
        unsafe {
            dispatch!(
                isa,
                products(
                    matrix: &Matrix,
                    rows: Range<usize>,
                    xs: &[&[f32]],
                    steps: &[Step],
                    out: *mut f32,
                    stride: usize,
                    scratch: &mut Vec<f32>,
                )
            );
        }
    });
}

#[inline(always)]
unsafe fn products<S: Simd>(
    matrix: &Matrix,
    rows: Range<usize>,
    xs: &[&[f32]],
    steps: &[Step],
    out: *mut f32,
    stride: usize,
    scratch: &mut Vec<f32>,
) {
    // SAFETY: the ranges were checked by `stream`
    unsafe {
        with_rows!(matrix, stored => {
            let mut t = 0;
            while t < xs.len() {
                let (xs, out) = (&xs[t..], out.add(t * stride));
                t += match xs.len() {
                    4.. => run::<S, _, 4>(stored, &rows, xs, steps, (out, stride), scratch),
                    2.. => run::<S, _, 2>(stored, &rows, xs, steps, (out, stride), scratch),
                    _ => run::<S, _, 1>(stored, &rows, xs, steps, (out, stride), scratch),
                };
            }
        });
    }
}

/// All rows, four at a time, for `TOKENS` tokens; returns `TOKENS`.
#[inline(always)]
unsafe fn run<S: Simd, R: Rows, const TOKENS: usize>(
    w: R,
    rows: &Range<usize>,
    xs: &[&[f32]],
    steps: &[Step],
    (out, stride): (*mut f32, usize),
    scratch: &mut Vec<f32>,
) -> usize {
    let mut row = rows.start;
    // SAFETY: the ranges were checked by `stream`
    unsafe {
        while row + 4 <= rows.end {
            tree::<S, R, 4, TOKENS>(w, row, xs, steps, (out.add(row - rows.start), stride), scratch);
            row += 4;
        }
        while row < rows.end {
            tree::<S, R, 1, TOKENS>(w, row, xs, steps, (out.add(row - rows.start), stride), scratch);
            row += 1;
        }
    }
    TOKENS
}

/// `ROWS` × `TOKENS` products over all leaves.
#[inline(always)]
unsafe fn tree<S: Simd, R: Rows, const ROWS: usize, const TOKENS: usize>(
    w: R,
    row: usize,
    xs: &[&[f32]],
    steps: &[Step],
    (out, stride): (*mut f32, usize),
    scratch: &mut Vec<f32>,
) {
    let mut stack = [[[0.0f32; ROWS]; TOKENS]; DEPTH];
    let mut height = 0;
    for Step { columns, merges } in steps {
        // SAFETY: the ranges were checked by `stream`
        stack[height] = unsafe {
            if R::DIRECT {
                tile::<S, R, ROWS, TOKENS>(w, (row, columns.start), xs, columns)
            } else {
                scratch.resize(ROWS * columns.len(), 0.0);
                for r in 0..ROWS {
                    let to = scratch.as_mut_ptr().add(r * columns.len());
                    widen::<S, R>(w, row + r, columns.start, columns.len(), to);
                }
                let wide = F32Rows { start: scratch.as_ptr().cast(), stride: columns.len() };
                tile::<S, F32Rows, ROWS, TOKENS>(wide, (0, 0), xs, columns)
            }
        };
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
