//! A row-major f32 activation in host-visible memory.

use std::cell::RefCell;
use std::ops::Range;

use crate::error::{Error, Result};

/// Buffers that a thread keeps for its next tensors: a token needs those of the one before.
const KEPT: usize = 32;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of `len` values, of which those that a former tensor left are as they were.
fn buffer(len: usize) -> Vec<f32> {
    let fits = |free: &[Vec<f32>]| {
        let large = free.iter().enumerate().filter(|(_, buffer)| buffer.capacity() >= len);
        large.min_by_key(|(_, buffer)| buffer.capacity()).map(|(at, _)| at)
    };
    // during the end of a thread there are none
    let found = FREE.try_with(|free| {
        let mut free = free.borrow_mut();
        fits(&free).map(|at| free.swap_remove(at))
    });
    let mut buffer = found.ok().flatten().unwrap_or_else(|| Vec::with_capacity(len));
    buffer.resize(len, 0.0);
    buffer
}

/// Activations `[rows, cols]`: f32, row-major, in memory that the host can read.
#[derive(Debug, PartialEq)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

impl Clone for Tensor {
    fn clone(&self) -> Self {
        let mut copy = Self::scratch(self.rows, self.cols);
        copy.data.copy_from_slice(&self.data);
        copy
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if data.capacity() > 0 && free.len() < KEPT {
                free.push(data);
            }
        });
    }
}

impl Tensor {
    /// `[rows, cols]` of unspecified values, for what is written whole.
    pub fn scratch(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: buffer(rows * cols) }
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
        Ok(Self { rows, cols, data })
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
    pub fn head_part(&self, run: usize, from: usize, width: usize) -> Self {
        let heads = self.data.chunks_exact(run).map(|head| &head[from..from + width]);
        Self::joined(self.rows, self.cols / run * width, heads)
    }

    /// Copies runs of columns, one beside the other.
    pub fn columns(&self, runs: &[Range<usize>]) -> Self {
        let cols = runs.iter().map(Range::len).sum();
        Self::joined(self.rows, cols, self.rows_iter().flat_map(|row| runs.iter().map(|run| &row[run.clone()])))
    }

    /// Joins tensors of `rows` rows side by side.
    pub fn beside(rows: usize, parts: &[&Self]) -> Self {
        let cols = parts.iter().map(|part| part.cols).sum();
        Self::joined(rows, cols, (0..rows).flat_map(|row| parts.iter().map(move |part| part.row(row))))
    }

    /// Joins every run of `widths.0` columns with the run of `widths.1` columns of `other` that has its place.
    pub fn beside_by_head(&self, other: &Self, widths: (usize, usize)) -> Self {
        let cols = self.cols + other.cols;
        let heads = self.data.chunks_exact(widths.0).zip(other.data.chunks_exact(widths.1));
        Self::joined(self.rows, cols, heads.flat_map(|(own, other)| [own, other]))
    }

    /// Copies the named rows.
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        Self::joined(rows.len(), self.cols, rows.iter().map(|row| self.row(*row)))
    }

    /// Copies `parts`, which are `[rows, cols]` together, one after the other.
    fn joined<'a>(rows: usize, cols: usize, parts: impl Iterator<Item = &'a [f32]>) -> Self {
        let mut tensor = Self::scratch(rows, cols);
        let mut rest = &mut tensor.data[..];
        for part in parts {
            let (to, after) = rest.split_at_mut(part.len());
            to.copy_from_slice(part);
            rest = after;
        }
        tensor
    }

    /// Gives the values away.
    pub fn into_vec(mut self) -> Vec<f32> {
        std::mem::take(&mut self.data)
    }
}
