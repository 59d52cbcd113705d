//! Operations on each row alone: norms, activations, gates, sums, softmax routing, rotary embedding.

use super::Cpu;
use super::dot::dot;
use super::linear::Shared;
use super::math::{load_some, sigmoid, silu, store_some, zip};
use super::simd::{Isa, LANES, Simd, dispatch};
use crate::backend::{Piece, RopeStyle, Tensor};

/// Values below which sharing the rows out costs more than it saves.
const SERIAL_BELOW: usize = 32 * 1024;

/// Calls `f(i, chunk)` for every run of `width` values of `data`, on several threads if there is enough to do.
pub(super) fn for_each_run(cpu: &Cpu, data: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    share_runs(cpu, data.len(), data, width, f);
}

/// As [`for_each_run`], where so many `values` are looked at for all runs.
pub(super) fn share_runs(
    cpu: &Cpu,
    values: usize,
    data: &mut [f32],
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) {
    let runs = data.len() / width.max(1);
    if values < SERIAL_BELOW {
        data.chunks_exact_mut(width.max(1)).enumerate().for_each(|(i, run)| f(i, run));
        return;
    }
    let per_task = runs.div_ceil(cpu.pool.threads() * 4).max(1);
    let shared = Shared::new(data);
    cpu.pool.run(runs.div_ceil(per_task), |task| {
        for i in task * per_task..((task + 1) * per_task).min(runs) {
            // SAFETY: every run belongs to one task
            f(i, unsafe { shared.part(i * width..(i + 1) * width) });
        }
    });
}

/// x · rsqrt(mean x² + eps) · weight, over runs of `weight.len()` values.
pub(super) fn rms_norm(cpu: &Cpu, x: &Tensor, weight: &[f32], eps: f32) -> Tensor {
    let mut y = x.clone();
    for_each_run(cpu, y.data_mut(), weight.len(), |_, run| norm_run(cpu.isa, run, weight, eps));
    y
}

/// RMSNorm, then times silu(gate): runs of `weight.len()` values.
pub(super) fn rms_norm_gated(cpu: &Cpu, x: &Tensor, gate: &Tensor, weight: &[f32], eps: f32) -> Tensor {
    let mut y = x.clone();
    let width = weight.len();
    for_each_run(cpu, y.data_mut(), width, |i, run| {
        norm_run(cpu.isa, run, weight, eps);
        let gate = &gate.data()[i * width..][..width];
        // SAFETY: the instruction set is available, both slices have `width` values
        unsafe { dispatch!(cpu.isa, mul_silu(run: &mut [f32], gate: &[f32])) };
    });
    y
}

fn norm_run(isa: Isa, run: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(run.len(), weight.len());
    // SAFETY: the instruction set is available, both slices have one length
    unsafe { dispatch!(isa, norm(run: &mut [f32], weight: &[f32], eps: f32)) }
}

#[inline(always)]
unsafe fn norm<S: Simd>(run: &mut [f32], weight: &[f32], eps: f32) {
    // SAFETY: the callers' checks
    unsafe {
        let squares = dot::<S>(run.as_ptr(), run.as_ptr(), run.len());
        let scale = S::splat(1.0 / (squares / run.len() as f32 + eps).sqrt());
        zip!(S, run, weight, |x, w| S::mul(S::mul(x, scale), w));
    }
}

#[inline(always)]
unsafe fn mul_silu<S: Simd>(x: &mut [f32], gate: &[f32]) {
    // SAFETY: the callers' checks
    unsafe { zip!(S, x, gate, |x, gate| S::mul(x, silu::<S>(gate))) }
}

#[inline(always)]
unsafe fn mul_sigmoid<S: Simd>(x: &mut [f32], gate: &[f32]) {
    // SAFETY: the callers' checks
    unsafe { zip!(S, x, gate, |x, gate| S::mul(x, sigmoid::<S>(gate))) }
}

/// gate ← silu(gate) · up.
///
/// # Safety
/// As [`Simd`]; both have one length.
#[inline(always)]
pub(super) unsafe fn silu_mul<S: Simd>(gate: &mut [f32], up: &[f32]) {
    // SAFETY: the callers' checks
    unsafe { zip!(S, gate, up, |gate, up| S::mul(silu::<S>(gate), up)) }
}

#[inline(always)]
unsafe fn add_to<S: Simd>(x: &mut [f32], y: &[f32]) {
    // SAFETY: the callers' checks
    unsafe { zip!(S, x, y, |x, y| S::add(x, y)) }
}

/// silu(gate) · up.
pub(super) fn swiglu(cpu: &Cpu, mut gate: Tensor, up: &Tensor) -> Tensor {
    assert_eq!((gate.rows(), gate.cols()), (up.rows(), up.cols()));
    let width = gate.cols();
    for_each_run(cpu, gate.data_mut(), width, |i, gate| {
        let up = up.row(i);
        // SAFETY: the instruction set is available, the shapes are equal
        unsafe { dispatch!(cpu.isa, silu_mul(gate: &mut [f32], up: &[f32])) };
    });
    gate
}

/// x · sigmoid(gate).
pub(super) fn gate_sigmoid(cpu: &Cpu, x: &mut Tensor, gate: &Tensor) {
    assert_eq!((x.rows(), x.cols()), (gate.rows(), gate.cols()));
    let width = x.cols();
    for_each_run(cpu, x.data_mut(), width, |i, x| {
        let gate = gate.row(i);
        // SAFETY: as above
        unsafe { dispatch!(cpu.isa, mul_sigmoid(x: &mut [f32], gate: &[f32])) };
    });
}

/// Copies `pieces` to their places.
pub(super) fn arrange(rows: usize, cols: usize, pieces: &[Piece<'_>]) -> Tensor {
    let mut y = Tensor::scratch(rows, cols);
    for Piece { from, starts, strides, width, count } in pieces {
        for run in 0..*count {
            let (at, to) = (starts.0 + run * strides.0, starts.1 + run * strides.1);
            y.data_mut()[to..to + width].copy_from_slice(&from.data()[at..at + width]);
        }
    }
    y
}

/// x + bias.
pub(super) fn add_bias(cpu: &Cpu, x: &mut Tensor, bias: &[f32]) {
    assert_eq!(x.cols(), bias.len());
    for_each_run(cpu, x.data_mut(), bias.len(), |_, x| {
        // SAFETY: the instruction set is available, the widths are equal
        unsafe { dispatch!(cpu.isa, add_to(x: &mut [f32], bias: &[f32])) };
    });
}

/// x + y.
pub(super) fn add(cpu: &Cpu, x: &mut Tensor, y: &Tensor) {
    assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()));
    let width = x.cols();
    for_each_run(cpu, x.data_mut(), width, |i, x| {
        let y = y.row(i);
        // SAFETY: as above
        unsafe { dispatch!(cpu.isa, add_to(x: &mut [f32], y: &[f32])) };
    });
}

/// Rotates the first `table.cols()` values of every head of `head_dim`; the table is `[rows, cos | sin]`.
pub(super) fn rope(cpu: &Cpu, x: &mut Tensor, head_dim: usize, table: &Tensor, style: RopeStyle) {
    let (width, half) = (x.cols(), table.cols() / 2);
    assert!(x.rows() == table.rows() && table.cols() <= head_dim && width % head_dim == 0);
    for_each_run(cpu, x.data_mut(), width, |row, x| {
        let (cos, sin) = table.row(row).split_at(half);
        for head in x.chunks_exact_mut(head_dim) {
            for i in 0..half {
                let (a, b) = match style {
                    RopeStyle::Halves => (i, i + half),
                    RopeStyle::Pairs => (2 * i, 2 * i + 1),
                };
                let (x, y) = (head[a], head[b]);
                head[a] = x * cos[i] - y * sin[i];
                head[b] = y * cos[i] + x * sin[i];
            }
        }
    });
}
