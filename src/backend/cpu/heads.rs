//! A matrix of its own for every head: the absorbed projections of multi-head latent attention.
#![allow(clippy::needless_range_loop, reason = "register tiles are clearest, and unrolled, by index")]

use super::Cpu;
use super::arithmetic::{Exact, Xs};
use super::dot::{leaf_products, widen};
use super::linear::Shared;
use super::rows::with_rows;
use super::simd::{LANES, Simd, dispatch};
use super::turned::Tokens;
use crate::backend::{Tensor, check};
use crate::error::Result;
use crate::weights::Matrix;

/// Rows of a matrix in one task.
const ROWS: usize = 128;

/// `x_h · w_hᵀ` (or `x_h · w_h` if `turned`) of every head: `[rows, heads · out]`, exact in every arithmetic.
///
/// A product is one leaf in the order of all dot products; a turned one adds the rows of `w` from first to last.
pub(super) fn per_head(cpu: &Cpu, x: &Tensor, ws: &[Matrix], turned: bool) -> Result<Tensor> {
    let (inner, out) = check::per_head(x, ws, turned)?;
    let mut y = Tensor::scratch(x.rows(), ws.len() * out);
    let to = Shared::new(y.data_mut());
    let inputs = |head: usize| x.rows_iter().map(move |row| &row[head * inner..(head + 1) * inner]).collect::<Vec<_>>();
    if turned {
        cpu.pool.run(ws.len(), |head| {
            let (w, xs) = (&ws[head], &inputs(head)[..]);
            let mut products = Tensor::scratch(xs.len(), out);
            let sums = products.data_mut();
            // SAFETY: the instruction set is available; `sums` is [xs, out], and every x has as many values as `w` rows
            unsafe { dispatch!(cpu.isa, turned_product(w: &Matrix, xs: &[&[f32]], sums: &mut [f32])) };
            scatter(&products, to, (0, head * out), ws.len() * out);
        });
        return Ok(y);
    }
    let blocks = out.div_ceil(ROWS);
    cpu.pool.run(ws.len() * blocks, |task| {
        let (head, start) = (task / blocks, task % blocks * ROWS);
        let rows = start..(start + ROWS).min(out);
        let xs = inputs(head);
        let mut products = Tensor::scratch(xs.len(), rows.len());
        leaf_products(cpu.isa, &ws[head], rows, Xs::F32(Tokens::plain(&xs)), 0..inner, products.data_mut());
        scatter(&products, to, (0, head * out + start), ws.len() * out);
    });
    Ok(y)
}

/// Copies `part` to the place `at` of a tensor with rows of `stride`; no two tasks have one column.
fn scatter(part: &Tensor, to: Shared, at: (usize, usize), stride: usize) {
    for (i, row) in part.rows_iter().enumerate() {
        let start = (at.0 + i) * stride + at.1;
        // SAFETY: every (row, column) belongs to one task
        unsafe { to.part(start..start + row.len()) }.copy_from_slice(row);
    }
}

#[inline(always)]
unsafe fn turned_product<S: Simd>(w: &Matrix, xs: &[&[f32]], out: &mut [f32]) {
    let (rows, columns) = (w.out_features(), w.in_features());
    let width = columns.next_multiple_of(LANES);
    let mut wide = Tensor::scratch(rows, width);
    let start = wide.data_mut().as_mut_ptr();
    // SAFETY: rows and columns are those of the matrix; `wide` has room for whole steps
    unsafe {
        with_rows!(w, stored => for row in 0..rows {
            widen::<S, Exact, _, 1>(stored, (row, 0), columns, start.add(row * width));
        });
    }
    let mut token = 0;
    while token < xs.len() {
        let (xs, to) = (&xs[token..], &mut out[token * columns..]);
        // SAFETY: every x has `rows` values, `wide` is [rows, width], `to` has whole rows of `columns`
        token += unsafe {
            match xs.len() {
                4.. => tokens::<S, 4>(start, (rows, width), xs, to, columns),
                _ => tokens::<S, 1>(start, (rows, width), xs, to, columns),
            }
        };
    }
}

/// All columns for `N` tokens; returns `N`.
#[inline(always)]
unsafe fn tokens<S: Simd, const N: usize>(
    w: *const f32,
    (rows, width): (usize, usize),
    xs: &[&[f32]],
    out: &mut [f32],
    columns: usize,
) -> usize {
    let mut column = 0;
    while column < width {
        // SAFETY: the caller's promise
        column += unsafe {
            if width - column >= 4 * LANES {
                tile::<S, N, 4>(w, (rows, width), column, xs, out, columns)
            } else {
                tile::<S, N, 1>(w, (rows, width), column, xs, out, columns)
            }
        };
    }
    N
}

/// `N` tokens by `V` · 16 columns in registers; returns the columns.
#[inline(always)]
unsafe fn tile<S: Simd, const N: usize, const V: usize>(
    w: *const f32,
    (rows, width): (usize, usize),
    column: usize,
    xs: &[&[f32]],
    out: &mut [f32],
    columns: usize,
) -> usize {
    // SAFETY: the caller's promise: `column + V · 16 ≤ width`
    unsafe {
        let mut acc = [[S::splat(0.0); V]; N];
        for row in 0..rows {
            let at = w.add(row * width + column);
            let mut values = [S::splat(0.0); V];
            for v in 0..V {
                values[v] = S::load(at.add(v * LANES));
            }
            for n in 0..N {
                let x = S::splat(*xs[n].get_unchecked(row));
                for v in 0..V {
                    acc[n][v] = S::fma(x, values[v], acc[n][v]);
                }
            }
        }
        for n in 0..N {
            for v in 0..V {
                let mut lanes = [0.0; LANES];
                S::store(lanes.as_mut_ptr(), acc[n][v]);
                let first = column + v * LANES;
                let count = LANES.min(columns.saturating_sub(first));
                out[n * columns + first.min(columns)..][..count].copy_from_slice(&lanes[..count]);
            }
        }
    }
    V * LANES
}
