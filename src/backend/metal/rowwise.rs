//! Operations on values and rows by themselves.

use super::memory::tensor;
use super::{LANES, Metal, THREADS, threads_for};
use crate::backend::{Constant, Piece, RopeStyle, Tensor};
use crate::error::Result;
use crate::gpu::params::{NormParams, PieceParams, RopeParams, RunParams};

/// Values of a run that many SIMD-groups share.
const WIDE: usize = 512;

/// x · rsqrt(mean x² + eps) · weight over runs of `weight.len()` values, times silu(gate) if there is one.
pub(super) fn rms_norm(
    metal: &Metal,
    x: &Tensor,
    gate: Option<&Tensor>,
    weight: &Constant,
    eps: f32,
) -> Result<Tensor> {
    let params = NormParams { width: weight.len() as u32, gated: gate.is_some().into(), eps };
    let (from, gate) = (metal.input(x)?, metal.input(gate.unwrap_or(x))?);
    let y = metal.scratch(x.rows() * x.cols())?;
    let work = threads_for_runs(x, weight);
    let weight = metal.residents.constant(&metal.stream, weight)?;
    metal.run(("rms_norm", ""), &[&from, weight.region(), &gate], &[y.region()], bytemuck::bytes_of(&params), work);
    Ok(tensor(x.rows(), x.cols(), y))
}

/// x + added in place, and [`rms_norm`] of that.
pub(super) fn add_rms_norm(
    metal: &Metal,
    x: &mut Tensor,
    added: &Tensor,
    weight: &Constant,
    eps: f32,
) -> Result<Tensor> {
    assert_eq!((x.rows(), x.cols()), (added.rows(), added.cols()));
    let params = NormParams { width: weight.len() as u32, gated: 0, eps };
    let y = metal.scratch(x.rows() * x.cols())?;
    let ((rows, cols), work) = ((x.rows(), x.cols()), threads_for_runs(x, weight));
    let weight = metal.residents.constant(&metal.stream, weight)?;
    let (added, x) = (metal.input(added)?, metal.in_place(x)?);
    let writes = [x, y.region()];
    metal.run(("add_rms_norm", ""), &[&added, weight.region()], &writes, bytemuck::bytes_of(&params), work);
    Ok(tensor(rows, cols, y))
}

/// A threadgroup a run: a wide one alone would keep most of a GPU waiting, and how it is summed depends on its width.
fn threads_for_runs(x: &Tensor, weight: &Constant) -> ([usize; 3], usize) {
    let (width, values) = (weight.len(), x.rows() * x.cols());
    ([values / width.max(1), 1, 1], if width < WIDE { LANES } else { THREADS })
}

/// One of the kernels that change `x` by a `y` of its shape.
pub(super) fn combine(metal: &Metal, kernel: &'static str, x: &mut Tensor, y: &Tensor) -> Result<()> {
    assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()));
    let values = x.rows() * x.cols();
    let params = RunParams { count: values as u32, width: x.cols() as u32 };
    let (y, x) = (metal.input(y)?, metal.in_place(x)?);
    metal.run((kernel, ""), &[&y], &[x], bytemuck::bytes_of(&params), threads_for(values));
    Ok(())
}

/// x + bias.
pub(super) fn add_bias(metal: &Metal, x: &mut Tensor, bias: &Constant) -> Result<()> {
    assert_eq!(x.cols(), bias.len());
    let values = x.rows() * x.cols();
    let params = RunParams { count: values as u32, width: x.cols() as u32 };
    let (bias, x) = (metal.residents.constant(&metal.stream, bias)?, metal.in_place(x)?);
    metal.run(("add_bias", ""), &[bias.region()], &[x], bytemuck::bytes_of(&params), threads_for(values));
    Ok(())
}

/// Copies `pieces` to their places.
pub(super) fn arrange(metal: &Metal, rows: usize, cols: usize, pieces: &[Piece<'_>]) -> Result<Tensor> {
    let y = metal.scratch(rows * cols)?;
    for Piece { from, starts, strides, width, count } in pieces {
        let params = PieceParams {
            width: *width as u32,
            count: *count as u32,
            from_start: starts.0 as u32,
            from_stride: strides.0 as u32,
            to_start: starts.1 as u32,
            to_stride: strides.1 as u32,
        };
        let from = metal.input(from)?;
        let work = threads_for(width * count);
        metal.run(("arrange", ""), &[&from], &[y.region()], bytemuck::bytes_of(&params), work);
    }
    Ok(tensor(rows, cols, y))
}

/// Rotates the first `table.cols()` values of every head of `head_dim`.
pub(super) fn rope(metal: &Metal, x: &mut Tensor, head_dim: usize, table: &Tensor, style: RopeStyle) -> Result<()> {
    let (rows, heads, half) = (x.rows(), x.cols() / head_dim, table.cols() / 2);
    assert!(rows == table.rows() && table.cols() <= head_dim && x.cols().is_multiple_of(head_dim));
    let pairs = u32::from(style == RopeStyle::Pairs);
    let params = RopeParams { heads: heads as u32, head_dim: head_dim as u32, half_dim: half as u32, pairs };
    let (table, x) = (metal.input(table)?, metal.in_place(x)?);
    let work = ([half.div_ceil(LANES), heads, rows], LANES);
    metal.run(("rope", ""), &[&table], &[x], bytemuck::bytes_of(&params), work);
    Ok(())
}
