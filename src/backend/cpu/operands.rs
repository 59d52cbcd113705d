//! Activations as the weights that they meet take them.

use std::ops::Range;

use super::Cpu;
use super::arithmetic::{Products, Xs};
use super::dot::widen;
use super::int8;
use super::least::Least;
use super::linear::Shared;
use super::rows::F32Rows;
use super::simd::pairs::PAIRED;
use super::simd::{Simd, dispatch_fast};
use super::turned::{self, Tokens};
use crate::backend::{Arithmetic, Tensor};
use crate::partition::Fold;
use crate::weights::Matrix;

/// Rows that are rounded in one task.
const ROWS: usize = 4;

/// Activations rounded, where the arithmetic and the weights ask for it.
pub(super) struct Rounded {
    // two in the place of an f32, and the least value of each row
    bf16: Option<(Tensor, Vec<Least>)>,
    int8: Option<Tensor>,
}

impl Rounded {
    /// `x` as the weights `ws` take it.
    pub(super) fn of<'a>(cpu: &Cpu, x: &Tensor, ws: impl Iterator<Item = &'a Matrix>) -> Self {
        let mut kinds = [false; 2];
        if cpu.arithmetic == Arithmetic::Fast {
            ws.for_each(|w| kinds[usize::from(int8::takes(w))] = true);
        }
        Self { bf16: kinds[0].then(|| rounded(cpu, x)), int8: kinds[1].then(|| int8::quantised(cpu, x)) }
    }
}

/// Rows of activations, and the same rounded.
pub(super) struct Operands<'a> {
    arithmetic: Arithmetic,
    exact: Vec<&'a [f32]>,
    bf16: Vec<&'a [u16]>,
    least: Vec<Least>,
    int8: Vec<&'a [f32]>,
}

impl<'a> Operands<'a> {
    pub(super) fn of(cpu: &Cpu, x: &'a Tensor, rounded: &'a Rounded) -> Self {
        let rows = |pairs: &'a Tensor| bytemuck::cast_slice(pairs.data()).chunks_exact(x.cols().max(1)).take(x.rows());
        Self {
            arithmetic: cpu.arithmetic,
            exact: x.rows_iter().collect(),
            bf16: rounded.bf16.iter().flat_map(|(pairs, _)| rows(pairs)).collect(),
            least: rounded.bf16.iter().flat_map(|(_, least)| least.iter().copied()).collect(),
            int8: rounded.int8.iter().flat_map(Tensor::rows_iter).collect(),
        }
    }

    /// The rows that `order` names.
    pub(super) fn chosen(&self, order: &[usize]) -> Self {
        Self {
            arithmetic: self.arithmetic,
            exact: named(&self.exact, order),
            bf16: named(&self.bf16, order),
            least: named(&self.least, order),
            int8: named(&self.int8, order),
        }
    }

    /// The rows `rows` as they meet `w`.
    pub(super) fn xs(&self, rows: Range<usize>, w: &Matrix) -> Xs<'_> {
        match self.arithmetic {
            Arithmetic::Exact => Xs::F32(Tokens::plain(&self.exact[rows])),
            Arithmetic::Fast if int8::takes(w) => Xs::Int8(&self.int8[rows]),
            Arithmetic::Fast => Xs::Bf16(Tokens::plain(&self.bf16[rows.clone()]), &self.least[rows]),
        }
    }

    /// All rows turned, for each root of `fold`: see [`turned::roots`].
    pub(super) fn turned(&self, cpu: &Cpu, fold: &Fold) -> Vec<Tensor> {
        match self.arithmetic {
            Arithmetic::Exact => turned::roots(cpu, &self.exact, fold),
            Arithmetic::Fast => turned::roots(cpu, &self.bf16, fold),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.exact.len()
    }
}

fn named<T: Copy>(rows: &[T], order: &[usize]) -> Vec<T> {
    order.iter().filter_map(|row| rows.get(*row).copied()).collect()
}

/// Activations rounded to bf16, two in the place of an f32: `[tokens, columns]`, and the least of each token.
fn rounded(cpu: &Cpu, x: &Tensor) -> (Tensor, Vec<Least>) {
    let mut pairs = Tensor::scratch(1, x.data().len().div_ceil(2));
    let mut least = vec![Least::default(); x.rows()];
    let values: &mut [u16] = bytemuck::cast_slice_mut(pairs.data_mut());
    let (to, to_least, columns) = (Shared::new(values), Shared::new(&mut least), x.cols());
    cpu.pool.run(x.rows().div_ceil(ROWS), |task| {
        for row in task * ROWS..((task + 1) * ROWS).min(x.rows()) {
            let from = x.row(row);
            // SAFETY: every task writes its own rows
            let to = unsafe { to.part(row * columns..(row + 1) * columns) };
            // SAFETY: as above
            let least = unsafe { &mut to_least.part(row..row + 1)[0] };
            // SAFETY: the instruction set is available, both slices have one length
            unsafe { dispatch_fast!(cpu.isa, round_row(from: &[f32], to: &mut [u16], least: &mut Least)) };
        }
    });
    (pairs, least)
}

#[inline(always)]
unsafe fn round_row<S: Simd, K: Products<S, X = u16>>(from: &[f32], to: &mut [u16], least: &mut Least) {
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
    // SAFETY: inside the slice
    *least = unsafe { K::least(to.as_ptr(), to.len()) };
}
