//! Block-FP8: E4M3 values with a scale per 128 × 128 block in `<name>_scale_inv`; the scale multiplies.

use super::matrix::{FP8_BLOCK, Matrix, Values};
use super::stored::{Source, Stored};
use crate::error::Result;

/// Joins FP8 values with their scales, which may be bf16, f16 or f32.
///
/// # Errors
/// If the scales are missing or misshapen.
pub(super) fn matrix<S: Source + ?Sized>(source: &S, stored: Stored) -> Result<Matrix> {
    let (name, (out, inner)) = (scales_name(&stored.info.name), (stored.info.shape[0], stored.info.shape[1]));
    if !source.has(&name) {
        return stored.into_matrix();
    }
    let shape = scales_shape(out, inner);
    let scales = source.get(&name, &shape)?;
    scales.info.expect_shape(&shape)?;
    Matrix::new(out, inner, Values::Fp8 { values: stored.bytes, scales: scales.to_f32()?.into() })
}

/// The name of the scales of the matrix `name`.
pub fn scales_name(name: &str) -> String {
    format!("{name}_scale_inv")
}

/// The shape of the scales of an `[out, in]` matrix.
pub fn scales_shape(out_features: usize, in_features: usize) -> [usize; 2] {
    [out_features.div_ceil(FP8_BLOCK), in_features.div_ceil(FP8_BLOCK)]
}
