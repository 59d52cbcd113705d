//! Matrix products: canonical leaves, the fixed tree, output rows shared out over the threads.

use std::ops::Range;

use super::Cpu;
use super::arithmetic::{Products, Xs};
use super::dot::{BLOCK_TOKENS, WIDEN_FROM, widen};
use super::int8;
use super::rows::F32Rows;
use super::simd::pairs::PAIRED;
use super::simd::{LANES, Simd, dispatch_fast};
use super::stream::{Block, Out, stream};
use super::turned::{self, Tokens};
use crate::backend::{Arithmetic, Tensor, check};
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
    let fast = cpu.arithmetic == Arithmetic::Fast;
    let quantised = int8::quantised(cpu, x, ws.iter().copied());
    let rounded = (fast && !ws.iter().all(|w| int8::takes(w))).then(|| rounded(cpu, x));
    let rows_f32: Vec<&[f32]> = quantised.as_ref().unwrap_or(x).rows_iter().collect();
    let rows_bf16: Vec<&[u16]> =
        rounded.iter().flat_map(|values| as_bf16(values).chunks_exact(x.cols().max(1))).take(tokens).collect();
    let turned = if fast { turned::roots(cpu, &rows_bf16, fold) } else { turned::roots(cpu, &rows_f32, fold) };
    let turned = |root| turned.get(root).map_or(&[][..], Tensor::data);
    let xs = |w, root: usize| match fast {
        false => Xs::F32(Tokens { rows: &rows_f32, turned: turned(root) }),
        true if int8::takes(w) => Xs::Int8(&rows_f32),
        true => Xs::Bf16(Tokens { rows: &rows_bf16, turned: turned(root) }),
    };
    let to: Vec<Shared> = ys.iter_mut().map(|y| Shared::new(y.data_mut())).collect();
    cpu.pool.run(blocks.len(), |task| {
        let (matrix, start) = blocks[task];
        let (to, out) = (to[matrix], ws[matrix].out_features());
        let next = blocks.get(task + cpu.pool.threads()).map(|(matrix, row)| (ws[*matrix], *row));
        let block = Block { matrix: ws[matrix], rows: start..(start + rows).min(out), next };
        for root in 0..fold.roots.len() {
            xs(ws[matrix], root).chunks(BLOCK_TOKENS, |first, xs| {
                // SAFETY: every task owns its output rows, that is, columns of `y`
                let to = unsafe { to.pointer((root * tokens + first) * out + start) };
                // SAFETY: as above
                unsafe { stream(cpu.isa, &block, xs, fold.steps(root), Out { start: to, stride: out, apart: 0 }) };
            });
        }
    });
    Ok(ys)
}

fn as_bf16(pairs: &Tensor) -> &[u16] {
    bytemuck::cast_slice(pairs.data())
}

/// Activations rounded to bf16, two in the place of an f32: `[tokens, columns]`.
fn rounded(cpu: &Cpu, x: &Tensor) -> Tensor {
    let mut pairs = Tensor::scratch(1, x.data().len().div_ceil(2));
    let values: &mut [u16] = bytemuck::cast_slice_mut(pairs.data_mut());
    let run = x.cols().max(PAIRED) * 4;
    let (to, all) = (Shared::new(values), x.data());
    cpu.pool.run(all.len().div_ceil(run), |task| {
        let range = task * run..((task + 1) * run).min(all.len());
        let from = &all[range.clone()];
        // SAFETY: every task writes its own run of `values`
        let to = unsafe { to.part(range) };
        // SAFETY: the instruction set is available, both slices have one length
        unsafe { dispatch_fast!(cpu.isa, round_all(from: &[f32], to: &mut [u16])) };
    });
    pairs
}

#[inline(always)]
unsafe fn round_all<S: Simd, K: Products<S, X = u16>>(from: &[f32], to: &mut [u16]) {
    let start = from.as_ptr();
    let rows = F32Rows { start: start.cast(), stride: from.len() };
    let whole = from.len() / K::STEP * K::STEP;
    let mut rest = [0u16; PAIRED];
    // SAFETY: the caller's promise; the last step goes to a buffer of its own
    unsafe {
        widen::<S, K, _, 1>(rows, (0, 0), whole, to.as_mut_ptr());
        widen::<S, K, _, 1>(rows, (0, whole), from.len() - whole, rest.as_mut_ptr());
    }
    to[whole..].copy_from_slice(&rest[..from.len() - whole]);
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
