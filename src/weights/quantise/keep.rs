//! Rows that are published in four bits: their codes and scales as they are, with the biases that MLX stores beside them.

use super::{Codes, narrow, round_to};
use crate::error::{Error, Result};
use crate::weights::{Dtype, Matrix, Packed, Values};

/// Copies the codes and scales of `matrix`, which has no biases, and writes biases; both are rounded to `dtype`.
///
/// # Errors
/// If it is not packed so, or a scale is not a number.
pub fn keep(matrix: &Matrix, dtype: Dtype, out: Codes<'_>) -> Result<()> {
    let Values::Packed(Packed { coding, values, scales, biases: None }) = matrix.values() else {
        let error =
            Error::msg("the weights are not packed in four bits without biases, as others of the same module are");
        return Err(error.hint("quantise the model as its maker publishes it"));
    };
    let ((top, left), stride) = (matrix.origin(), matrix.stride());
    let bytes = |columns: usize| columns * coding.bits() / 8;
    let (width, groups) = (bytes(matrix.in_features()), matrix.in_features() / coding.group());
    let mut numbers = Vec::new();
    for row in 0..matrix.out_features() {
        let at = (top + row) * stride + left;
        out.codes[row * width..][..width].copy_from_slice(&values[bytes(at)..][..width]);
        let at = at / coding.group();
        numbers.extend(scales.part(at..at + groups).to_f32());
    }
    if let Some(scale) = numbers.iter().find(|scale| !scale.is_finite()) {
        let error = Error::msg(format!("one of the scales is {scale}"));
        return Err(error.hint("the file may be damaged, fetch it again"));
    }
    let store = |mut numbers: Vec<f32>, out: &mut [u8]| {
        round_to(&mut numbers, dtype);
        narrow(&numbers, dtype, out);
    };
    store(numbers.iter().map(|scale| -8.0 * scale).collect(), out.biases);
    store(numbers, out.scales);
    Ok(())
}
