//! Matrix products: canonical leaves, the fixed tree, output rows shared out over the threads.

use std::ops::Range;

use super::Cpu;
use super::dot::{BLOCK_TOKENS, WIDEN_FROM};
use super::operands::{Operands, Rounded};
use super::simd::LANES;
use super::stream::{Block, Out, stream};
use crate::backend::{Tensor, check};
use crate::error::Result;
use crate::partition::{Fold, halves};
use crate::weights::Matrix;

/// Output rows of one block where a few tokens stream the weights.
const STREAM_ROWS: Range<usize> = 16..256;
/// Output rows of one block where many tokens share them.
const SHARED_ROWS: usize = 32;

/// A mutable buffer whose disjoint parts are written by several threads.
#[derive(Clone, Copy)]
pub(super) struct Shared<T = f32>(*mut T, usize);

// SAFETY: the threads of one `Pool::run` write disjoint ranges, as every user of `part` promises
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(data: &mut [T]) -> Self {
        Self(data.as_mut_ptr(), data.len())
    }

    /// # Safety
    /// Nobody else reads or writes what the caller does, and the buffer outlives it.
    pub(super) unsafe fn pointer(&self, at: usize) -> *mut T {
        assert!(at <= self.1);
        // SAFETY: inside the buffer, or at its end
        unsafe { self.0.add(at) }
    }

    /// # Safety
    /// No two live parts overlap, and the buffer outlives them.
    #[allow(clippy::mut_from_ref, reason = "the contract makes the parts disjoint")]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.1);
        // SAFETY: inside the buffer by the assertion, unaliased by the contract
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// `[tokens, in] × [out, in]ᵀ` of every matrix, all shared out at once: one `[tokens, out]` block per subtree of `fold`.
pub(super) fn linears(cpu: &Cpu, x: &Tensor, ws: &[&Matrix], fold: &Fold) -> Result<Vec<Tensor>> {
    ws.iter().try_for_each(|w| check::linear(x, w, fold))?;
    let tokens = x.rows();
    let few = tokens < WIDEN_FROM;
    let total: usize = ws.iter().map(|w| w.out_features()).sum();
    // so few rows that the last tasks end together, so many that taking one costs nothing beside it
    let rows = match few {
        true => (total / (cpu.pool.threads() * 8)).next_multiple_of(LANES).clamp(STREAM_ROWS.start, STREAM_ROWS.end),
        false => SHARED_ROWS,
    };
    let starts = |matrix: usize| (0..ws[matrix].out_features()).step_by(rows).map(move |row| (matrix, row));
    let blocks: Vec<(usize, usize)> = (0..ws.len()).flat_map(starts).collect();
    let mut ys: Vec<Tensor> = ws.iter().map(|w| Tensor::scratch(fold.roots.len() * tokens, w.out_features())).collect();
    let rounded = Rounded::of(cpu, x, ws.iter().copied());
    let operands = Operands::of(cpu, x, &rounded);
    let turned = operands.turned(cpu, fold);
    let turned = |root| turned.get(root).map_or(&[][..], Tensor::data);
    let to: Vec<Shared> = ys.iter_mut().map(|y| Shared::new(y.data_mut())).collect();
    cpu.pool.run(blocks.len(), |task| {
        let (matrix, start) = blocks[task];
        let (to, out) = (to[matrix], ws[matrix].out_features());
        let next = blocks.get(task + cpu.pool.threads()).map(|(matrix, row)| (ws[*matrix], *row));
        let block = Block { matrix: ws[matrix], rows: start..(start + rows).min(out), next };
        for root in 0..fold.roots.len() {
            operands.xs(0..tokens, ws[matrix]).with(turned(root)).chunks(BLOCK_TOKENS, |first, xs| {
                // SAFETY: every task owns its output rows, that is, columns of `y`
                let to = unsafe { to.pointer((root * tokens + first) * out + start) };
                // SAFETY: as above
                unsafe { stream(cpu.isa, &block, xs, fold.steps(root), Out { start: to, stride: out, apart: 0 }) };
            });
        }
    });
    Ok(ys)
}

/// How many values [`fold_tree`] needs for a tree of `leaves` leaves of `size` values: one vector a level, and one.
pub(super) fn tree_values(leaves: usize, size: usize) -> usize {
    (usize::BITS - leaves.leading_zeros() + 1) as usize * size
}

/// Sums a tree whose leaves are vectors of `size` values written by `leaf`; the sum is left at the front of `buffer`.
pub(super) fn fold_tree(node: &Range<usize>, buffer: &mut [f32], size: usize, leaf: &mut dyn FnMut(usize, &mut [f32])) {
    if node.len() == 1 {
        leaf(node.start, &mut buffer[..size]);
        return;
    }
    let (left, right) = halves(node);
    fold_tree(&left, buffer, size, leaf);
    let (sum, rest) = buffer.split_at_mut(size);
    fold_tree(&right, rest, size, leaf);
    for (sum, value) in sum.iter_mut().zip(&rest[..size]) {
        *sum += value;
    }
}
