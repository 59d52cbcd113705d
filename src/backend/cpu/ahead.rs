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
        self.start.wrapping_add(row.wrapping_mul(self.row_bytes).wrapping_add(col * self.bits / 8))
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
    steps: &'a [Step],
    reach: Range<usize>,
    tall: usize,
    // how far ahead: whole rows if they are short, or columns of the same rows
    rows: usize,
    columns: usize,
    // where row 0 would lie among the block's rows, and among those that follow them from `end` on
    own: Strip,
    next: Option<Strip>,
    end: usize,
    // whether short rows follow each other in memory: then so do the lines that are asked for, whichever is read first
    in_order: bool,
}

impl<'a> Course<'a> {
    pub(super) fn of(block: &Block<'_>, steps: &'a [Step], tall: usize) -> Self {
        let (own, reach) = (Strip::of(block.matrix), reach(steps));
        let row_bytes = reach.len() * own.bits / 8;
        let bytes = (row_bytes * tall).max(1);
        let short = bytes <= 2 * DISTANCE;
        let (rows, columns) =
            if short { (DISTANCE.div_ceil(bytes) * tall, 0) } else { (0, DISTANCE / tall * 8 / own.bits) };
        let end = block.rows.end;
        let next = block.ahead(end).map(|(matrix, row)| (Strip::of(matrix), row));
        let next = next.filter(|(strip, _)| strip.row_bytes == own.row_bytes);
        let next = next.map(|(strip, row)| Strip { start: strip.address(row.wrapping_sub(end), 0), ..strip });
        Self { steps, reach, tall, rows, columns, own, next, end, in_order: short && row_bytes == own.row_bytes }
    }

    /// What is asked for while step `step` of the rows from `row` on is read; `before` is what is left of the step before.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, step: usize, before: Ahead) -> Ahead {
        if self.in_order && step > 0 {
            return before;
        }
        let (mut row, mut col) = (row + self.rows, self.steps[step].columns.start + self.columns);
        if col >= self.reach.end {
            (row, col) = (row + self.tall, col - self.reach.len());
        }
        let strip = if row < self.end { Some(self.own) } else { self.next };
        let Some(strip) = strip else { return Ahead::NOTHING };
        let (across, along) = if self.in_order { (LINE, self.tall * LINE) } else { (strip.row_bytes, LINE) };
        Ahead { line: strip.address(row, col), across, along }
    }
}

/// Lines that are asked for with those that are read, into the first-level cache: one a row each time.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    line: *const u8,
    // to the next row's line, and to that of the next time
    across: usize,
    along: usize,
}

/// A line that is in the cache.
static HERE: [u8; LINE] = [0; LINE];

impl Ahead {
    /// None that is not there already.
    pub(super) const NOTHING: Self = Self { line: HERE.as_ptr(), across: 0, along: 0 };

    /// Asks for a line for each of `ROWS` rows.
    #[inline(always)]
    pub(super) unsafe fn fetch<S: Simd, const ROWS: usize>(&mut self) {
        // sixteen offsets would take the registers that the rows' own need: constants or a sum take none
        if ROWS > 4 && self.across == LINE {
            for i in 0..ROWS {
                // SAFETY: a prefetch of any address is harmless
                unsafe { S::prefetch_once(self.line.wrapping_add(i * LINE)) };
            }
        } else {
            let mut line = self.line;
            for _ in 0..ROWS {
                // SAFETY: as above
                unsafe { S::prefetch_once(line) };
                line = line.wrapping_add(self.across);
            }
        }
        self.line = self.line.wrapping_add(self.along);
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
