//! Rows of values to packed codes with scales and biases: bit for bit what MLX computes on a CPU.
//!
//! MLX's Metal kernels round ties otherwise (affine codes away from zero, E2M1 to even) and start a group's maximum at zero:
//! what MLX makes on a Mac differs from what it makes on a CPU, and so from this, in few codes.

mod affine;
mod keep;
mod mx;
mod widen;

use half::{bf16, f16};

use super::packed::Coding;
use super::stored::Dtype;

pub use keep::keep;
pub use widen::{narrow, round_to, widen, widened_type};

/// The largest magnitude that is quantised: a group's range must be finite too.
const LARGEST: f32 = f32::MAX / 2.0;

/// Where quantised rows go.
#[derive(Debug)]
pub struct Codes<'a> {
    /// Codes, the first in the lowest bits, without gaps.
    pub codes: &'a mut [u8],
    /// A scale a group: in the type of the weights (affine), or a byte.
    pub scales: &'a mut [u8],
    /// A bias a group, in the type of the weights; empty unless affine.
    pub biases: &'a mut [u8],
}

/// Quantises whole groups, one after another. `values` are of the type `dtype` (F32, F16 or Bf16), widened; scales are
/// rounded to it.
///
/// # Errors
/// The index of the first value that is infinite, not a number, or beyond ±1.7·10³⁸.
pub fn quantise(coding: Coding, dtype: Dtype, values: &[f32], out: Codes<'_>) -> Result<(), usize> {
    let strange = |value: &f32| value.is_nan() || value.abs() > LARGEST;
    if values.iter().fold(false, |found, value| found | strange(value)) {
        return Err(values.iter().position(strange).unwrap_or(0));
    }
    match dtype {
        Dtype::F32 => groups::<f32>(coding, values, out),
        Dtype::F16 => groups::<f16>(coding, values, out),
        _ => groups::<bf16>(coding, values, out),
    }
    Ok(())
}

fn groups<T: Float>(coding: Coding, values: &[f32], out: Codes<'_>) {
    match coding {
        Coding::Affine { bits, group } => {
            let quantise = match bits {
                2 => affine::quantise::<T, 2>,
                3 => affine::quantise::<T, 3>,
                4 => affine::quantise::<T, 4>,
                5 => affine::quantise::<T, 5>,
                6 => affine::quantise::<T, 6>,
                _ => affine::quantise::<T, 8>,
            };
            quantise(values, group.into(), out);
        }
        Coding::Mxfp4 => mx::mxfp4::<T>(values, out),
        Coding::Mxfp8 => mx::mxfp8::<T>(values, out),
        Coding::Nvfp4 => mx::nvfp4::<T>(values, out),
    }
}

/// A type that weights are stored in.
trait Float {
    /// The nearest value of the type, ties to even.
    fn round(value: f32) -> f32;
    /// Writes the nearest value of the type to place `index`.
    fn store(value: f32, index: usize, bytes: &mut [u8]);
}

impl Float for f32 {
    fn round(value: f32) -> f32 {
        value
    }
    fn store(value: f32, index: usize, bytes: &mut [u8]) {
        bytes[index * 4..][..4].copy_from_slice(&value.to_le_bytes());
    }
}

impl Float for f16 {
    fn round(value: f32) -> f32 {
        Self::from_f32(value).to_f32()
    }
    fn store(value: f32, index: usize, bytes: &mut [u8]) {
        bytes[index * 2..][..2].copy_from_slice(&Self::from_f32(value).to_le_bytes());
    }
}

impl Float for bf16 {
    fn round(value: f32) -> f32 {
        Self::from_f32(value).to_f32()
    }
    fn store(value: f32, index: usize, bytes: &mut [u8]) {
        bytes[index * 2..][..2].copy_from_slice(&Self::from_f32(value).to_le_bytes());
    }
}
