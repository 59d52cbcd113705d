//! Matrix products: weights where they lie, their format in a kernel's name, the tree of the leaves as steps.

use bytemuck::bytes_of;
use bytes::Bytes;

use super::arena::Region;
use super::memory::{self, Taken, tensor};
use super::{LANES, Metal};
use crate::backend::{Tensor, check};
use crate::error::{Error, Result};
use crate::gpu::params::{GatherParams, HeadsParams, LinearParams, MatrixParams, StepParams};
use crate::partition::Fold;
use crate::weights::{Coding, Dtype, FP8_BLOCK, Matrix, Numbers, Values};

/// Output rows of a threadgroup: four SIMD-groups of four rows.
pub(super) const ROWS: usize = 16;
/// Threads of that threadgroup.
pub(super) const THREADS: usize = 4 * LANES;
/// Its tokens.
const TOKENS: usize = 4;
/// Output rows and tokens of a threadgroup where many tokens share what is read.
pub(super) const TILE: usize = 32;
/// So many tokens that a tile is worth it.
pub(super) const MANY: usize = 16;
/// Values that a thread widens at once.
const RUN: usize = 8;

/// A matrix where kernels see it.
#[derive(Debug)]
pub(super) struct Weight {
    pub(super) format: &'static str,
    pub(super) values: Region,
    pub(super) scales: Region,
    pub(super) biases: Region,
    pub(super) params: MatrixParams,
}

impl Weight {
    pub(super) fn regions(&self) -> [&Region; 3] {
        [&self.values, &self.scales, &self.biases]
    }
}

/// How a kernel is told what type scales have.
fn dtype_code(coding: Option<Coding>, dtype: Dtype) -> Result<u32> {
    match (dtype, coding) {
        (Dtype::F32, _) => Ok(0),
        (Dtype::F16, _) => Ok(1),
        (Dtype::Bf16, _) => Ok(2),
        (Dtype::U8, Some(Coding::Nvfp4)) => Ok(4),
        (Dtype::U8, _) => Ok(3),
        _ => Err(Error::msg(format!("no kernel reads scales of {dtype:?}"))),
    }
}

fn format_of(values: &Values) -> &'static str {
    let Values::Packed(packed) = values else {
        return match values {
            Values::F32(_) => "f32",
            Values::F16(_) => "f16",
            Values::Bf16(_) => "bf16",
            _ => "fp8",
        };
    };
    match packed.coding {
        Coding::Affine { bits: 2, .. } => "affine2",
        Coding::Affine { bits: 3, .. } => "affine3",
        Coding::Affine { bits: 4, .. } => "affine4",
        Coding::Affine { bits: 5, .. } => "affine5",
        Coding::Affine { bits: 6, .. } => "affine6",
        Coding::Affine { .. } => "affine8",
        Coding::Mxfp4 | Coding::Nvfp4 => "fp4",
        Coding::Mxfp8 => "mxfp8",
    }
}

/// Makes `w` visible to kernels.
pub(super) fn weight(metal: &Metal, w: &Matrix) -> Result<Weight> {
    let (stride, (row, column)) = (w.stride(), w.origin());
    let resident = |bytes: &Bytes, align| metal.residents.weights(&metal.stream, bytes, align);
    let numbers = |numbers: &Numbers| resident(&numbers.bytes, numbers.dtype.width());
    let mut params = MatrixParams {
        out_features: w.out_features() as u32,
        row: row as u32,
        column: column as u32,
        ..Default::default()
    };
    let format = format_of(w.values());
    let (values, scales, biases) = match w.values() {
        Values::F32(values) => (resident(values, 4)?, None, None),
        Values::F16(values) | Values::Bf16(values) => (resident(values, 2)?, None, None),
        Values::Fp8 { values, scales } => {
            params.group = FP8_BLOCK as u32;
            params.groups_a_row = stride.div_ceil(FP8_BLOCK) as u32;
            params.scales = dtype_code(None, scales.dtype)?;
            (resident(values, 1)?, Some(numbers(scales)?), None)
        }
        Values::Packed(packed) => {
            params.group = packed.coding.group() as u32;
            params.groups_a_row = (stride / packed.coding.group()) as u32;
            params.scales = dtype_code(Some(packed.coding), packed.scales.dtype)?;
            params.biased = packed.biases.is_some().into();
            let biases = packed.biases.as_ref().map(numbers).transpose()?;
            (resident(&packed.values, 1)?, Some(numbers(&packed.scales)?), biases)
        }
    };
    params.row_bytes = match w.values() {
        Values::F32(_) => stride * 4,
        Values::F16(_) | Values::Bf16(_) => stride * 2,
        Values::Fp8 { .. } => stride,
        Values::Packed(packed) => packed.coding.words(stride) * 4,
    } as u32;
    // an index without a buffer is an error of Metal's
    let scales = scales.unwrap_or_else(|| values.clone());
    let biases = biases.unwrap_or_else(|| scales.clone());
    Ok(Weight { format, values, scales, biases, params })
}

/// The subtrees of a fold as steps, and how many steps there are.
pub(super) fn steps(fold: &Fold) -> Vec<StepParams> {
    let of_root = |root: usize| {
        let steps = fold.steps(root);
        steps.iter().enumerate().map(move |(i, step)| StepParams {
            start: step.columns.start as u32,
            end: step.columns.end as u32,
            merges: step.merges as u32,
            last: u32::from(i + 1 == steps.len()),
        })
    };
    (0..fold.roots.len()).flat_map(of_root).collect()
}

/// Structures one after the other.
pub(super) fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// `[tokens, in] × [out, in]ᵀ` of every matrix: one `[tokens, out]` block per subtree of `fold`.
pub(super) fn linears(metal: &Metal, x: &Tensor, ws: &[&Matrix], fold: &Fold) -> Result<Vec<Tensor>> {
    let steps = steps(fold);
    let one = |w: &&Matrix| {
        check::linear(x, w, fold)?;
        Ok(tensor(fold.roots.len() * x.rows(), w.out_features(), product(metal, x, w, &steps)?))
    };
    ws.iter().map(one).collect()
}

/// `[tokens, in] × [out, in]ᵀ`: one `[tokens, out]` block per subtree of `steps`.
pub(super) fn product(metal: &Metal, x: &Tensor, w: &Matrix, steps: &[StepParams]) -> Result<memory::Values> {
    let (rows, out) = (x.rows(), w.out_features());
    let y = metal.scratch(steps.iter().filter(|step| step.last == 1).count() * rows * out)?;
    if steps.is_empty() {
        return Ok(y);
    }
    let (from, weight) = (metal.input(x)?, weight(metal, w)?);
    let params = LinearParams { rows: rows as u32, in_features: x.cols() as u32, steps: steps.len() as u32 };
    let params = joined(&[bytes_of(&weight.params), bytes_of(&params), bytemuck::cast_slice(steps)]);
    let [values, scales, biases] = weight.regions();
    let (kernel, groups) = match rows {
        1 => ("linear_one", [out.div_ceil(ROWS), 1, 1]),
        MANY.. => ("matmul", [out.div_ceil(TILE), rows.div_ceil(TILE), 1]),
        _ => ("linear", [out.div_ceil(ROWS), rows.div_ceil(TOKENS), 1]),
    };
    let reads = [&*from, values, scales, biases];
    metal.run((kernel, weight.format), &reads, &[y.region()], &params, (groups, THREADS));
    Ok(y)
}

/// A matrix of its own for every head: one leaf a product, or the rows of `w` added in their order where `turned`.
pub(super) fn per_head(metal: &Metal, x: &Tensor, ws: &[Matrix], turned: bool) -> Result<Tensor> {
    let (inner, out) = check::per_head(x, ws, turned)?;
    let (from, rows, heads) = (metal.input(x)?, x.rows(), ws.len());
    let y = metal.scratch(rows * heads * out)?;
    if let Some(table) = metal.tables.of(metal, ws)? {
        let params = HeadsParams { heads: heads as u32, in_features: inner as u32, out_features: out as u32 };
        let params = joined(&[bytes_of(&table.params), bytes_of(&params)]);
        let (kernel, work) = match turned {
            false => ("heads", ([out.div_ceil(ROWS), rows, heads], THREADS)),
            true => ("heads_turned", ([out.div_ceil(RUN * LANES), rows, heads], LANES)),
        };
        metal.run((kernel, table.format), &[&from, table.entries.region()], &[y.region()], &params, work);
    }
    Ok(tensor(rows, heads * out, y))
}

/// The rows `ids` of `table`: `[ids, in]`.
pub(super) fn embed(metal: &Metal, table: &Matrix, ids: &[u32]) -> Result<Tensor> {
    check::ids(table, ids)?;
    let (weight, width) = (weight(metal, table)?, table.in_features());
    let numbers = Taken::upload(&metal.stream, bytemuck::cast_slice(ids))?;
    let y = metal.scratch(ids.len() * width)?;
    let params = GatherParams { width: width as u32 };
    let params = joined(&[bytes_of(&weight.params), bytes_of(&params)]);
    let [values, scales, biases] = weight.regions();
    let work = ([width.div_ceil(RUN * LANES), ids.len(), 1], LANES);
    metal.run(("embed", weight.format), &[numbers.region(), values, scales, biases], &[y.region()], &params, work);
    Ok(tensor(ids.len(), width, y))
}
