//! From stored rows to f32 and back: what the values are in the type that the result is to have.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Float;
use crate::error::{Error, Result};
use crate::weights::{Dtype, FP8_BLOCK, Matrix, Numbers, Values, e4m3};

/// The type that values of `dtype` are of once they are read: block-FP8 times its scales is rounded to bf16.
pub fn widened_type(dtype: Dtype) -> Dtype {
    if dtype == Dtype::Fp8 { Dtype::Bf16 } else { dtype }
}

/// Appends the values of `matrix`, row by row, rounded to `dtype`.
///
/// # Errors
/// If they are packed already.
pub fn widen(matrix: &Matrix, dtype: Dtype, into: &mut Vec<f32>) -> Result<()> {
    let (rows, columns) = (matrix.out_features(), matrix.in_features());
    let ((top, left), stride) = (matrix.origin(), matrix.stride());
    let start = into.len();
    // whole rows are one run
    let (runs, len) = if columns == stride { (1, rows * columns) } else { (rows, columns) };
    for run in 0..runs {
        let first = (top + run) * stride + left;
        let pairs = |bytes: &bytes::Bytes| bytes[first * 2..][..len * 2].as_chunks::<2>().0.to_vec();
        match matrix.values() {
            Values::F32(bytes) => {
                into.extend(bytes[first * 4..][..len * 4].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
            }
            Values::F16(bytes) => {
                let halves: Vec<f16> = pairs(bytes).into_iter().map(f16::from_le_bytes).collect();
                let at = into.len();
                into.resize(at + len, 0.0);
                halves.convert_to_f32_slice(&mut into[at..]);
            }
            Values::Bf16(bytes) => {
                let upper = bytes[first * 2..][..len * 2].as_chunks::<2>().0.iter();
                into.extend(upper.map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)));
            }
            Values::Fp8 { values, scales } => blocks(&values[first..][..len], scales, first, stride, into),
            Values::Packed(_) => {
                let error = Error::msg("the weights are quantised already");
                return Err(error.hint("quantise the model as its maker publishes it"));
            }
        }
    }
    let stored = match matrix.values() {
        Values::F32(_) => Dtype::F32,
        Values::F16(_) => Dtype::F16,
        _ => Dtype::Bf16,
    };
    if stored != dtype {
        round_to(&mut into[start..], dtype);
    }
    Ok(())
}

/// Rounds to values of `dtype`.
pub fn round_to(values: &mut [f32], dtype: Dtype) {
    match dtype {
        Dtype::F16 => values.iter_mut().for_each(|value| *value = f16::round(*value)),
        Dtype::Bf16 => values.iter_mut().for_each(|value| *value = bf16::round(*value)),
        _ => {}
    }
}

/// Writes values of `dtype` as its bytes.
pub fn narrow(values: &[f32], dtype: Dtype, bytes: &mut [u8]) {
    let store = match dtype {
        Dtype::F16 => f16::store,
        Dtype::Bf16 => bf16::store,
        _ => f32::store,
    };
    for (index, value) in values.iter().enumerate() {
        store(*value, index, bytes);
    }
}

/// E4M3 times the scales of its 128 × 128 blocks, rounded to bf16. `first` is the place of the first value.
fn blocks(values: &[u8], scales: &Numbers, first: usize, stride: usize, into: &mut Vec<f32>) {
    let across = stride.div_ceil(FP8_BLOCK);
    let mut at = 0;
    while at < values.len() {
        let (row, column) = ((first + at) / stride, (first + at) % stride);
        let len = (FP8_BLOCK - column % FP8_BLOCK).min(stride - column).min(values.len() - at);
        let block = row / FP8_BLOCK * across + column / FP8_BLOCK;
        let scale = scales.part(block..block + 1).to_f32()[0];
        into.extend(values[at..at + len].iter().map(|code| bf16::round(e4m3(*code) * scale)));
        at += len;
    }
}
