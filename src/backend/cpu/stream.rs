//! Products of a block of rows with activation rows: weights are read once, and the tree is summed on the way.
#![allow(clippy::needless_range_loop, reason = "register tiles are clearest, and unrolled, by index")]

use std::ops::Range;

use super::ahead::{Ahead, Course};
use super::arithmetic::{Exact, InF32, Products, Xs};
use super::dot::{BLOCK_TOKENS, Cursor, WIDEN_FROM, tile};
use super::least::Least;
use super::rows::{Rows, with_rows};
use super::simd::{Isa, LANES, Simd, dispatch, dispatch_dots, dispatch_fast};
use super::turned::Tokens;
use super::wide::widened;
use crate::backend::Tensor;
use crate::partition::{MAX_LEAVES, Step};
use crate::weights::Matrix;

/// Sums that wait for their sibling, and the one being made: a tree of [`MAX_LEAVES`] leaves, or as many leaves on their own.
pub(super) const DEPTH: usize = MAX_LEAVES.ilog2() as usize + 3;

/// Leaves of fewer columns are not riffled: their sums take longer than is won.
const RIFFLE_FROM: usize = 256;

/// Rows of a matrix, and where the thread that has them is likely to go on.
#[derive(Clone)]
pub(super) struct Block<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) rows: Range<usize>,
    pub(super) next: Option<(&'a Matrix, usize)>,
}

impl<'a> Block<'a> {
    /// The row that stands at `row` when the block's rows are followed by those from `next` on.
    pub(super) fn ahead(&self, row: usize) -> Option<(&'a Matrix, usize)> {
        match self.next {
            _ if row < self.rows.end => Some((self.matrix, row)),
            Some((matrix, first)) => Some((matrix, first + row - self.rows.end)),
            None => None,
        }
    }
}

/// Where products go: `[xs, stride]`, of which the first columns are written, one a row; and as much, `apart` values on, for each
/// further sum that is left when all steps are merged.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub(super) start: *mut f32,
    pub(super) stride: usize,
    pub(super) apart: usize,
}

impl Out {
    #[inline(always)]
    pub(super) fn from(self, x: usize, row: usize) -> Self {
        Self { start: self.start.wrapping_add(x * self.stride + row), ..self }
    }

    /// Writes the first `count` of the sums of `ROWS` rows with `x`, the `sum`th that is left.
    #[inline(always)]
    pub(super) unsafe fn put<const ROWS: usize>(self, sum: usize, x: usize, sums: &[f32], count: usize) {
        // SAFETY: the caller's promise
        unsafe {
            let to = self.start.add(sum * self.apart + x * self.stride);
            match sums.first_chunk::<ROWS>() {
                Some(whole) if count == ROWS => to.cast::<[f32; ROWS]>().write_unaligned(*whole),
                _ => put_some(to, &sums[..count]),
            }
        }
    }
}

/// Not inlined, or the two ways to write are made one, which asks how many values there are.
#[inline(never)]
unsafe fn put_some(to: *mut f32, sums: &[f32]) {
    // SAFETY: the caller's promise
    unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), to, sums.len()) }
}

/// Writes the products of the rows of `block` with every `x`, summed over `steps`.
///
/// # Safety
/// `out` is valid for that, and nobody else reads or writes those values.
pub(super) unsafe fn stream(isa: Isa, block: &Block<'_>, xs: Xs<'_>, steps: &[Step], out: Out) {
    let reach = steps.iter().map(|step| step.columns.end).max().unwrap_or(0);
    assert!(block.rows.end <= block.matrix.out_features() && reach <= block.matrix.in_features());
    assert!(xs.reach(reach) && xs.len() <= BLOCK_TOKENS);
    if xs.len() < WIDEN_FROM {
        // SAFETY: the instruction set is one of `Isa::available`; all ranges were checked just above
        let done = unsafe { with_rows!(block.matrix, stored => stored_rows(isa, stored, block, xs, steps, out)) };
        if done {
            return;
        }
    }
    match xs {
        // SAFETY: see above
        Xs::F32(xs) => unsafe {
            dispatch!(
                isa,
                exact_widened(block: &Block<'_>, xs: Tokens<'_, f32>, steps: &[Step], out: Out)
            );
        },
        // SAFETY: see above
        Xs::Bf16(xs, least) => unsafe {
            let least = Least::all(least);
            dispatch_fast!(
                isa,
                widened(block: &Block<'_>, xs: Tokens<'_, u16>, least: Least, steps: &[Step], out: Out)
            );
        },
        // SAFETY: see above
        Xs::Int8(xs) => unsafe {
            use super::int8::products;
            dispatch_dots!(
                isa,
                products(block: &Block<'_>, xs: &[&[f32]], steps: &[Step], out: Out)
            );
        },
    }
}

#[inline(always)]
unsafe fn exact_widened<S: Simd>(block: &Block<'_>, xs: Tokens<'_, f32>, steps: &[Step], out: Out) {
    // SAFETY: the ranges were checked by `stream`
    unsafe { widened::<S, Exact>(block, xs, Least::default(), steps, out) }
}

/// Adds vectors of `size` sums that are complete, from the one at `height` on, each to the one below it, `merges` times; returns
/// how high the stack is then.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn merge<S: Simd>(stack: &mut [f32], mut height: usize, merges: usize, size: usize) -> usize {
    for _ in 0..merges {
        height -= 1;
        let (sums, rest) = stack[height * size..].split_at_mut(size);
        let ((sums, last), (values, rest)) = (sums.as_chunks_mut::<LANES>(), rest[..size].as_chunks::<LANES>());
        for (sum, value) in sums.iter_mut().zip(values) {
            // SAFETY: sixteen values each
            unsafe { S::store(sum.as_mut_ptr(), S::add(S::load(sum.as_ptr()), S::load(value.as_ptr()))) };
        }
        last.iter_mut().zip(rest).for_each(|(sum, value)| *sum += value);
    }
    height + 1
}

/// From how many tokens on rows of `R` are widened first: sooner where registers hold the sums of one token and each would unpack
/// the weights again.
fn widen_from<R: Rows>(isa: Isa) -> usize {
    if R::BITS < 16 && isa != Isa::Avx512 { 2 } else { WIDEN_FROM }
}

/// Reads the weights as they are stored, if rows of `R` can be read so.
///
/// A function for each format, because one of a megabyte takes a compiler minutes.
#[inline(never)]
unsafe fn stored_rows<R: Rows>(isa: Isa, w: R, block: &Block<'_>, xs: Xs<'_>, steps: &[Step], out: Out) -> bool {
    match xs {
        // SAFETY: the caller's promise
        Xs::F32(Tokens { rows: xs, .. }) if R::DIRECT && xs.len() < widen_from::<R>(isa) => unsafe {
            dispatch!(
                isa,
                exact[R: Rows](w: R, block: &Block<'_>, xs: &[&[f32]], steps: &[Step], out: Out)
            );
        },
        // SAFETY: the caller's promise
        Xs::Bf16(Tokens { rows: xs, .. }, least) if R::DIRECT_PAIRS => unsafe {
            let least = Least::all(least);
            dispatch_fast!(
                isa,
                direct[R: Rows](w: R, block: &Block<'_>, xs: &[&[u16]], least: Least, steps: &[Step], out: Out)
            );
        },
        _ => return false,
    }
    true
}

#[inline(always)]
unsafe fn exact<S: Simd, R: Rows>(w: R, block: &Block<'_>, xs: &[&[f32]], steps: &[Step], out: Out) {
    let long = steps.iter().all(|step| step.columns.len() >= RIFFLE_FROM);
    if const { S::RIFFLES && R::RIFFLED && R::DIRECT } && long {
        // SAFETY: the instruction set is available
        let riffled = unsafe { riffled::<S>(xs, steps) };
        let mut rows: [&[f32]; WIDEN_FROM] = [&[]; WIDEN_FROM];
        rows.iter_mut().zip(riffled.rows_iter()).for_each(|(to, row)| *to = row);
        // SAFETY: as below
        return unsafe { direct::<S, InF32<true>, R>(w, block, &rows[..xs.len()], Least::default(), steps, out) };
    }
    // SAFETY: the ranges were checked by `stream`
    unsafe { direct::<S, Exact, R>(w, block, xs, Least::default(), steps, out) }
}

/// The columns of `steps` of every `x`, all whole sixteens, each in the order of [`Simd::riffle`].
#[inline(always)]
unsafe fn riffled<S: Simd>(xs: &[&[f32]], steps: &[Step]) -> Tensor {
    let reach = steps.iter().map(|step| step.columns.end).max().unwrap_or(0);
    let mut riffled = Tensor::scratch(xs.len(), reach);
    for (x, to) in xs.iter().zip(riffled.data_mut().chunks_exact_mut(reach.max(1))) {
        for (x, to) in x.as_chunks::<LANES>().0.iter().zip(to.as_chunks_mut::<LANES>().0) {
            // SAFETY: sixteen values each
            unsafe { S::store(to.as_mut_ptr(), S::riffle(S::load(x.as_ptr()))) };
        }
    }
    riffled
}

/// How many rows are read at a time: four, or two where few registers have to hold what scales them too.
const fn tall<S: Simd, R: Rows>() -> usize {
    if S::TOKENS == 1 && R::BITS < 16 { 2 } else { 4 }
}

/// All rows, [`tall`] at a time. What is not read so is not compiled either.
#[inline(always)]
unsafe fn direct<S: Simd, K: Products<S>, R: Rows>(
    w: R,
    block: &Block<'_>,
    xs: &[&[K::X]],
    least: Least,
    steps: &[Step],
    out: Out,
) {
    if const { if K::PAIRS { R::DIRECT_PAIRS } else { R::DIRECT } } {
        let rows = &block.rows;
        let course = &Course::of(block, steps, tall::<S, R>());
        let mut row = rows.start;
        while row < rows.end {
            // SAFETY: the ranges were checked by `stream`
            unsafe {
                let out = out.from(0, row - rows.start);
                row += if const { tall::<S, R>() == 2 } {
                    match rows.end - row {
                        2.. => some::<S, K, R, 2>(w, row, xs, least, steps, out, course),
                        _ => some::<S, K, R, 1>(w, row, xs, least, steps, out, course),
                    }
                } else {
                    match rows.end - row {
                        4.. => some::<S, K, R, 4>(w, row, xs, least, steps, out, course),
                        _ => some::<S, K, R, 1>(w, row, xs, least, steps, out, course),
                    }
                };
            }
        }
    }
}

/// `ROWS` rows, multiplied as the least of their weights and of the activations allow; returns `ROWS`.
#[inline(always)]
unsafe fn some<S: Simd, K: Products<S>, R: Rows, const ROWS: usize>(
    w: R,
    row: usize,
    xs: &[&[K::X]],
    least: Least,
    steps: &[Step],
    out: Out,
    course: &Course<'_>,
) -> usize {
    // SAFETY: the ranges were checked by `stream`
    unsafe {
        if const { K::CAREFUL } {
            let mut weights = Least::NONE;
            for (row, Step { columns, .. }) in (row..row + ROWS).flat_map(|row| steps.iter().map(move |s| (row, s))) {
                weights = weights.and(K::least(w.address(row, columns.start).cast(), columns.len()));
            }
            if least.normal(weights) {
                all::<S, K::Normal, R, ROWS>(w, row, xs, steps, out, course);
                return ROWS;
            }
        }
        all::<S, K, R, ROWS>(w, row, xs, steps, out, course);
    }
    ROWS
}

/// `ROWS` rows for all tokens: after the first few the weights are in the first-level cache.
#[inline(always)]
unsafe fn all<S: Simd, K: Products<S>, R: Rows, const ROWS: usize>(
    w: R,
    row: usize,
    xs: &[&[K::X]],
    steps: &[Step],
    out: Out,
    course: &Course<'_>,
) {
    let mut t = 0;
    while t < xs.len() {
        // SAFETY: the ranges were checked by `stream`
        unsafe {
            let (xs, out, course) = (&xs[t..], out.from(t, 0), (course, t == 0));
            t += match xs.len().min(S::TOKENS) {
                4.. => tree::<S, K, R, ROWS, 4>(w, row, xs, steps, out, course),
                3 => tree::<S, K, R, ROWS, 3>(w, row, xs, steps, out, course),
                2 => tree::<S, K, R, ROWS, 2>(w, row, xs, steps, out, course),
                _ => tree::<S, K, R, ROWS, 1>(w, row, xs, steps, out, course),
            };
        }
    }
}

/// `ROWS` × `TOKENS` products over all leaves; returns `TOKENS`.
#[inline(always)]
unsafe fn tree<S: Simd, K: Products<S>, R: Rows, const ROWS: usize, const TOKENS: usize>(
    w: R,
    row: usize,
    xs: &[&[K::X]],
    steps: &[Step],
    out: Out,
    (course, first): (&Course<'_>, bool),
) -> usize {
    let mut stack = [[[0.0f32; ROWS]; TOKENS]; DEPTH];
    let mut height = 0;
    let mut ahead = Ahead::NOTHING;
    // leaves follow each other
    let mut cursor = Cursor::at(w, row, steps.first().map_or(0, |step| step.columns.start), K::STEP);
    for (i, Step { columns, merges }) in steps.iter().enumerate() {
        if first {
            ahead = course.at(row, i, ahead);
        }
        // SAFETY: the ranges were checked by `stream`
        stack[height] = unsafe { tile::<S, K, R, ROWS, TOKENS>(w, &mut cursor, xs, columns, Some(&mut ahead)) };
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
    for (i, sums) in stack[..height].iter().enumerate() {
        for t in 0..TOKENS {
            // SAFETY: the caller's promise
            unsafe { out.put::<ROWS>(i, t, &sums[t], ROWS) };
        }
    }
    TOKENS
}
