//! Products with several activation rows: weights are widened into scratch memory a few rows at a time, and the next ones fetched.
//! Whole sixteens of tokens are multiplied by [`super::turned`], what is left here.

use std::ops::Range;

use super::ahead::Later;
use super::arithmetic::Products;
use super::dot::{Cursor, LINE, tile, widen};
use super::least::Least;
use super::rows::{Place, Rows, ungrouped, with_rows};
use super::simd::Simd;
use super::simd::pairs::Pairs;
use super::stream::{Block, DEPTH, Out, merge};
use super::turned::{self, Tokens};
use crate::backend::Tensor;
use crate::partition::Step;

/// Rows that are widened at once: with the activations of four tokens they fit the first-level cache.
pub(super) const TALL: usize = 8;

/// [`TALL`] rows in scratch memory, a line of each by turns: where a step of a row is stands in an instruction.
#[derive(Clone, Copy)]
pub(super) struct WideRows<X> {
    start: *const X,
}

impl<X> From<*const X> for WideRows<X> {
    fn from(start: *const X) -> Self {
        Self { start }
    }
}

/// What the values of both kinds have in common: columns are those where a line begins, and after the last one there are zeros.
macro_rules! in_lines {
    () => {
        ungrouped!();
        #[inline(always)]
        fn address(self, row: usize, col: usize) -> *const u8 {
            self.start.wrapping_add(col * TALL).cast::<u8>().wrapping_add(row * LINE)
        }
        #[inline(always)]
        unsafe fn load_some<S: Simd>(self, place: Place, _count: usize, (): ()) -> S::V {
            // SAFETY: the caller's promise
            unsafe { self.load::<S>(place, ()) }
        }
    };
}

impl Rows for WideRows<f32> {
    const BITS: usize = 32 * TALL;
    in_lines!();
    #[inline(always)]
    unsafe fn load<S: Simd>(self, place: Place, (): ()) -> S::V {
        // SAFETY: inside the rows by the trait's contract
        unsafe { S::load(place.at.cast()) }
    }
}

impl Rows for WideRows<u16> {
    const BITS: usize = 16 * TALL;
    const DIRECT_PAIRS: bool = true;
    in_lines!();
    #[inline(always)]
    unsafe fn load<S: Simd>(self, place: Place, (): ()) -> S::V {
        // SAFETY: inside the rows by the trait's contract
        unsafe { S::load_bf16(place.at) }
    }
    #[inline(always)]
    unsafe fn load_pairs<S: Simd, P: Pairs<S>>(self, place: Place, (): ()) -> P::P {
        // SAFETY: as above
        unsafe { P::load(place.at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_some_pairs<S: Simd, P: Pairs<S>>(self, place: Place, _count: usize, (): ()) -> P::P {
        // SAFETY: as above
        unsafe { self.load_pairs::<S, P>(place, ()) }
    }
}

/// As [`super::stream::stream`].
#[inline(always)]
pub(super) unsafe fn widened<S: Simd, K: Products<S>>(
    block: &Block<'_>,
    xs: Tokens<'_, K::X>,
    least: Least,
    steps: &[Step],
    out: Out,
) {
    let widest = steps.iter().map(|step| step.columns.len().next_multiple_of(K::STEP)).max().unwrap_or(0);
    let mut memory = Tensor::scratch(TALL, widest);
    let scratch = memory.data_mut().as_mut_ptr().cast::<K::X>();
    let (sixteens, turned) = (xs.sixteens(), xs.whole());
    let rest = &xs.rows[turned..];
    let size = TALL * xs.rows.len();
    let mut stack = Tensor::scratch(DEPTH, size);
    let stack = stack.data_mut();
    for row in block.rows.clone().step_by(TALL) {
        let tall = TALL.min(block.rows.end - row);
        let (mut height, mut deep) = (0, 0);
        for (i, Step { columns, merges }) in steps.iter().enumerate() {
            let width = columns.len().next_multiple_of(K::STEP);
            let (to, to_rest) = stack[height * size..][..size].split_at_mut(turned * TALL);
            // SAFETY: the ranges were checked by `stream`
            unsafe {
                with_rows!(block.matrix, stored => for r in 0..tall {
                    widen::<S, K, _, TALL>(stored, (row + r, columns.start), columns.len(), scratch.add(r * K::STEP));
                });
                let mut later = Later::of(block, (row + TALL, TALL), &steps[i..=i]);
                if const { K::CAREFUL } && least.normal(K::least(scratch, TALL * width)) {
                    sixteens.products::<S, K::Normal>((scratch, width), deep, to, &mut later);
                    all_tokens::<S, K::Normal>(K::Wide::from(scratch), tall, rest, columns, to_rest, later);
                } else {
                    sixteens.products::<S, K>((scratch, width), deep, to, &mut later);
                    all_tokens::<S, K>(K::Wide::from(scratch), tall, rest, columns, to_rest, later);
                }
            }
            // SAFETY: the instruction set is available
            height = unsafe { merge::<S>(stack, height, *merges, size) };
            deep += width / K::STEP;
        }
        let out = out.from(0, row - block.rows.start);
        for (i, sums) in stack[..height * size].chunks_exact(size).enumerate() {
            let (sums, rest) = sums.split_at(turned * TALL);
            // SAFETY: the caller's promise
            unsafe {
                turned::put::<S>(sums, i, tall, out);
                for (t, sums) in rest.as_chunks::<TALL>().0.iter().enumerate() {
                    out.put::<TALL>(i, turned + t, sums, tall);
                }
            }
        }
    }
}

/// Runs the tiles of `tall` widened rows over all `xs`; sums go to `out`, `[xs, TALL]`.
#[inline(always)]
unsafe fn all_tokens<S: Simd, K: Products<S>>(
    w: K::Wide,
    tall: usize,
    xs: &[&[K::X]],
    cols: &Range<usize>,
    out: &mut [f32],
    mut later: Later,
) {
    let share = later.left.div_ceil((xs.len().div_ceil(S::TOKENS) * tall.div_ceil(4)).max(1));
    let mut t = 0;
    while t < xs.len() {
        let (xs, to) = (&xs[t..], &mut out[t * TALL..]);
        let mut row = 0;
        // SAFETY: the ranges were checked by `stream`
        t += unsafe {
            while row + 4 <= tall {
                later.fetch::<S>(share);
                some_tokens::<S, K, 4>(w, row, xs, cols, &mut to[row..]);
                row += 4;
            }
            while row < tall {
                some_tokens::<S, K, 1>(w, row, xs, cols, &mut to[row..]);
                row += 1;
            }
            xs.len().min(S::TOKENS)
        };
    }
}

/// A tile of `ROWS` rows and the first [`Simd::TOKENS`] of `xs`, or as many as there are.
#[inline(always)]
unsafe fn some_tokens<S: Simd, K: Products<S>, const ROWS: usize>(
    w: K::Wide,
    row: usize,
    xs: &[&[K::X]],
    cols: &Range<usize>,
    out: &mut [f32],
) {
    // SAFETY: the ranges were checked by `stream`
    unsafe {
        match xs.len().min(S::TOKENS) {
            4.. => tile_to::<S, K, ROWS, 4>(w, row, xs, cols, out),
            3 => tile_to::<S, K, ROWS, 3>(w, row, xs, cols, out),
            2 => tile_to::<S, K, ROWS, 2>(w, row, xs, cols, out),
            _ => tile_to::<S, K, ROWS, 1>(w, row, xs, cols, out),
        }
    }
}

/// A tile whose products go to `out`.
#[inline(always)]
unsafe fn tile_to<S: Simd, K: Products<S>, const ROWS: usize, const TOKENS: usize>(
    w: K::Wide,
    row: usize,
    xs: &[&[K::X]],
    cols: &Range<usize>,
    out: &mut [f32],
) {
    let mut cursor = Cursor::at(w, row, 0, K::STEP);
    // SAFETY: the ranges were checked by `stream`
    let sums = unsafe { tile::<S, K, K::Wide, ROWS, TOKENS>(w, &mut cursor, xs, cols, None) };
    for (t, sums) in sums.iter().enumerate() {
        out[t * TALL..][..ROWS].copy_from_slice(sums);
    }
}
