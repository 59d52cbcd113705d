//! The gated delta net: causal convolution and the recurrent gated delta rule.

use bytemuck::bytes_of;

use super::attention::state;
use super::memory::tensor;
use super::{LANES, Metal, threads_for};
use crate::backend::{Batch, Constant, DeltaGates, DeltaShape, DeltaStore, Tensor};
use crate::error::Result;
use crate::gpu::params::{ConvParams, DeltaParams, LengthParams, RunParams};

/// Depthwise causal convolution over the rows of each sequence, then silu.
pub(super) fn conv_silu(
    metal: &Metal,
    x: &Tensor,
    weight: &Constant,
    store: &mut DeltaStore,
    batch: &Batch,
) -> Result<Tensor> {
    let (channels, segments) = (store.channels, batch.segments());
    assert!(x.cols() == channels && weight.len() == (store.taps + 1) * channels && x.rows() == batch.rows());
    let params = ConvParams { channels: channels as u32, taps: store.taps as u32 };
    let (rows, past) = (metal.rows_of(batch)?, state(metal, &mut store.conv)?);
    let (from, weight) = (metal.input(x)?, metal.residents.constant(&metal.stream, weight)?);
    let y = metal.scratch(x.rows() * channels)?;
    let longest = segments.iter().map(|segment| segment.rows.len()).max().unwrap_or(0);
    let columns = channels.div_ceil(LANES);
    let reads = [&*from, weight.region(), &past, rows.segments.region()];
    let work = ([columns, longest, segments.len()], LANES);
    metal.run(("conv_silu", ""), &reads, &[y.region()], bytes_of(&params), work);
    let work = ([columns, 1, segments.len()], LANES);
    metal.run(("conv_keep", ""), &[&from, rows.segments.region()], &[&past], bytes_of(&params), work);
    Ok(tensor(x.rows(), channels, y))
}

/// decay = exp(−exp(A_log) · softplus(a + dt_bias)), beta = sigmoid(b), of the shapes of `a` and `b`.
pub(super) fn delta_gates(
    metal: &Metal,
    a: &Tensor,
    b: &Tensor,
    a_log: &Constant,
    dt_bias: &Constant,
) -> Result<DeltaGates> {
    let params = |x: &Tensor| RunParams { count: (x.rows() * x.cols()) as u32, width: x.cols() as u32 };
    let (from_a, from_b) = (metal.input(a)?, metal.input(b)?);
    let constant = |constant| metal.residents.constant(&metal.stream, constant);
    let (a_log, dt_bias) = (constant(a_log)?, constant(dt_bias)?);
    let (decay, beta) = (metal.scratch(a.rows() * a.cols())?, metal.scratch(b.rows() * b.cols())?);
    let reads = [&*from_a, a_log.region(), dt_bias.region()];
    let work = threads_for(a.rows() * a.cols());
    metal.run(("delta_decay", ""), &reads, &[decay.region()], bytes_of(&params(a)), work);
    let work = threads_for(b.rows() * b.cols());
    metal.run(("delta_beta", ""), &[&from_b], &[beta.region()], bytes_of(&params(b)), work);
    Ok(DeltaGates { decay: tensor(a.rows(), a.cols(), decay), beta: tensor(b.rows(), b.cols(), beta) })
}

/// The recurrent gated delta rule for every row of every sequence.
pub(super) fn delta_rule(
    metal: &Metal,
    mut qkv: Tensor,
    gates: &DeltaGates,
    store: &mut DeltaStore,
    batch: &Batch,
    shape: &DeltaShape,
) -> Result<Tensor> {
    let DeltaShape { heads, key_dim, value_dim } = *shape;
    let (rows, values, stride) = (qkv.rows(), shape.values(), qkv.cols());
    assert!(stride == 2 * shape.keys() + values && store.state_values == values * key_dim && rows == batch.rows());
    let decays = gates.decay.cols() / heads.heads.max(1);
    assert!(gates.decay.cols() == heads.heads * decays && (decays == 1 || decays == key_dim || heads.heads == 0));
    let lengths = LengthParams {
        width: key_dim as u32,
        count: 2 * heads.shared as u32,
        stride: stride as u32,
        scaled: heads.shared as u32,
        scale: 1.0 / (key_dim as f32).sqrt(),
    };
    let work = ([2 * heads.shared, rows, 1], LANES);
    metal.run(("unit_length", ""), &[], &[metal.in_place(&mut qkv)?], bytes_of(&lengths), work);
    let params = DeltaParams {
        heads: heads.heads as u32,
        keys: heads.shared as u32,
        group: heads.group as u32,
        before: heads.before as u32,
        key_dim: key_dim as u32,
        value_dim: value_dim as u32,
        decays: decays as u32,
    };
    let (place, state) = (metal.rows_of(batch)?, state(metal, &mut store.state)?);
    let (qkv, decay, beta) = (metal.input(&qkv)?, metal.input(&gates.decay)?, metal.input(&gates.beta)?);
    let y = metal.scratch(rows * values)?;
    let reads = [&*qkv, &decay, &beta, place.segments.region()];
    let work = ([heads.heads, batch.segments().len(), value_dim.div_ceil(LANES)], LANES);
    metal.run(("delta_rule", ""), &reads, &[&state, y.region()], bytes_of(&params), work);
    Ok(tensor(rows, values, y))
}
