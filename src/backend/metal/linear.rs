//! Matrix products: weights where they lie, their format in a kernel's name, the tree of the leaves as steps.

use bytemuck::bytes_of;

use super::arena::Region;
use super::memory::{Resident, Values as OnDevice, tensor};
use super::{LANES, Metal};
use crate::backend::cpu::{Isa, gather};
use crate::backend::{Tensor, check};
use crate::error::{Error, Result};
use crate::gpu::params::{HeadsParams, LinearParams, MatrixParams, StepParams};
use crate::partition::Fold;
use crate::weights::{Coding, Dtype, FP8_BLOCK, Matrix, Runs, Values};

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

/// A matrix where kernels see it; what its format has not is what comes before it.
#[derive(Debug)]
pub(super) struct Weight {
    pub(super) format: &'static str,
    values: Resident,
    scales: Resident,
    biases: Resident,
    pub(super) params: MatrixParams,
}

impl Weight {
    pub(super) fn regions(&self) -> [&Region; 3] {
        [&self.values.region, &self.scales.region, &self.biases.region]
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
    let resident = |runs: Runs, align| metal.residents.weights(&metal.stream, &runs, align);
    let (values, scales, biases) = w.runs();
    let mut params = MatrixParams { out_features: w.out_features() as u32, ..Default::default() };
    let (align, width) = match w.values() {
        Values::F32(_) => (4, 1),
        Values::F16(_) | Values::Bf16(_) => (2, 1),
        Values::Fp8 { scales, .. } => {
            let (row, column) = w.origin();
            params.row = (row % FP8_BLOCK) as u32;
            params.column = (column % FP8_BLOCK) as u32;
            params.group = FP8_BLOCK as u32;
            params.scales = dtype_code(None, scales.dtype)?;
            (1, scales.dtype.width())
        }
        Values::Packed(packed) => {
            params.group = packed.coding.group() as u32;
            params.scales = dtype_code(Some(packed.coding), packed.scales.dtype)?;
            params.biased = packed.biases.is_some().into();
            (1, packed.scales.dtype.width())
        }
    };
    params.row_bytes = values.run() as u32;
    params.groups_a_row = scales.as_ref().map_or(0, |scales| scales.run() / width) as u32;
    let values = resident(values, align)?;
    // an index without a buffer is an error of Metal's
    let scales = scales.map_or(Ok(values.clone()), |scales| resident(scales, width))?;
    let biases = biases.map_or(Ok(scales.clone()), |biases| resident(biases, width))?;
    Ok(Weight { format: format_of(w.values()), values, scales, biases, params })
}

/// Makes `w` visible to kernels; those of its bytes that were copied for it.
pub(super) fn keep(metal: &Metal, w: &Matrix) -> Result<Vec<Runs>> {
    let (weight, (values, scales, biases)) = (weight(metal, w)?, w.runs());
    let parts = [(Some(values), weight.values), (scales, weight.scales), (biases, weight.biases)];
    Ok(parts.into_iter().filter_map(|(runs, resident)| runs.filter(|_| resident.copied)).collect())
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
pub(super) fn product(metal: &Metal, x: &Tensor, w: &Matrix, steps: &[StepParams]) -> Result<OnDevice> {
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
        let params =
            HeadsParams { rows: rows as u32, heads: heads as u32, in_features: inner as u32, out_features: out as u32 };
        let params = joined(&[bytes_of(&table.params), bytes_of(&params)]);
        let tiles = ([out.div_ceil(TILE), rows.div_ceil(TILE), heads], THREADS);
        let (kernel, work) = match (turned, rows) {
            (false, MANY..) => ("heads_many", tiles),
            (false, _) => ("heads", ([out.div_ceil(ROWS), rows, heads], THREADS)),
            (true, MANY..) => ("heads_turned_many", tiles),
            (true, _) => ("heads_turned", ([out.div_ceil(RUN * LANES), rows, heads], LANES)),
        };
        metal.run((kernel, table.format), &[&from, table.entries.region()], &[y.region()], &params, work);
    }
    Ok(tensor(rows, heads * out, y))
}

/// The rows `ids` of `table`: `[ids, in]`. The host looks them up, because a table in the GPU's reach is there as a whole.
pub(super) fn embed(metal: &Metal, table: &Matrix, ids: &[u32]) -> Result<Tensor> {
    let rows = gather(Isa::best(), table, ids)?;
    Ok(tensor(rows.rows(), rows.cols(), OnDevice::upload(&metal.stream, rows.data())?))
}
