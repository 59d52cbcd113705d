//! Matrix products: canonical leaves, the fixed tree, output rows shared out over the threads.

use std::cell::RefCell;
use std::ops::Range;

use super::Cpu;
use super::dot::leaf_products;
use crate::backend::Tensor;
use crate::error::{Error, Result};
use crate::partition::{Fold, halves};
use crate::weights::Matrix;

/// Output rows of one block: few when one token streams the weights, more when tokens share them.
const STREAM_ROWS: usize = 4;
const SHARED_ROWS: usize = 32;
/// Activation rows of one block.
const BLOCK_TOKENS: usize = 64;

thread_local! {
    static PARTIAL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A mutable buffer whose disjoint parts are written by several threads.
#[derive(Clone, Copy)]
pub(super) struct Shared(*mut f32, usize);

// SAFETY: the threads of one `Pool::run` write disjoint ranges, as every user of `part` promises
unsafe impl Sync for Shared {}
// SAFETY: as above
unsafe impl Send for Shared {}

impl Shared {
    pub(super) fn new(data: &mut [f32]) -> Self {
        Self(data.as_mut_ptr(), data.len())
    }

    /// # Safety
    /// No two live parts overlap, and the buffer outlives them.
    #[allow(clippy::mut_from_ref, reason = "the contract makes the parts disjoint")]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.1);
        // SAFETY: inside the buffer by the assertion, unaliased by the contract
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// `[tokens, in] × [out, in]ᵀ`: one `[tokens, out]` block per subtree of `fold`.
pub(super) fn linear(cpu: &Cpu, x: &Tensor, w: &Matrix, fold: &Fold) -> Result<Tensor> {
    check(x, w, fold)?;
    let (tokens, out) = (x.rows(), w.out_features());
    let mut y = Tensor::zeros(fold.roots.len() * tokens, out);
    let rows = if tokens < 8 { STREAM_ROWS } else { SHARED_ROWS };
    let blocks = out.div_ceil(rows);
    let blocks_per_task = (blocks / (cpu.pool.threads() * 8)).clamp(1, 64);
    let xs: Vec<&[f32]> = x.rows_iter().collect();
    let to = Shared::new(y.data_mut());
    cpu.pool.run(blocks.div_ceil(blocks_per_task), |task| {
        PARTIAL.with_borrow_mut(|buffer| {
            for block in task * blocks_per_task..((task + 1) * blocks_per_task).min(blocks) {
                let rows = block * rows..((block + 1) * rows).min(out);
                for (root, node) in fold.roots.iter().enumerate() {
                    for (at, xs) in xs.chunks(BLOCK_TOKENS).enumerate() {
                        let sums = subtree(cpu, w, &rows, xs, fold, node, buffer);
                        for (t, sums) in sums.chunks_exact(rows.len()).enumerate() {
                            let row = root * tokens + at * BLOCK_TOKENS + t;
                            // SAFETY: every task owns its output rows, that is, columns of `y`
                            let to = unsafe { to.part(row * out + rows.start..row * out + rows.end) };
                            to.copy_from_slice(sums);
                        }
                    }
                }
            }
        });
    });
    Ok(y)
}

/// Checks that activations, weight and leaves belong together.
fn check(x: &Tensor, w: &Matrix, fold: &Fold) -> Result<()> {
    let fits = x.cols() == w.in_features() && fold.width() == w.in_features();
    if fits || fold.roots.is_empty() {
        return Ok(());
    }
    Err(Error::msg(format!(
        "activations of {} columns and leaves of {} do not fit a [{}, {}] matrix",
        x.cols(),
        fold.width(),
        w.out_features(),
        w.in_features()
    )))
}

/// Sums the leaves under `node` in the order of the tree; returns `[xs, rows]`.
fn subtree<'b>(
    cpu: &Cpu,
    w: &Matrix,
    rows: &Range<usize>,
    xs: &[&[f32]],
    fold: &Fold,
    node: &Range<usize>,
    buffer: &'b mut Vec<f32>,
) -> &'b [f32] {
    let size = rows.len() * xs.len();
    buffer.resize(tree_values(node.len(), size), 0.0);
    fold_tree(node, buffer, size, &mut |leaf, out| {
        leaf_products(cpu.isa, w, rows.clone(), xs, fold.local_columns(leaf), out);
    });
    &buffer[..size]
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
