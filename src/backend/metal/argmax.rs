//! The largest value of every row: chunks of a row side by side, then those of a row together.

use std::ops::Range;

use bytemuck::bytes_of;

use super::memory::tensor;
use super::{LANES, Metal};
use crate::backend::{Peak, Tensor};
use crate::error::Result;
use crate::gpu::params::ArgmaxParams;

/// Columns that a SIMD-group looks through.
const CHUNK: usize = 1024;

/// The peaks of the rows `rows` of `x`, whose columns are those from `first` on of a whole row.
pub(super) fn argmax(metal: &Metal, x: &Tensor, rows: Range<usize>, first: usize) -> Result<Tensor> {
    assert!(rows.end <= x.rows());
    let (count, chunks) = (rows.len(), x.cols().div_ceil(CHUNK).max(1));
    let params = ArgmaxParams {
        width: x.cols() as u32,
        row: rows.start as u32,
        first: first as u32,
        chunk: CHUNK as u32,
        chunks: chunks as u32,
    };
    let (from, parts) = (metal.input(x)?, metal.scratch(count * chunks * Peak::WORDS)?);
    metal.run(("argmax", ""), &[&from], &[parts.region()], bytes_of(&params), ([chunks, count, 1], LANES));
    if chunks == 1 {
        return Ok(tensor(count, Peak::WORDS, parts));
    }
    let y = metal.scratch(count * Peak::WORDS)?;
    metal.run(("argmax_join", ""), &[parts.region()], &[y.region()], bytes_of(&params), ([count, 1, 1], LANES));
    Ok(tensor(count, Peak::WORDS, y))
}
