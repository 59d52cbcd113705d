//! Block-FP8: E4M3 values with a scale per 128 × 128 block in `<name>_scale_inv`; the scale multiplies.

use super::matrix::{FP8_BLOCK, Matrix, Values};
use super::stored::{Source, Stored};
use crate::error::Result;

/// Joins FP8 values with their scales, which may be bf16, f16 or f32.
///
/// # Errors
/// If the scales are missing or misshapen.
pub(super) fn matrix(source: &(dyn Source + '_), stored: Stored) -> Result<Matrix> {
    let name = format!("{}_scale_inv", stored.name);
    if !source.has(&name) {
        return stored.into_matrix();
    }
    let (out, inner) = (stored.shape[0], stored.shape[1]);
    let blocks = [out.div_ceil(FP8_BLOCK), inner.div_ceil(FP8_BLOCK)];
    let scales = source.get(&name, &blocks)?.expect_shape(&blocks)?.to_f32()?;
    Matrix::new(out, inner, Values::Fp8 { values: stored.bytes, scales: scales.into() })
}
