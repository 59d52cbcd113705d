//! Affine codes: a value is a code times a scale plus a bias. The end of the group's range that is farther from zero is
//! the bias and is met exactly, and zero is a code.

use super::{Codes, Float};

/// The smallest scale, MLX's.
const EPSILON: f32 = 1e-7;

/// Adding it to a value of 0..2²² leaves the nearest integer, ties to even, in the mantissa.
const ROUND: f32 = (1 << 23) as f32;

/// The largest group.
const MAX_GROUP: usize = 128;

pub(super) fn quantise<T: Float, const BITS: usize>(values: &[f32], group: usize, out: Codes<'_>) {
    let mut codes = out.codes.chunks_exact_mut(group / 8 * BITS);
    for (index, (values, codes)) in values.chunks_exact(group).zip(&mut codes).enumerate() {
        let (scale, bias) = scale_and_bias::<BITS>(values);
        T::store(scale, index, out.scales);
        T::store(bias, index, out.biases);
        let mut integers = [0u8; MAX_GROUP];
        let top = ((1 << BITS) - 1) as f32;
        for (integer, value) in integers.iter_mut().zip(values) {
            // the scale that is divided by is the one before rounding to T, as in MLX
            let code = ((value - bias) / scale).clamp(0.0, top);
            *integer = (code + ROUND).to_bits() as u8;
        }
        for (eight, bytes) in integers.as_chunks::<8>().0.iter().zip(codes.chunks_exact_mut(BITS)) {
            let mut word = 0u64;
            for (i, integer) in eight.iter().enumerate() {
                word |= u64::from(*integer) << (i * BITS);
            }
            bytes.copy_from_slice(&word.to_le_bytes()[..BITS]);
        }
    }
}

/// The steps of MLX's `quantize`, in its order.
fn scale_and_bias<const BITS: usize>(values: &[f32]) -> (f32, f32) {
    let (low, high) = range(values);
    let below = low.abs() > high.abs();
    let step = ((high - low) / ((1 << BITS) - 1) as f32).max(EPSILON);
    let (scale, edge) = if below { (step, low) } else { (-step, high) };
    let steps = (edge / scale).round_ties_even();
    if steps == 0.0 { (scale, 0.0) } else { (edge / steps, edge) }
}

/// The smallest and the largest value, over lanes that a compiler turns into registers.
fn range(values: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; 8], [f32::NEG_INFINITY; 8]);
    for eight in values.as_chunks::<8>().0 {
        for lane in 0..8 {
            low[lane] = if eight[lane] < low[lane] { eight[lane] } else { low[lane] };
            high[lane] = if eight[lane] > high[lane] { eight[lane] } else { high[lane] };
        }
    }
    (low.into_iter().fold(f32::INFINITY, f32::min), high.into_iter().fold(f32::NEG_INFINITY, f32::max))
}
