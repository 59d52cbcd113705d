//! Products of affine weights of four and eight bits with activations of eight bits.
//!
//! Activations are cut into blocks of 32 columns. In a block x ≈ scale · code with code in −127..=127, so that a weight
//! s · q + b gives Σ w · x ≈ (s · scale) · Σ q · code + b · (scale · Σ code), of which the sums are whole numbers: exact, in any
//! order. A leaf adds two terms a block to one f32, block after block, each by one fused multiplication:
//!
//! ```text
//! sum = fma(Σ q · code, s · scale, sum)
//! sum = fma(b, scale · Σ code, sum)
//! ```
#![allow(clippy::needless_range_loop, reason = "lanes are clearest by index")]

use std::ops::Range;

use super::Cpu;
use super::dot::LINE;
use super::linear::Shared;
use super::packed::Groups;
use super::scales::{Bf16, Number, Other};
use super::simd::dots::{BLOCK, Dots, QUADS};
use super::simd::{LANES, Simd, dispatch};
use super::stream::{Block, DEPTH};
use crate::backend::Tensor;
use crate::partition::Step;
use crate::weights::{Coding, Dtype, Matrix, Numbers, Packed, Values};

/// Blocks of smaller magnitudes count as zeros: their inverse would not be finite.
const LEAST: f32 = f32::from_bits(27 << 23);

/// The packed values of `matrix`, if it is multiplied so.
fn packed(matrix: &Matrix) -> Option<&Packed> {
    match matrix.values() {
        Values::Packed(packed) if matches!(packed.coding, Coding::Affine { bits: 4 | 8, .. }) => Some(packed),
        _ => None,
    }
}

/// Whether the products of `matrix` with rounded activations are these.
pub(super) fn takes(matrix: &Matrix) -> bool {
    packed(matrix).is_some()
}

/// Values of a row of `columns` quantised activations: codes in their order, codes with the even ones of eight before the odd
/// ones (four in the place of an f32), a scale a block, a scaled sum a block.
fn row_values(columns: usize) -> usize {
    columns / 2 + columns / BLOCK * 2
}

/// The columns of a row of `values` values.
pub(super) fn columns(values: usize) -> usize {
    values / (BLOCK / 2 + 2) * BLOCK
}

/// Quantises activations, whose columns are whole blocks: a row of [`row_values`] a token.
pub(super) fn quantised(cpu: &Cpu, x: &Tensor) -> Tensor {
    let mut codes = Tensor::scratch(x.rows(), row_values(x.cols()));
    let each = codes.cols();
    let to = Shared::new(codes.data_mut());
    cpu.pool.run(x.rows(), |row| {
        let from = x.row(row);
        // SAFETY: every task writes its own row
        let to = unsafe { to.part(row * each..(row + 1) * each) };
        // SAFETY: the instruction set is available, the row has its values
        unsafe { dispatch!(cpu.isa, quantise(from: &[f32], to: &mut [f32])) };
    });
    codes
}

#[inline(always)]
unsafe fn quantise<S: Simd>(from: &[f32], to: &mut [f32]) {
    let (codes, numbers) = to.split_at_mut(from.len() / 2);
    let (plain, turned) = bytemuck::cast_slice_mut::<f32, i8>(codes).split_at_mut(from.len());
    let (scales, sums) = numbers.split_at_mut(from.len() / BLOCK);
    for (i, block) in from.as_chunks::<BLOCK>().0.iter().enumerate() {
        let mut largest = 0;
        for x in block {
            largest = largest.max(x.to_bits() & 0x7fff_ffff);
        }
        let largest = f32::from_bits(largest);
        let (scale, inverse) = match largest {
            LEAST..=f32::MAX => (largest / 127.0, 127.0 / largest),
            ..LEAST => (0.0, 0.0),
            _ => (f32::NAN, 0.0),
        };
        let mut codes = [0i8; BLOCK];
        if inverse > 0.0 {
            for (code, x) in codes.iter_mut().zip(block) {
                // the nearest whole number, ties to even, is left in the low bits
                *code = (x * inverse + 12_582_912.0).to_bits() as i8;
            }
        }
        let mut sum = 0;
        for code in codes {
            sum += i32::from(code);
        }
        let turned = &mut turned[i * BLOCK..][..BLOCK];
        for (turned, codes) in turned.as_chunks_mut::<8>().0.iter_mut().zip(codes.as_chunks::<8>().0) {
            *turned = [codes[0], codes[2], codes[4], codes[6], codes[1], codes[3], codes[5], codes[7]];
        }
        plain[i * BLOCK..][..BLOCK].copy_from_slice(&codes);
        scales[i] = scale;
        sums[i] = scale * sum as f32;
    }
}

/// As [`super::stream::stream`]'s products: rows of a packed matrix, sixteen at a time, with quantised activations.
#[inline(always)]
pub(super) unsafe fn products<S: Simd, D: Dots<S>>(
    block: &Block<'_>,
    xs: &[&[f32]],
    steps: &[Step],
    out: *mut f32,
    stride: usize,
) {
    let Some(packed) = packed(block.matrix) else { return };
    let rows = Codes { packed, groups: Groups::of(packed, block.matrix.stride(), block.matrix.origin()) };
    // SAFETY: the ranges were checked by `stream`
    unsafe {
        match packed.coding.bits() {
            4 => all_rows::<S, D, 4>(rows, block, xs, steps, (out, stride)),
            _ => all_rows::<S, D, 8>(rows, block, xs, steps, (out, stride)),
        }
    }
}

/// A matrix of codes.
#[derive(Clone, Copy)]
struct Codes<'a> {
    packed: &'a Packed,
    groups: Groups,
}

impl Codes<'_> {
    /// Writes the scales and biases of sixteen rows from the group of column `col` on: `[groups, 16]` each.
    unsafe fn numbers(self, rows: &[usize; LANES], col: usize, scales: &mut [f32], biases: &mut [f32]) {
        let firsts = rows.map(|row| self.groups.index(row, col));
        // SAFETY: there is a scale and a bias for every group by `Matrix::new`
        unsafe {
            gather(&self.packed.scales, &firsts, scales);
            match &self.packed.biases {
                Some(numbers) => gather(numbers, &firsts, biases),
                None => biases.iter_mut().zip(scales).for_each(|(bias, scale)| *bias = -8.0 * *scale),
            }
        }
    }
}

/// Consecutive numbers from each of sixteen on: `[numbers, 16]`.
#[inline(always)]
unsafe fn gather(numbers: &Numbers, firsts: &[usize; LANES], to: &mut [f32]) {
    #[inline(always)]
    unsafe fn all<N: Number>(numbers: N, firsts: &[usize; LANES], to: &mut [f32]) {
        for (i, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            for lane in 0..LANES {
                // SAFETY: the caller's promise
                to[lane] = unsafe { numbers.at(firsts[lane] + i) };
            }
        }
    }
    // SAFETY: the caller's promise
    unsafe {
        match numbers.dtype {
            Dtype::Bf16 => all(Bf16::of(numbers), firsts, to),
            _ => all(Other::of(numbers), firsts, to),
        }
    }
}

#[inline(always)]
unsafe fn all_rows<S: Simd, D: Dots<S>, const BITS: usize>(
    codes: Codes<'_>,
    block: &Block<'_>,
    xs: &[&[f32]],
    steps: &[Step],
    (out, stride): (*mut f32, usize),
) {
    let group = codes.packed.coding.group();
    let size = xs.len() * LANES;
    let widest = steps.iter().map(|step| step.columns.len() / group * LANES).max().unwrap_or(0);
    let mut stack = Tensor::scratch(DEPTH, size);
    let mut numbers = Tensor::scratch(2, widest);
    for first in block.rows.clone().step_by(LANES) {
        let tall = LANES.min(block.rows.end - first);
        // the last row stands in for those after it
        let rows = std::array::from_fn(|i| first + i.min(tall - 1));
        let mut height = 0;
        for Step { columns, merges } in steps {
            let (scales, biases) = numbers.data_mut().split_at_mut(widest);
            let count = columns.len() / group * LANES;
            // SAFETY: the ranges were checked by `stream`
            unsafe {
                codes.numbers(&rows, columns.start, &mut scales[..count], &mut biases[..count]);
                leaf::<S, D, BITS>(codes.groups, &rows, xs, columns, (scales, biases), stack.row_mut(height));
            }
            for _ in 0..*merges {
                height -= 1;
                let (sums, rest) = stack.data_mut()[height * size..].split_at_mut(size);
                sums.iter_mut().zip(&rest[..size]).for_each(|(sum, value)| *sum += value);
            }
            height += 1;
        }
        for (t, sums) in stack.data()[..size].chunks_exact(LANES).enumerate() {
            // SAFETY: the caller's promise
            unsafe {
                let to = out.add(t * stride + first - block.rows.start);
                std::ptr::copy_nonoverlapping(sums.as_ptr(), to, tall);
            }
        }
    }
}

/// The products of sixteen rows over one leaf: `[xs, 16]`.
#[inline(always)]
unsafe fn leaf<S: Simd, D: Dots<S>, const BITS: usize>(
    groups: Groups,
    rows: &[usize; LANES],
    xs: &[&[f32]],
    columns: &Range<usize>,
    (scales, biases): (&[f32], &[f32]),
    sums: &mut [f32],
) {
    let all = xs.first().map_or(0, |x| self::columns(x.len()));
    sums.fill(0.0);
    for start in columns.clone().step_by(BLOCK) {
        // SAFETY: the ranges were checked by `stream`
        unsafe {
            let mut addresses = [std::ptr::null(); LANES];
            for lane in 0..LANES {
                addresses[lane] = groups.address(rows[lane], start);
            }
            if ((start - columns.start) * BITS / 8).is_multiple_of(LINE) {
                // rows lie one after the other: sixteen further down is what comes next
                for lane in 0..LANES {
                    S::prefetch(addresses[lane].wrapping_add(groups.row_bytes * LANES));
                }
            }
            let quads: [D::I; QUADS] = if BITS == 4 { D::nibbles(&addresses) } else { D::bytes(&addresses) };
            let group = (start - columns.start) / groups.columns() * LANES;
            let (scale, bias) = (S::load(scales.as_ptr().add(group)), S::load(biases.as_ptr().add(group)));
            for t in 0..xs.len() {
                let x = xs.get_unchecked(t);
                let code = x.as_ptr().cast::<i8>().add(start + if BITS == 4 { all } else { 0 });
                let numbers = x.as_ptr().add(all / 2 + start / BLOCK);
                let mut dot = D::zero();
                for quad in 0..QUADS {
                    dot = D::dot::<BITS>(dot, quads[quad], code.add(quad * 4));
                }
                let (scale_x, sum_x) = (S::splat(*numbers), S::splat(*numbers.add(all / BLOCK)));
                let sum = sums.as_mut_ptr().add(t * LANES);
                let acc = S::fma(D::values(dot), S::mul(scale, scale_x), S::load(sum));
                S::store(sum, S::fma(bias, sum_x, acc));
            }
        }
    }
}
