//! Which tensors make a matrix, in every storage format.

use std::ops::Range;

use super::compressed::{PACKED, SCALE};
use super::matrix::{FP8_BLOCK, Matrix, Values, blocks};
use super::numbers::Numbers;
use super::packed::{Coding, Packed};
use super::stored::{Dtype, Source, Stored, TensorInfo};
use crate::error::{Context, Error, Result};

/// A run of rows and of columns of a stored tensor; all dimensions but the last are rows.
#[derive(Debug, Clone)]
pub struct Slice {
    /// The tensor.
    pub info: TensorInfo,
    /// Counted in what is stored.
    pub rows: Range<usize>,
    /// Counted likewise: words of packed values, blocks of scales.
    pub columns: Range<usize>,
}

/// The whole matrix `name`, of which the caller expects `shape`: adding a format is a line here, and one in [`slices`].
pub(super) fn matrix<S: Source + ?Sized>(source: &S, name: &str, shape: &[usize]) -> Result<Matrix> {
    let (rows, columns) = flat(shape);
    let stored = source.get(name, shape)?;
    let origin = stored.info.origin.clone();
    let Some(coding) = stored.info.coding else {
        // words of packed values have another shape: that nothing says how they are coded is the better thing to say
        if ![Dtype::U8, Dtype::U32].contains(&stored.info.dtype) {
            stored.info.expect_shape(shape)?;
        }
        return if stored.info.dtype == Dtype::Fp8 { fp8(source, stored, shape) } else { plain(stored, rows, columns) };
    };
    let (packed, grouped) = (with_last(shape, coding.words(columns)), with_last(shape, columns / coding.group()));
    stored.info.expect_shape(&packed)?;
    let get = |name: String| -> Result<Numbers> {
        let stored = source.get(&name, &grouped)?;
        stored.info.expect_shape(&grouped)?;
        Ok(Numbers { dtype: stored.info.dtype, bytes: stored.bytes })
    };
    let mut companions = companions(&stored.info, coding).into_iter();
    let scales = get(companions.next().unwrap_or_default())?;
    // scales of another kind are what is wrong then, not that there are no biases
    let biases = companions.next().filter(|_| scales.dtype != Dtype::U8).map(get).transpose()?;
    let values = Packed { coding, values: stored.bytes, scales, biases };
    let made = Matrix::new(rows, columns, Values::Packed(values));
    made.map_err(|error| {
        error
            .context(format!("{origin}: tensor `{}`", stored.info.name))
            .hint("config.json and the weights do not belong together")
    })
}

/// What the rows `rows` and columns `columns` of the matrix `name` are made of.
///
/// # Errors
/// If a tensor is missing.
pub fn slices(
    source: &dyn Source,
    name: &str,
    shape: &[usize],
    rows: Range<usize>,
    columns: Range<usize>,
) -> Result<Vec<Slice>> {
    let info = source.info(name, shape)?;
    let width = flat(shape).1;
    if let Some(coding) = info.coding {
        let per = |each: usize| columns.start / each..columns.end.div_ceil(each);
        let grouped = with_last(shape, width / coding.group());
        let words = coding.words(columns.start)..(columns.end * coding.bits()).div_ceil(32);
        let others = companions(&info, coding);
        let mut all = vec![Slice { info, rows: rows.clone(), columns: words }];
        for other in others {
            let (rows, columns) = (rows.clone(), per(coding.group()));
            all.push(Slice { info: source.info(&other, &grouped)?, rows, columns });
        }
        return Ok(all);
    }
    let scales = scales_name(&info.name);
    let scaled = info.dtype == Dtype::Fp8 && source.has(&scales);
    let mut all = vec![Slice { info, rows, columns }];
    if scaled {
        let info = source.info(&scales, &scales_shape(flat(shape).0, width))?;
        let (rows, columns) = (blocks(&all[0].rows), blocks(&all[0].columns));
        all.push(Slice { info, rows, columns });
    }
    Ok(all)
}

/// Rows and columns of a tensor of matrices: all dimensions but the last are rows.
pub(super) fn flat(shape: &[usize]) -> (usize, usize) {
    let (columns, rows) = shape.split_last().map_or((1, &[][..]), |(last, outer)| (*last, outer));
    // more rows than can be counted are too many in any case
    (rows.iter().try_fold(1usize, |rows, n| rows.checked_mul(*n)).unwrap_or(usize::MAX), columns)
}

fn with_last(shape: &[usize], last: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(columns) = shape.last_mut() {
        *columns = last;
    }
    shape
}

/// The names of what belongs to a packed tensor: its scales, and its biases if they are stored.
fn companions(info: &TensorInfo, coding: Coding) -> Vec<String> {
    if let Some(name) = info.name.strip_suffix(PACKED) {
        return vec![format!("{name}{SCALE}")];
    }
    let module = info.name.strip_suffix(".weight").unwrap_or(&info.name);
    coding.companions().iter().map(|kind| format!("{module}.{kind}")).collect()
}

fn plain(stored: Stored, rows: usize, columns: usize) -> Result<Matrix> {
    let TensorInfo { name, origin, dtype, .. } = stored.info;
    let values = match dtype {
        Dtype::F32 => Values::F32(stored.bytes),
        Dtype::F16 => Values::F16(stored.bytes),
        Dtype::Bf16 => Values::Bf16(stored.bytes),
        Dtype::Fp8 | Dtype::U8 | Dtype::U32 => {
            let error =
                Error::msg(format!("{origin}: tensor `{name}` holds {dtype:?}, and nothing says how it is coded"));
            return Err(error.hint("the checkpoint is incomplete, download it again"));
        }
    };
    Matrix::new(rows, columns, values).with_context(|| format!("{origin}: tensor `{name}`"))
}

/// Block-FP8: E4M3 values with a scale per 128 × 128 block in `<name>_scale_inv`; the scale multiplies.
fn fp8<S: Source + ?Sized>(source: &S, stored: Stored, shape: &[usize]) -> Result<Matrix> {
    let TensorInfo { name, origin, .. } = stored.info;
    let [out, inner] = *shape else {
        let error = Error::msg(format!("{origin}: FP8 tensor `{name}` has shape {shape:?}, not that of one matrix"));
        return Err(error.hint("tbshard reads FP8 experts one by one"));
    };
    let scales = scales_name(&name);
    if !source.has(&scales) {
        let error = Error::msg(format!("{origin}: FP8 tensor `{name}` has no `{scales}`"));
        return Err(error.hint("the checkpoint is incomplete, download it again"));
    }
    let blocks = scales_shape(out, inner);
    let scales = source.get(&scales, &blocks)?;
    scales.info.expect_shape(&blocks)?;
    let made = Matrix::new(out, inner, Values::Fp8 { values: stored.bytes, scales: scales.numbers()? });
    made.with_context(|| format!("{origin}: tensor `{name}`"))
}

/// The name of the scales of the FP8 matrix `name`.
pub(super) fn scales_name(name: &str) -> String {
    format!("{name}_scale_inv")
}

/// The shape of the scales of an `[out, in]` FP8 matrix.
pub(super) fn scales_shape(out_features: usize, in_features: usize) -> [usize; 2] {
    [out_features.div_ceil(FP8_BLOCK), in_features.div_ceil(FP8_BLOCK)]
}
