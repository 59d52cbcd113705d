//! Matrix products: canonical leaves, the fixed tree, output rows shared out over the threads.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use super::Cpu;
use super::arithmetic::{Products, Xs};
use super::dot::{WIDEN_FROM, leaf_products, widen};
use super::rows::F32Rows;
use super::simd::pairs::PAIRED;
use super::simd::{Simd, dispatch_fast};
use super::stream::stream;
use crate::backend::{Arithmetic, Tensor, check};
use crate::error::Result;
use crate::partition::{Fold, halves};
use crate::weights::Matrix;

/// Output rows of one block where a few tokens stream the weights.
const STREAM_ROWS: Range<usize> = 16..256;
/// Output rows of one block where many tokens share them.
const SHARED_ROWS: usize = 32;
/// Activation rows of one block.
const BLOCK_TOKENS: usize = 64;

thread_local! {
    static PARTIAL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    // activations of the call before, to be written over
    static ROUNDED: Cell<Vec<u16>> = const { Cell::new(Vec::new()) };
}

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

/// A run of rows of one matrix.
struct Block {
    matrix: usize,
    rows: Range<usize>,
}

/// `[tokens, in] × [out, in]ᵀ` of every matrix, all shared out at once: one `[tokens, out]` block per subtree of `fold`.
pub(super) fn linears(cpu: &Cpu, x: &Tensor, ws: &[&Matrix], fold: &Fold) -> Result<Vec<Tensor>> {
    ws.iter().try_for_each(|w| check::linear(x, w, fold))?;
    let tokens = x.rows();
    let few = tokens < WIDEN_FROM;
    let total: usize = ws.iter().map(|w| w.out_features()).sum();
    // so few rows that the last tasks end together, so many that taking one costs nothing beside it
    let rows = match few {
        true => (total / (cpu.pool.threads() * 8)).next_multiple_of(4).clamp(STREAM_ROWS.start, STREAM_ROWS.end),
        false => SHARED_ROWS,
    };
    let blocks: Vec<Block> = (0..ws.len())
        .flat_map(|matrix| {
            let out = ws[matrix].out_features();
            (0..out).step_by(rows).map(move |start| Block { matrix, rows: start..(start + rows).min(out) })
        })
        .collect();
    let mut ys: Vec<Tensor> = ws.iter().map(|w| Tensor::scratch(fold.roots.len() * tokens, w.out_features())).collect();
    let rows_f32: Vec<&[f32]> = x.rows_iter().collect();
    let rounded = (cpu.arithmetic == Arithmetic::Fast).then(|| rounded(cpu, x, ROUNDED.take()));
    let rows_bf16: Vec<&[u16]> =
        rounded.iter().flat_map(|values| values.chunks_exact(x.cols().max(1))).take(tokens).collect();
    let xs = if rounded.is_some() { Xs::Bf16(&rows_bf16) } else { Xs::F32(&rows_f32) };
    let to: Vec<Shared> = ys.iter_mut().map(|y| Shared::new(y.data_mut())).collect();
    cpu.pool.run(blocks.len(), |task| {
        let Block { matrix, rows } = &blocks[task];
        let (w, to, out) = (ws[*matrix], to[*matrix], ws[*matrix].out_features());
        for root in 0..fold.roots.len() {
            if few {
                // SAFETY: every task owns its output rows, that is, columns of `y`
                let first = unsafe { to.pointer(root * tokens * out + rows.start) };
                // SAFETY: as above
                unsafe { stream(cpu.isa, w, rows.clone(), xs, fold.steps(root), (first, out)) };
            } else {
                shared(cpu, w, rows, xs, (fold, root), to);
            }
        }
    });
    drop(rows_bf16);
    if let Some(values) = rounded {
        ROUNDED.set(values);
    }
    Ok(ys)
}

/// The rows `rows` for many tokens, whose activations stay in the caches a block at a time.
fn shared(cpu: &Cpu, w: &Matrix, rows: &Range<usize>, xs: Xs<'_>, (fold, root): (&Fold, usize), to: Shared) {
    let (out, tokens) = (w.out_features(), xs.len());
    PARTIAL.with_borrow_mut(|buffer| {
        xs.chunks(BLOCK_TOKENS, |first, block| {
            let sums = subtree(cpu, w, rows, block, fold, &fold.roots[root], buffer);
            for (t, sums) in sums.chunks_exact(rows.len()).enumerate() {
                let row = root * tokens + first + t;
                // SAFETY: every task owns its output rows, that is, columns of `y`
                let to = unsafe { to.part(row * out + rows.start..row * out + rows.end) };
                to.copy_from_slice(sums);
            }
        });
    });
}

/// Activations rounded to bf16 in a buffer that is there already: `[tokens, columns]`.
fn rounded(cpu: &Cpu, x: &Tensor, mut values: Vec<u16>) -> Vec<u16> {
    values.resize(x.data().len(), 0);
    let run = x.cols().max(PAIRED) * 4;
    let (to, all) = (Shared::new(&mut values), x.data());
    cpu.pool.run(all.len().div_ceil(run), |task| {
        let range = task * run..((task + 1) * run).min(all.len());
        let from = &all[range.clone()];
        // SAFETY: every task writes its own run of `values`
        let to = unsafe { to.part(range) };
        // SAFETY: the instruction set is available, both slices have one length
        unsafe { dispatch_fast!(cpu.isa, round_all(from: &[f32], to: &mut [u16])) };
    });
    values
}

#[inline(always)]
unsafe fn round_all<S: Simd, K: Products<S, X = u16>>(from: &[f32], to: &mut [u16]) {
    let start = from.as_ptr();
    let rows = F32Rows { start: start.cast(), stride: from.len() };
    let whole = from.len() / K::STEP * K::STEP;
    let mut rest = [0u16; PAIRED];
    // SAFETY: the caller's promise; the last step goes to a buffer of its own
    unsafe {
        widen::<S, K, _>(rows, (0, 0), whole, to.as_mut_ptr());
        widen::<S, K, _>(rows, (0, whole), from.len() - whole, rest.as_mut_ptr());
    }
    to[whole..].copy_from_slice(&rest[..from.len() - whole]);
}

/// Sums the leaves under `node` in the order of the tree; returns `[xs, rows]`.
fn subtree<'b>(
    cpu: &Cpu,
    w: &Matrix,
    rows: &Range<usize>,
    xs: Xs<'_>,
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
