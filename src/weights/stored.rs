//! A tensor as its source stores it, and the trait that sources of tensors implement.

use std::ops::Range;

use bytes::Bytes;
use half::{bf16, f16};
use safetensors::tensor::Dtype as FileDtype;

use super::matrix::{Matrix, Values};
use crate::error::{Error, Result};

/// The element types that weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// FP8 E4M3 without infinities.
    Fp8,
}

impl Dtype {
    /// Bytes of a value.
    pub fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Fp8 => 1,
        }
    }

    /// The type that a safetensors header names, if weights can be in it.
    pub(super) fn of_file(dtype: FileDtype) -> Option<Self> {
        match dtype {
            FileDtype::F32 => Some(Self::F32),
            FileDtype::F16 => Some(Self::F16),
            FileDtype::BF16 => Some(Self::Bf16),
            FileDtype::F8_E4M3 => Some(Self::Fp8),
            _ => None,
        }
    }
}

/// What is known of a tensor without its bytes.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Its name on the hub.
    pub name: String,
    /// Where it comes from, for people.
    pub origin: String,
    /// The element type.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

/// A tensor in storage format.
#[derive(Debug, Clone)]
pub struct Stored {
    /// What it is.
    pub info: TensorInfo,
    /// Little-endian, row-major.
    pub bytes: Bytes,
}

impl TensorInfo {
    /// Refuses any shape but `shape`.
    ///
    /// # Errors
    /// Naming the file, the tensor and both shapes.
    pub fn expect_shape(&self, shape: &[usize]) -> Result<&Self> {
        if self.shape == shape {
            return Ok(self);
        }
        let error = format!("{}: tensor `{}` has shape {:?}, not {shape:?}", self.origin, self.name, self.shape);
        Err(Error::msg(error).hint("config.json and the weights do not belong together"))
    }
}

impl Stored {
    /// All values, widened to f32.
    ///
    /// # Errors
    /// If the values are FP8: those mean nothing without their scales.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let pairs = |f: fn([u8; 2]) -> f32| self.bytes.chunks_exact(2).map(|b| f([b[0], b[1]])).collect();
        Ok(match self.info.dtype {
            Dtype::F32 => self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => pairs(|b| f16::from_le_bytes(b).to_f32()),
            Dtype::Bf16 => pairs(|b| bf16::from_le_bytes(b).to_f32()),
            Dtype::Fp8 => {
                let error = format!("{}: tensor `{}` is FP8 without scales", self.info.origin, self.info.name);
                return Err(
                    Error::msg(error).hint("tbshard reads FP8 projections, everything else as F32, F16 or BF16")
                );
            }
        })
    }

    /// Whether a value is infinite or not a number.
    pub fn has_nan(&self) -> bool {
        // all bits of the exponent are set; E4M3 has no infinities, and NaN only where the mantissa is full too
        let bytes = &self.bytes;
        match self.info.dtype {
            Dtype::F32 => bytes.chunks_exact(4).any(|b| u16::from_le_bytes([b[2], b[3]]) & 0x7f80 == 0x7f80),
            Dtype::Bf16 => bytes.chunks_exact(2).any(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7f80 == 0x7f80),
            Dtype::F16 => bytes.chunks_exact(2).any(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7c00 == 0x7c00),
            Dtype::Fp8 => bytes.iter().any(|byte| byte & 0x7f == 0x7f),
        }
    }

    /// Entry `index` of the outermost dimension.
    pub fn entry(&self, index: usize) -> Self {
        let shape = self.info.shape[1..].to_vec();
        let len = shape.iter().product::<usize>() * self.info.dtype.width();
        Self {
            bytes: self.bytes.slice(index * len..(index + 1) * len),
            info: TensorInfo { shape, ..self.info.clone() },
        }
    }

    /// A two-dimensional tensor of plain values as a matrix, in place.
    ///
    /// # Errors
    /// If it is not two-dimensional, or FP8.
    pub fn into_matrix(self) -> Result<Matrix> {
        let TensorInfo { name, origin, dtype, shape } = self.info;
        let [out_features, in_features] = shape[..] else {
            return Err(Error::msg(format!("{origin}: tensor `{name}` is not a matrix")));
        };
        let values = match dtype {
            Dtype::F32 => Values::F32(self.bytes),
            Dtype::F16 => Values::F16(self.bytes),
            Dtype::Bf16 => Values::Bf16(self.bytes),
            Dtype::Fp8 => {
                let error = format!("{origin}: FP8 tensor `{name}` has no `{name}_scale_inv`");
                return Err(Error::msg(error).hint("the checkpoint is incomplete, download it again"));
            }
        };
        Matrix::new(out_features, in_features, values)
    }
}

/// A set of named tensors.
pub trait Source: Sync {
    /// Whether the tensor exists.
    fn has(&self, name: &str) -> bool;

    /// What the tensor `name` is. `shape` is what the caller expects; a source that invents tensors gives that shape.
    ///
    /// # Errors
    /// If it is missing, or stored in a type that weights cannot be in.
    fn info(&self, name: &str, shape: &[usize]) -> Result<TensorInfo>;

    /// The tensor `name`, `shape` as for [`Source::info`].
    ///
    /// # Errors
    /// As [`Source::info`].
    fn get(&self, name: &str, shape: &[usize]) -> Result<Stored>;

    /// The rows `rows` and columns `columns` of the matrix `name` (`[out, in]`) in whatever format the source has it in.
    ///
    /// # Errors
    /// If it, or the scales its format needs, are missing or misshapen.
    fn part(
        &self,
        name: &str,
        (out_features, in_features): (usize, usize),
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<Matrix> {
        matrix(self, name, out_features, in_features)?.part(rows, columns)
    }

    /// Whether tensors are made in memory, so that one costs its whole size even if only a few rows are looked up.
    fn is_invented(&self) -> bool;

    /// The names of all tensors, if the source has a list.
    fn names(&self) -> Vec<String>;

    /// The tensor (and its file) that holds a value that is not a number, looked for among all `names`.
    fn find_nan(&self, names: &[String]) -> Option<String>;
}

/// The whole matrix `name`: adding a format is a line here.
fn matrix<S: Source + ?Sized>(source: &S, name: &str, out_features: usize, in_features: usize) -> Result<Matrix> {
    let stored = source.get(name, &[out_features, in_features])?;
    stored.info.expect_shape(&[out_features, in_features])?;
    match stored.info.dtype {
        Dtype::Fp8 => super::fp8::matrix(source, stored),
        _ => stored.into_matrix(),
    }
}
