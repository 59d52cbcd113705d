//! A tensor as its source stores it, and the trait that sources of tensors implement.

use std::ops::Range;

use bytes::Bytes;
use safetensors::tensor::Dtype as FileDtype;

use super::compressed::PACKED;
use super::format;
use super::matrix::Matrix;
use super::numbers::Numbers;
use super::packed::Coding;
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
    /// Scales that are powers of two, or E4M3.
    U8,
    /// Words of packed values.
    U32,
}

impl Dtype {
    /// Bytes of a value.
    pub fn width(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Fp8 | Self::U8 => 1,
        }
    }

    /// The name that a safetensors header has for it.
    pub(super) fn file_name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Fp8 => "F8_E4M3",
            Self::U8 => "U8",
            Self::U32 => "U32",
        }
    }

    /// The type that a safetensors header names for the tensor `name`, if weights can be in it.
    pub(super) fn of_file(name: &str, dtype: FileDtype) -> Option<Self> {
        match dtype {
            FileDtype::F32 => Some(Self::F32),
            FileDtype::F16 => Some(Self::F16),
            FileDtype::BF16 => Some(Self::Bf16),
            FileDtype::F8_E4M3 => Some(Self::Fp8),
            FileDtype::U8 => Some(Self::U8),
            FileDtype::U32 => Some(Self::U32),
            // the same words by another name
            FileDtype::I32 if name.ends_with(PACKED) => Some(Self::U32),
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
    /// Outermost dimension first, as stored.
    pub shape: Vec<usize>,
    /// How its values are packed, if they are.
    pub coding: Option<Coding>,
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
    /// Its file and name, for people.
    pub fn place(&self) -> String {
        format!("{}: tensor `{}`", self.origin, self.name)
    }

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
    /// All values as plain numbers.
    ///
    /// # Errors
    /// If they are FP8 or packed: those mean nothing without their scales.
    pub fn numbers(&self) -> Result<Numbers> {
        match self.info.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => Ok(Numbers { dtype: self.info.dtype, bytes: self.bytes.clone() }),
            Dtype::Fp8 | Dtype::U8 | Dtype::U32 => {
                let TensorInfo { origin, name, dtype, .. } = &self.info;
                let error = format!("{origin}: tensor `{name}` is {dtype:?} where plain numbers are needed");
                Err(Error::msg(error)
                    .hint("tbshard reads matrices in FP8 or packed, everything else as F32, F16 or BF16"))
            }
        }
    }

    /// All values, widened to f32.
    ///
    /// # Errors
    /// As [`Stored::numbers`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        Ok(self.numbers()?.to_f32())
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
            // codes are numbers; their scales are looked at for themselves, and 0xff is NaN in E8M0
            Dtype::U32 => false,
            Dtype::U8 => bytes.contains(&0xff),
        }
    }
}

/// Whose conventions a source follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A checkpoint as the models' makers publish it.
    Hub,
    /// A checkpoint as mlx_lm writes it: norms around one are stored with the one added.
    Mlx,
    /// Tensors of invented values, made in memory.
    Invented,
    /// As mlx_lm would write it, made in memory from another source.
    Quantised,
}

impl SourceKind {
    /// Whether norms around one are stored with the one added.
    pub fn norms_hold_one(self) -> bool {
        matches!(self, Self::Mlx | Self::Quantised)
    }

    /// Whether a tensor costs its whole size even if only a few rows are looked up.
    pub fn is_in_memory(self) -> bool {
        matches!(self, Self::Invented | Self::Quantised)
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

    /// The rows `rows` and columns `columns` of the matrix `name` in whatever format the source has it in. `shape` is that
    /// of the whole tensor; all its dimensions but the last are rows.
    ///
    /// # Errors
    /// If it, or the scales its format needs, are missing or misshapen.
    fn part(&self, name: &str, shape: &[usize], rows: Range<usize>, columns: Range<usize>) -> Result<Matrix> {
        format::matrix(self, name, shape)?.part(rows, columns)
    }

    /// Whose conventions it follows.
    fn kind(&self) -> SourceKind;

    /// The names of all tensors, if the source has a list.
    fn names(&self) -> Vec<String>;

    /// The tensor (and its file) that holds a value that is not a number, looked for among all `names`.
    fn find_nan(&self, names: &[String]) -> Option<String>;
}
