//! A weight matrix as it lies in the checkpoint: shape, storage format, bytes.

use std::ops::Range;

use bytes::Bytes;

use super::numbers::Numbers;
use super::packed::Packed;
use super::runs::Runs;
use crate::error::{Error, Result};

/// Width and height of a scaled block of an FP8 matrix.
pub const FP8_BLOCK: usize = 128;

/// A weight `[out, in]` in its storage format; the bytes are usually a slice of a mapped file.
///
/// It may be a part of what is stored: nothing is copied then.
#[derive(Debug, Clone)]
pub struct Matrix {
    rows: Range<usize>,
    columns: Range<usize>,
    // stored values of a row
    stride: usize,
    values: Values,
}

/// How the values of a [`Matrix`] are stored. All formats are little-endian and row-major.
#[derive(Debug, Clone)]
pub enum Values {
    /// IEEE 754 single precision.
    F32(Bytes),
    /// IEEE 754 half precision.
    F16(Bytes),
    /// The upper half of single precision.
    Bf16(Bytes),
    /// FP8 E4M3 (no infinities) times a scale per 128 × 128 block.
    Fp8 {
        /// One byte a value.
        values: Bytes,
        /// `[out / 128, in / 128]`, both rounded up, row-major.
        scales: Numbers,
    },
    /// A few bits a value, a scale a group.
    Packed(Packed),
}

impl Values {
    fn bytes(&self) -> &Bytes {
        match self {
            Self::F32(bytes) | Self::F16(bytes) | Self::Bf16(bytes) => bytes,
            Self::Fp8 { values, .. } => values,
            Self::Packed(packed) => &packed.values,
        }
    }

    fn bits(&self) -> usize {
        match self {
            Self::F32(_) => 32,
            Self::F16(_) | Self::Bf16(_) => 16,
            Self::Fp8 { .. } => 8,
            Self::Packed(packed) => packed.coding.bits(),
        }
    }
}

/// The blocks of an FP8 matrix that a run of its rows or columns lies in.
pub(super) fn blocks(run: &Range<usize>) -> Range<usize> {
    if run.is_empty() { 0..0 } else { run.start / FP8_BLOCK..run.end.div_ceil(FP8_BLOCK) }
}

impl Matrix {
    /// Wraps `values` as `[out_features, in_features]`.
    ///
    /// # Errors
    /// If the bytes or the scales do not fit the shape.
    pub fn new(out_features: usize, in_features: usize, values: Values) -> Result<Self> {
        let (bytes, bits) = (values.bytes().len(), values.bits());
        if bytes * 8 != out_features * in_features * bits {
            let error = format!("{bytes} bytes cannot hold [{out_features}, {in_features}] values of {bits} bits");
            return Err(Error::msg(error));
        }
        if let Values::Packed(packed) = &values {
            packed.check(out_features, in_features)?;
        }
        if let Values::Fp8 { scales, .. } = &values {
            let expected = out_features.div_ceil(FP8_BLOCK) * in_features.div_ceil(FP8_BLOCK);
            if scales.len() != expected {
                return Err(Error::msg(format!("{} block scales where {expected} are needed", scales.len())));
            }
        }
        Ok(Self { rows: 0..out_features, columns: 0..in_features, stride: in_features, values })
    }

    /// The rows `rows` of the columns `columns`, in place.
    ///
    /// # Errors
    /// If they are not inside this matrix, or the columns cut a group of packed values.
    pub fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Result<Self> {
        let inside = |part: &Range<usize>, whole: &Range<usize>| part.start <= part.end && part.end <= whole.len();
        if !inside(&rows, &self.rows) || !inside(&columns, &self.columns) {
            let (out, inner) = (self.out_features(), self.in_features());
            return Err(Error::msg(format!("[{rows:?}, {columns:?}] is no part of a [{out}, {inner}] matrix")));
        }
        let shifted = |part: Range<usize>, whole: &Range<usize>| part.start + whole.start..part.end + whole.start;
        let (rows, columns) = (shifted(rows, &self.rows), shifted(columns, &self.columns));
        if let Values::Packed(Packed { coding, .. }) = &self.values {
            let group = coding.group();
            if !columns.start.is_multiple_of(group) || !columns.end.is_multiple_of(group) {
                return Err(Error::msg(format!("the columns {columns:?} cut a group of {group} packed values")));
            }
        }
        Ok(Self { rows, columns, ..self.clone() })
    }

    /// Rows: output features.
    pub fn out_features(&self) -> usize {
        self.rows.len()
    }

    /// Columns: input features.
    pub fn in_features(&self) -> usize {
        self.columns.len()
    }

    /// Where this matrix starts in what is stored: row and column.
    pub fn origin(&self) -> (usize, usize) {
        (self.rows.start, self.columns.start)
    }

    /// Bits of a value.
    pub fn bits(&self) -> usize {
        self.values.bits()
    }

    /// Where the bytes of what is stored start.
    pub fn start(&self) -> *const u8 {
        self.values.bytes().as_ptr()
    }

    /// Values of a stored row.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Where the bytes of this matrix lie: its values, its scales and its biases, as far as its format has them. Those of FP8
    /// are whole blocks.
    pub fn runs(&self) -> (Runs, Option<Runs>, Option<Runs>) {
        let Self { rows, columns, stride, values } = self;
        let per = |each: usize, width: usize| columns.start / each * width..columns.end / each * width;
        let of = |bytes: &Bytes, width: usize| Runs::of(bytes, rows.clone(), per(1, width), stride * width);
        match values {
            Values::F32(bytes) => (of(bytes, 4), None, None),
            Values::F16(bytes) | Values::Bf16(bytes) => (of(bytes, 2), None, None),
            Values::Fp8 { values, scales } => {
                let (width, across) = (scales.dtype.width(), blocks(columns));
                let (across, every) = (across.start * width..across.end * width, stride.div_ceil(FP8_BLOCK) * width);
                let scales = Runs::of(&scales.bytes, blocks(rows), across, every);
                (of(values, 1), Some(scales), None)
            }
            Values::Packed(Packed { coding, values, scales, biases }) => {
                let words = coding.words(columns.start) * 4..coding.words(columns.end) * 4;
                let (group, width) = (coding.group(), scales.dtype.width());
                let of = |numbers: &Numbers| {
                    Runs::of(&numbers.bytes, rows.clone(), per(group, width), stride / group * width)
                };
                let values = Runs::of(values, rows.clone(), words, coding.words(*stride) * 4);
                (values, Some(of(scales)), biases.as_ref().map(of))
            }
        }
    }

    /// Bytes of this matrix's values, its share of scales not counted.
    pub fn bytes(&self) -> usize {
        self.out_features() * self.in_features() * self.values.bits() / 8
    }

    /// The stored values, from the origin of what is stored.
    pub fn values(&self) -> &Values {
        &self.values
    }
}
