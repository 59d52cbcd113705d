//! A row-major f32 activation, and how new ones are put together from parts of others.

use std::cell::RefCell;
use std::ops::Range;

use super::{Backend, Lines, Memory};
use crate::error::{Error, Result};

/// Buffers that a thread keeps for its next tensors: a token needs those of the one before.
const KEPT: usize = 32;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of `len` values, of which those that a former tensor left are as they were.
fn buffer(len: usize) -> Lines {
    let room = Lines::room(len);
    let fits = |free: &[Vec<f32>]| {
        let large = free.iter().enumerate().filter(|(_, buffer)| buffer.capacity() >= room);
        large.min_by_key(|(_, buffer)| buffer.capacity()).map(|(at, _)| at)
    };
    // during the end of a thread there are none
    let found = FREE.try_with(|free| {
        let mut free = free.borrow_mut();
        fits(&free).map(|at| free.swap_remove(at))
    });
    Lines::within(found.ok().flatten().unwrap_or_else(|| Vec::with_capacity(room)), len)
}

/// Activations `[rows, cols]`: f32, row-major, in memory that the host can read.
#[derive(Debug)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    data: Memory,
}

/// Equal runs of columns of rows (or of parts of rows), copied from one tensor to another.
#[derive(Debug, Clone)]
pub struct Piece<'a> {
    /// Where they are.
    pub from: &'a Tensor,
    /// The first value of the first run, and the distance from run to run: there, and where they go.
    pub starts: (usize, usize),
    /// As `starts`.
    pub strides: (usize, usize),
    /// Values of a run.
    pub width: usize,
    /// Runs.
    pub count: usize,
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        (self.rows, self.cols) == (other.rows, other.cols) && self.data() == other.data()
    }
}

impl Clone for Tensor {
    /// A copy in the host's memory.
    fn clone(&self) -> Self {
        let mut copy = Self::scratch(self.rows, self.cols);
        copy.data.copy_from_slice(&self.data);
        copy
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        let Memory::Host(data) = &mut self.data else { return };
        let data = std::mem::take(data).into_memory();
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if data.capacity() > 0 && free.len() < KEPT {
                free.push(data);
            }
        });
    }
}

impl Tensor {
    /// `[rows, cols]` of unspecified values in the host's memory, for what is written whole.
    pub fn scratch(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: Memory::Host(buffer(rows * cols)) }
    }

    /// `[rows, cols]` in `memory`, which has room for them.
    pub(super) fn within(rows: usize, cols: usize, memory: Memory) -> Self {
        Self { rows, cols, data: memory }
    }

    /// Where the values are.
    pub(super) fn memory(&self) -> &Memory {
        &self.data
    }

    /// Returns zeros of `[rows, cols]`.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        let mut tensor = Self::scratch(rows, cols);
        tensor.data.fill(0.0);
        tensor
    }

    /// Wraps `data` as `[rows, cols]`.
    ///
    /// # Errors
    /// If `data` does not hold exactly that many values.
    pub fn from_vec(rows: usize, cols: usize, data: Vec<f32>) -> Result<Self> {
        if data.len() != rows * cols {
            return Err(Error::msg(format!("{} values are not a [{rows}, {cols}] tensor", data.len())));
        }
        Ok(Self { rows, cols, data: Memory::Host(data.into()) })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All values, row after row.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// All values, row after row.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// Row `row`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }

    /// Every row, in order.
    pub fn rows_iter(&self) -> impl Iterator<Item = &[f32]> {
        (0..self.rows).map(|row| self.row(row))
    }

    /// Row `row`.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.cols..][..self.cols]
    }

    /// Copies, out of every run of `run` columns, the `width` columns from `from` on, and joins them.
    pub fn head_part(&self, backend: &dyn Backend, run: usize, from: usize, width: usize) -> Self {
        let count = self.rows * self.cols / run;
        let piece = Piece { from: self, starts: (from, 0), strides: (run, width), width, count };
        backend.arrange(self.rows, self.cols / run * width, &[piece])
    }

    /// Copies runs of columns, one beside the other.
    pub fn columns(&self, backend: &dyn Backend, runs: &[Range<usize>]) -> Self {
        let cols = runs.iter().map(Range::len).sum();
        let mut at = 0;
        let pieces = runs.iter().map(|run| {
            at += run.len();
            let starts = (run.start, at - run.len());
            Piece { from: self, starts, strides: (self.cols, cols), width: run.len(), count: self.rows }
        });
        backend.arrange(self.rows, cols, &pieces.collect::<Vec<_>>())
    }

    /// Joins tensors of `rows` rows side by side.
    pub fn beside(backend: &dyn Backend, rows: usize, parts: &[&Self]) -> Self {
        let cols = parts.iter().map(|part| part.cols).sum();
        let mut at = 0;
        let pieces = parts.iter().map(|part| {
            at += part.cols;
            let starts = (0, at - part.cols);
            Piece { from: part, starts, strides: (part.cols, cols), width: part.cols, count: rows }
        });
        backend.arrange(rows, cols, &pieces.collect::<Vec<_>>())
    }

    /// Joins every run of `widths.0` columns with the run of `widths.1` columns of `other` that has its place.
    pub fn beside_by_head(&self, backend: &dyn Backend, other: &Self, widths: (usize, usize)) -> Self {
        let (count, to) = (self.rows * self.cols / widths.0, widths.0 + widths.1);
        let own = Piece { from: self, starts: (0, 0), strides: (widths.0, to), width: widths.0, count };
        let others = Piece { from: other, starts: (0, widths.0), strides: (widths.1, to), width: widths.1, count };
        backend.arrange(self.rows, self.cols + other.cols, &[own, others])
    }

    /// Copies the named rows.
    pub fn select_rows(&self, backend: &dyn Backend, rows: &[usize]) -> Self {
        let piece = |(to, row): (usize, &usize)| {
            let starts = (row * self.cols, to * self.cols);
            Piece { from: self, starts, strides: (self.cols, self.cols), width: self.cols, count: 1 }
        };
        backend.arrange(rows.len(), self.cols, &rows.iter().enumerate().map(piece).collect::<Vec<_>>())
    }

    /// Gives the values away.
    pub fn into_vec(mut self) -> Vec<f32> {
        match &mut self.data {
            Memory::Host(data) => std::mem::take(data).into_vec(),
            Memory::Device(memory) => memory.values().to_vec(),
        }
    }
}
