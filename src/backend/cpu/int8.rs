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
use super::simd::dots::{BLOCK, Dots, QUADS, Sixteen};
use super::simd::{LANES, Simd, dispatch};
use super::stream::{Block, DEPTH, merge};
use crate::backend::{Arithmetic, Tensor};
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

/// `x` as those of `ws` take it that are multiplied so, if the arithmetic has it and one is: a row of [`row_values`] a token.
pub(super) fn quantised<'a>(cpu: &Cpu, x: &Tensor, mut ws: impl Iterator<Item = &'a Matrix>) -> Option<Tensor> {
    (cpu.arithmetic == Arithmetic::Fast && ws.any(takes)).then(|| quantise_all(cpu, x))
}

fn quantise_all(cpu: &Cpu, x: &Tensor) -> Tensor {
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
    /// Writes the scales and biases of the sixteen rows from `row` on, or as many as there are, from the group of column `col`
    /// on: `[groups, 16]` each.
    #[inline(always)]
    unsafe fn numbers<S: Simd, D: Dots<S>>(self, (row, rows): (usize, usize), col: usize, to: [&mut [f32]; 2]) {
        let [scales, biases] = to;
        // SAFETY: there is a scale and a bias for every group by `Matrix::new`
        unsafe {
            let at = (self.groups.index(row, col), self.groups.index(row + 1, col), rows);
            gather::<S, D>(&self.packed.scales, at, scales);
            match &self.packed.biases {
                Some(numbers) => gather::<S, D>(numbers, at, biases),
                None => biases.iter_mut().zip(scales).for_each(|(bias, scale)| *bias = -8.0 * *scale),
            }
        }
    }
}

/// Consecutive numbers of `rows` rows, which start at `first`, `next` and so on: `[numbers, 16]`.
#[inline(always)]
unsafe fn gather<S: Simd, D: Dots<S>>(numbers: &Numbers, at: (usize, usize, usize), to: &mut [f32]) {
    #[inline(always)]
    unsafe fn each<N: Number>(numbers: N, (first, next, rows): (usize, usize, usize), start: usize, to: &mut [f32]) {
        for (i, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate().skip(start) {
            for (lane, to) in to.iter_mut().enumerate().take(rows) {
                // SAFETY: the caller's promise
                *to = unsafe { numbers.at(first + lane * (next - first) + i) };
            }
        }
    }
    // SAFETY: the caller's promise
    unsafe {
        if numbers.dtype != Dtype::Bf16 {
            return each(Other::of(numbers), at, 0, to);
        }
        let (numbers, (first, next, rows)) = (Bf16::of(numbers), at);
        let mut done = 0;
        if rows == LANES {
            let from = Sixteen { start: numbers.address(first), stride: (next - first) * 2 };
            // eight at a time
            while (done + 8) * LANES <= to.len() {
                let words = D::words(from, done * 2);
                for i in 0..4 {
                    let [even, odd] = D::bf16(words[i]);
                    let to = to.as_mut_ptr().add((done + 2 * i) * LANES);
                    S::store(to, even);
                    S::store(to.add(LANES), odd);
                }
                done += 8;
            }
        }
        each(numbers, at, done, to);
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
    let widest = steps.iter().map(|step| step.columns.len()).max().unwrap_or(0);
    let mut stack = Tensor::scratch(DEPTH, size);
    let mut numbers = Tensor::scratch(2, widest / group * LANES);
    let rows = LANES.min(block.matrix.out_features());
    // rows of a matrix that has fewer than sixteen, and stand-ins for the others
    let mut copies = (rows < LANES).then(|| Tensor::zeros(LANES, widest * BITS / 32));
    for first in block.rows.clone().step_by(LANES) {
        let tall = LANES.min(block.rows.end - first);
        // the last sixteen rows of the matrix are read whole, whoever has those before
        let start = first.min(block.matrix.out_features() - rows);
        let mut height = 0;
        for Step { columns, merges } in steps {
            let (scales, biases) = numbers.data_mut().split_at_mut(widest / group * LANES);
            let count = columns.len() / group * LANES;
            let stored = codes.groups.sixteen(start, columns.start);
            let ahead = ahead(block, first + LANES, columns.start);
            // SAFETY: the ranges were checked by `stream`
            unsafe {
                let stored = match &mut copies {
                    Some(copies) => copied(stored, rows, columns.len() * BITS / 8, copies),
                    None => stored,
                };
                codes.numbers::<S, D>((start, rows), columns.start, [&mut scales[..count], &mut biases[..count]]);
                leaf::<S, D, BITS>([stored, ahead], xs, (columns, group), [scales, biases], stack.row_mut(height));
            }
            height = merge(&mut stack, height, *merges, size);
        }
        for (t, sums) in stack.data()[..size].chunks_exact(LANES).enumerate() {
            // SAFETY: the caller's promise
            unsafe {
                let to = out.add(t * stride + first - block.rows.start);
                std::ptr::copy_nonoverlapping(sums[first - start..].as_ptr(), to, tall);
            }
        }
    }
}

/// The sixteen rows that come next, if they are packed too.
fn ahead(block: &Block<'_>, row: usize, col: usize) -> Sixteen {
    let next = block.ahead(row).and_then(|(matrix, row)| Some((matrix, row, packed(matrix)?)));
    next.map_or(Sixteen { start: std::ptr::null(), stride: 0 }, |(matrix, row, packed)| {
        Groups::of(packed, matrix.stride(), matrix.origin()).sixteen(row, col)
    })
}

/// Copies `bytes` bytes of `rows` rows.
unsafe fn copied(from: Sixteen, rows: usize, bytes: usize, to: &mut Tensor) -> Sixteen {
    let stride = to.cols() * 4;
    let start = to.data_mut().as_mut_ptr().cast::<u8>();
    for row in 0..rows {
        // SAFETY: the caller's promise; rows of `to` have at least as many bytes
        unsafe { std::ptr::copy_nonoverlapping(from.row(row), start.add(row * stride), bytes) };
    }
    Sixteen { start, stride }
}

/// The products of sixteen rows over one leaf: `[xs, 16]`.
#[inline(always)]
unsafe fn leaf<S: Simd, D: Dots<S>, const BITS: usize>(
    [rows, ahead]: [Sixteen; 2],
    xs: &[&[f32]],
    (columns, group): (&Range<usize>, usize),
    [scales, biases]: [&[f32]; 2],
    sums: &mut [f32],
) {
    let all = xs.first().map_or(0, |x| self::columns(x.len()));
    sums.fill(0.0);
    for start in columns.clone().step_by(BLOCK) {
        // SAFETY: the ranges were checked by `stream`
        unsafe {
            let at = (start - columns.start) * BITS / 8;
            if at.is_multiple_of(LINE) {
                for lane in 0..LANES {
                    S::prefetch(ahead.row(lane).wrapping_add(at));
                }
            }
            let [a, b, c, d] = D::words(rows, at);
            let quads: [D::I; QUADS] = if BITS == 4 {
                let ([a, e], [b, f], [c, g], [d, h]) = (D::nibbles(a), D::nibbles(b), D::nibbles(c), D::nibbles(d));
                [a, e, b, f, c, g, d, h]
            } else {
                let [e, f, g, h] = D::words(rows, at + 16);
                [a, b, c, d, e, f, g, h]
            };
            let number = (start - columns.start) / group * LANES;
            let (scale, bias) = (S::load(scales.as_ptr().add(number)), S::load(biases.as_ptr().add(number)));
            for t in 0..xs.len() {
                let x = xs.get_unchecked(t);
                let code = x.as_ptr().cast::<i8>().add(start + if BITS == 4 { all } else { 0 });
                let numbers = x.as_ptr().add(all / 2 + start / BLOCK);
                // two chains, because each product waits for the sum before it
                let (mut even, mut odd) = (D::zero(), D::zero());
                for i in 0..QUADS / 2 {
                    even = D::dot::<BITS>(even, quads[2 * i], code.add(i * 8));
                    odd = D::dot::<BITS>(odd, quads[2 * i + 1], code.add(i * 8 + 4));
                }
                let (scale_x, sum_x) = (S::splat(*numbers), S::splat(*numbers.add(all / BLOCK)));
                let sum = sums.as_mut_ptr().add(t * LANES);
                let acc = S::fma(D::sums(even, odd), S::mul(scale, scale_x), S::load(sum));
                S::store(sum, S::fma(bias, sum_x, acc));
            }
        }
    }
}
