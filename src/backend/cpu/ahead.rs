//! Which lines of memory are asked for before they are read: those of the weights that a thread reads next.

use std::ops::Range;

use super::dot::LINE;
use super::simd::Simd;
use super::stream::Block;
use crate::partition::Step;
use crate::weights::Matrix;

/// Bytes from what is read to what is asked for. They wait in the first-level cache, of which the smallest have 32 KiB.
const DISTANCE: usize = 8 << 10;

/// Where the values of a matrix lie.
#[derive(Clone, Copy)]
struct Strip {
    start: *const u8,
    row_bytes: usize,
    bits: usize,
    rows: usize,
}

impl Strip {
    fn of(matrix: &Matrix) -> Self {
        let (bits, (row, col)) = (matrix.bits(), matrix.origin());
        let row_bytes = matrix.stride() * bits / 8;
        let stored = Self { start: matrix.start(), row_bytes, bits, rows: matrix.out_features() };
        Self { start: stored.address(row, col), ..stored }
    }

    fn address(&self, row: usize, col: usize) -> *const u8 {
        self.start.wrapping_add(row * self.row_bytes + col * self.bits / 8)
    }
}

/// The columns from the first step's to the last one's.
fn reach(steps: &[Step]) -> Range<usize> {
    match (steps.first(), steps.last()) {
        (Some(first), Some(last)) => first.columns.start..last.columns.end,
        _ => 0..0,
    }
}

/// What is asked for while a few tokens read the rows of a block, `tall` at a time and of those one step after the other.
///
/// Where the hardware follows what is read, its streams end with every row, or are as many as the rows of a tile: a processor alone
/// then reads memory at three quarters of its speed.
pub(super) struct Course<'a> {
    block: &'a Block<'a>,
    steps: &'a [Step],
    reach: Range<usize>,
    strip: Strip,
    tall: usize,
    // how far ahead: whole rows if they are short, or columns of the same rows
    rows: usize,
    columns: usize,
    // whether short rows follow each other in memory: then so do the lines that are asked for, whichever is read first
    in_order: bool,
}

impl<'a> Course<'a> {
    pub(super) fn of(block: &'a Block<'a>, steps: &'a [Step], tall: usize) -> Self {
        let (strip, reach) = (Strip::of(block.matrix), reach(steps));
        let row_bytes = reach.len() * strip.bits / 8;
        let bytes = (row_bytes * tall).max(1);
        let short = bytes <= 2 * DISTANCE;
        let (rows, columns) =
            if short { (DISTANCE.div_ceil(bytes) * tall, 0) } else { (0, DISTANCE / tall * 8 / strip.bits) };
        Self { block, steps, reach, tall, rows, columns, in_order: short && row_bytes == strip.row_bytes, strip }
    }

    /// What is asked for while step `step` of the rows from `row` on is read; `before` is what is left of the step before.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, step: usize, before: Ahead) -> Ahead {
        if self.in_order && step > 0 { before } else { self.start(row, self.steps[step].columns.start) }
    }

    fn start(&self, row: usize, col: usize) -> Ahead {
        let own = self.strip.address(row, col);
        let (mut row, mut col) = (row + self.rows, col + self.columns);
        if col >= self.reach.end {
            (row, col) = (row + self.tall, col - self.reach.len());
        }
        let Some((matrix, row)) = self.block.ahead(row) else { return Ahead::NOTHING };
        let strip = if std::ptr::eq(matrix, self.block.matrix) { self.strip } else { Strip::of(matrix) };
        if row >= strip.rows || strip.row_bytes != self.strip.row_bytes {
            return Ahead::NOTHING;
        }
        let line = strip.address(row, col);
        Ahead { line, apart: line.addr().wrapping_sub(own.addr()), in_order: self.in_order }
    }
}

/// Lines that are asked for with those that are read, into the first-level cache.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    line: *const u8,
    apart: usize,
    in_order: bool,
}

impl Ahead {
    /// None but those that are read.
    pub(super) const NOTHING: Self = Self { line: std::ptr::null(), apart: 0, in_order: false };

    /// Asks for a line for each that is read at `rows`.
    #[inline(always)]
    pub(super) unsafe fn fetch<S: Simd, const ROWS: usize>(&mut self, rows: [*const u8; ROWS]) {
        if self.in_order {
            for i in 0..ROWS {
                // SAFETY: a prefetch of any address is harmless
                unsafe { S::prefetch_once(self.line.wrapping_add(i * LINE)) };
            }
            self.line = self.line.wrapping_add(ROWS * LINE);
        } else {
            for row in rows {
                // SAFETY: as above
                unsafe { S::prefetch_once(row.wrapping_add(self.apart)) };
            }
        }
    }
}

/// The lines of a few rows that many tokens read later, asked for some at a time, into the second-level cache.
pub(super) struct Later {
    line: *const u8,
    // from the end of a row to the next one's start
    gap: usize,
    lines_per_row: usize,
    left_in_row: usize,
    pub(super) left: usize,
}

impl Later {
    /// The columns of `steps` of the `rows` rows that come at `row` of the block, or after it.
    pub(super) fn of(block: &Block<'_>, (row, rows): (usize, usize), steps: &[Step]) -> Self {
        let Some((matrix, row)) = block.ahead(row) else {
            return Self { line: std::ptr::null(), gap: 0, lines_per_row: 1, left_in_row: 1, left: 0 };
        };
        let (strip, columns) = (Strip::of(matrix), reach(steps));
        let lines_per_row = (columns.len() * strip.bits / 8).div_ceil(LINE).max(1);
        let gap = strip.row_bytes.wrapping_sub(lines_per_row * LINE);
        let left = strip.rows.saturating_sub(row).min(rows) * lines_per_row;
        Self { line: strip.address(row, columns.start), gap, lines_per_row, left_in_row: lines_per_row, left }
    }

    #[inline(always)]
    pub(super) unsafe fn fetch<S: Simd>(&mut self, count: usize) {
        for _ in 0..count.min(self.left) {
            // SAFETY: a prefetch of any address is harmless
            unsafe { S::prefetch(self.line) };
            self.line = self.line.wrapping_add(LINE);
            self.left_in_row -= 1;
            if self.left_in_row == 0 {
                self.line = self.line.wrapping_add(self.gap);
                self.left_in_row = self.lines_per_row;
            }
        }
        self.left -= count.min(self.left);
    }
}
