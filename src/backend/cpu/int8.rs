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
use super::ahead::{Ahead, Course};
use super::dot::LINE;
use super::linear::Shared;
use super::packed::Groups;
use super::scales::{Bf16, Number, Other};
use super::simd::dots::{BLOCK, Dots, QUADS, Sixteen};
use super::simd::{LANES, Simd, dispatch};
use super::stream::{Block, DEPTH, Out, merge};
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

/// `x` as weights take it that are multiplied so: a row of [`row_values`] a token.
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
pub(super) unsafe fn products<S: Simd, D: Dots<S>>(block: &Block<'_>, xs: &[&[f32]], steps: &[Step], out: Out) {
    let Some(packed) = packed(block.matrix) else { return };
    let rows = Codes { packed, groups: Groups::of(packed, block.matrix.stride(), block.matrix.origin()) };
    // SAFETY: the ranges were checked by `stream`
    unsafe {
        match packed.coding.bits() {
            4 => all_rows::<S, D, 4>(rows, block, xs, steps, out),
            _ => all_rows::<S, D, 8>(rows, block, xs, steps, out),
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
    unsafe fn each<N: Number>(numbers: N, (first, next, rows): (usize, usize, usize), to: &mut [f32]) {
        for (i, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            for (lane, to) in to.iter_mut().enumerate().take(rows) {
                // SAFETY: the caller's promise
                *to = unsafe { numbers.at(first + lane * (next - first) + i) };
            }
        }
    }
    // SAFETY: the caller's promise
    unsafe {
        if numbers.dtype != Dtype::Bf16 {
            return each(Other::of(numbers), at, to);
        }
        let (numbers, (first, next, rows), count) = (Bf16::of(numbers), at, to.len() / LANES);
        if rows < LANES || count < 8 {
            return each(numbers, at, to);
        }
        let from = Sixteen { start: numbers.address(first), stride: (next - first) * 2 };
        // eight at a time; the last eight are whole, whichever of them were read before
        let mut done = 0;
        while done < count {
            let start = done.min(count - 8);
            Sixteen { start: from.row(LANES), ..from }.prefetch::<S>(start * 2);
            let words = D::words(from, start * 2);
            for i in 0..4 {
                let [even, odd] = D::bf16(words[i]);
                let to = to.as_mut_ptr().add((start + 2 * i) * LANES);
                S::store(to, even);
                S::store(to.add(LANES), odd);
            }
            done += 8;
        }
    }
}

/// Scales and biases of sixteen rows: those of a run of groups, because leaves may have one group and loads like eight.
struct Window {
    // [2, groups, 16]
    numbers: Tensor,
    // groups that fit, and that are there
    room: usize,
    there: Range<usize>,
}

impl Window {
    /// For leaves of up to `widest` groups.
    fn new(widest: usize) -> Self {
        let room = widest.max(16);
        Self { numbers: Tensor::scratch(2, room * LANES), room, there: 0..0 }
    }

    /// The scales and biases of `groups`, `[groups, 16]` each, of the `rows` rows from `start` on.
    #[inline(always)]
    unsafe fn at<S: Simd, D: Dots<S>>(
        &mut self,
        codes: Codes<'_>,
        (start, rows): (usize, usize),
        groups: Range<usize>,
        all: usize,
    ) -> [&[f32]; 2] {
        let (scales, biases) = self.numbers.data_mut().split_at_mut(self.room * LANES);
        if groups.start < self.there.start || groups.end > self.there.end {
            let first = groups.start.min(all.saturating_sub(self.room));
            self.there = first..all.min(first + self.room);
            let count = self.there.len() * LANES;
            let col = first * codes.packed.coding.group();
            // SAFETY: the caller's promise
            unsafe { codes.numbers::<S, D>((start, rows), col, [&mut scales[..count], &mut biases[..count]]) };
        }
        let first = (groups.start - self.there.start) * LANES;
        [&scales[first..], &biases[first..]]
    }
}

#[inline(always)]
unsafe fn all_rows<S: Simd, D: Dots<S>, const BITS: usize>(
    codes: Codes<'_>,
    block: &Block<'_>,
    xs: &[&[f32]],
    steps: &[Step],
    out: Out,
) {
    let group = codes.packed.coding.group();
    let size = xs.len() * LANES;
    let widest = steps.iter().map(|step| step.columns.len()).max().unwrap_or(0);
    let mut stack = Tensor::scratch(DEPTH, size);
    let stack = stack.data_mut();
    let mut window = Window::new(widest / group);
    let groups = block.matrix.in_features() / group;
    let rows = LANES.min(block.matrix.out_features());
    // rows of a matrix that has fewer than sixteen, and stand-ins for the others
    let mut copies = (rows < LANES).then(|| Tensor::zeros(LANES, widest * BITS / 32));
    let course = Course::of(block, steps, LANES);
    let mut ahead = Ahead::NOTHING;
    for first in block.rows.clone().step_by(LANES) {
        let tall = LANES.min(block.rows.end - first);
        // the last sixteen rows of the matrix are read whole, whoever has those before
        let start = first.min(block.matrix.out_features() - rows);
        let mut height = 0;
        window.there = 0..0;
        for (i, Step { columns, merges }) in steps.iter().enumerate() {
            ahead = course.at(first, i, ahead);
            let stored = codes.groups.sixteen(start, columns.start, BITS);
            // SAFETY: the ranges were checked by `stream`
            unsafe {
                let stored = match &mut copies {
                    Some(copies) => copied(stored, rows, columns.len() * BITS / 8, copies),
                    None => stored,
                };
                let numbers =
                    window.at::<S, D>(codes, (start, rows), columns.start / group..columns.end / group, groups);
                let sums = &mut stack[height * size..][..size];
                match xs {
                    [x] => leaf::<S, D, BITS, true>(stored, &[x], (columns, group), numbers, sums, &mut ahead),
                    _ => leaf::<S, D, BITS, false>(stored, xs, (columns, group), numbers, sums, &mut ahead),
                }
            }
            // SAFETY: the instruction set is available
            height = unsafe { merge::<S>(stack, height, *merges, size) };
        }
        let out = out.from(0, first - block.rows.start);
        for (i, sums) in stack[..height * size].chunks_exact(size).enumerate() {
            for (t, sums) in sums.chunks_exact(LANES).enumerate() {
                // SAFETY: the caller's promise
                unsafe { out.put::<LANES>(i, t, &sums[first - start..], tall) };
            }
        }
    }
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

/// The products of sixteen rows over one leaf: `[xs, 16]`. The sums of a single `x` stay in a register.
#[inline(always)]
unsafe fn leaf<S: Simd, D: Dots<S>, const BITS: usize, const SINGLE: bool>(
    rows: Sixteen,
    xs: &[&[f32]],
    (columns, group): (&Range<usize>, usize),
    [scales, biases]: [&[f32]; 2],
    sums: &mut [f32],
    ahead: &mut Ahead,
) {
    let all = xs.first().map_or(0, |x| self::columns(x.len()));
    let turned = if BITS == 4 { all } else { 0 };
    if !SINGLE {
        sums.fill(0.0);
    }
    // SAFETY: the instruction set is available
    let mut single = unsafe { S::splat(0.0) };
    for start in columns.clone().step_by(BLOCK) {
        // SAFETY: the ranges were checked by `stream`
        unsafe {
            let at = (start - columns.start) * BITS / 8;
            if (start * BITS / 8).is_multiple_of(LINE) {
                ahead.fetch::<S, LANES>();
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
            let numbers = [S::load(scales.as_ptr().add(number)), S::load(biases.as_ptr().add(number))];
            if SINGLE {
                single = block_sum::<S, D, BITS>(single, &quads, xs.get_unchecked(0), (start, turned, all), numbers);
                continue;
            }
            for t in 0..xs.len() {
                let sum = sums.as_mut_ptr().add(t * LANES);
                let x = xs.get_unchecked(t);
                S::store(sum, block_sum::<S, D, BITS>(S::load(sum), &quads, x, (start, turned, all), numbers));
            }
        }
    }
    if SINGLE {
        // SAFETY: there are sums for one `x`
        unsafe { S::store(sums.as_mut_ptr(), single) };
    }
}

/// Adds the products of a block, the columns from `start` on, to `sum`.
#[inline(always)]
unsafe fn block_sum<S: Simd, D: Dots<S>, const BITS: usize>(
    sum: S::V,
    quads: &[D::I; QUADS],
    x: &[f32],
    (start, turned, all): (usize, usize, usize),
    [scale, bias]: [S::V; 2],
) -> S::V {
    // SAFETY: the caller's promise
    unsafe {
        let code = x.as_ptr().cast::<i8>().add(start + turned);
        let numbers = x.as_ptr().add(all / 2 + start / BLOCK);
        // two chains, because each product waits for the sum before it
        let (mut even, mut odd) = (D::zero(), D::zero());
        for i in 0..QUADS / 2 {
            even = D::dot::<BITS>(even, quads[2 * i], code.add(i * 8));
            odd = D::dot::<BITS>(odd, quads[2 * i + 1], code.add(i * 8 + 4));
        }
        let (scale_x, sum_x) = (S::splat(*numbers), S::splat(*numbers.add(all / BLOCK)));
        S::fma(bias, sum_x, S::fma(D::sums(even, odd), S::mul(scale, scale_x), sum))
    }
}
