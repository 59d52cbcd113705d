//! Weights of 2 to 8 bits in groups that share a scale: MLX's affine formats, MXFP4, MXFP8 (OCP MX 1.0) and NVFP4.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::numbers::Numbers;
use super::stored::Dtype;
use crate::error::{Error, Result};

/// How a packed weight is coded. A row's values lie LSB first in 32-bit words; consecutive columns form the groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Coding {
    /// scale · q + bias with q unsigned: a scale and a bias (F32, F16 or Bf16) a group.
    Affine {
        /// 2, 3, 4, 5, 6 or 8.
        bits: u8,
        /// 32, 64 or 128.
        group: u8,
    },
    /// E2M1 times a power of two (E8M0) a group of 32.
    Mxfp4,
    /// E4M3 times a power of two (E8M0) a group of 32.
    Mxfp8,
    /// E2M1 times an E4M3 a group of 16.
    Nvfp4,
}

impl Coding {
    /// MLX's coding `mode`, with the bits and group size that a config may leave out.
    ///
    /// # Errors
    /// If there is no such format.
    pub fn named(mode: &str, bits: Option<u64>, group: Option<u64>) -> Result<Self> {
        let (coding, default) = match mode {
            "affine" => {
                let (bits, group) = (bits.unwrap_or(4), group.unwrap_or(64));
                if ![2, 3, 4, 5, 6, 8].contains(&bits) || ![32, 64, 128].contains(&group) {
                    let error = Error::msg(format!("there is no affine format of {bits} bits in groups of {group}"));
                    return Err(error.hint("bits are 2, 3, 4, 5, 6 or 8, groups 32, 64 or 128"));
                }
                return Ok(Self::Affine { bits: bits as u8, group: group as u8 });
            }
            "mxfp4" => (Self::Mxfp4, (4, 32)),
            "mxfp8" => (Self::Mxfp8, (8, 32)),
            "nvfp4" => (Self::Nvfp4, (4, 16)),
            _ => {
                let error = Error::msg(format!("the quantisation mode `{mode}` is not known"));
                return Err(error.hint("tbshard knows affine, mxfp4, mxfp8 and nvfp4"));
            }
        };
        let asked = (bits.unwrap_or(default.0), group.unwrap_or(default.1));
        if asked != default {
            let error =
                format!("{mode} has {} bits in groups of {}, not {} in {}", default.0, default.1, asked.0, asked.1);
            return Err(Error::msg(error).hint("leave bits and group size out"));
        }
        Ok(coding)
    }

    /// MLX's name of the mode.
    pub fn mode(self) -> &'static str {
        match self {
            Self::Affine { .. } => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// Bits of a value.
    pub fn bits(self) -> usize {
        match self {
            Self::Affine { bits, .. } => bits.into(),
            Self::Mxfp4 | Self::Nvfp4 => 4,
            Self::Mxfp8 => 8,
        }
    }

    /// Columns that share a scale.
    pub fn group(self) -> usize {
        match self {
            Self::Affine { group, .. } => group.into(),
            Self::Mxfp4 | Self::Mxfp8 => 32,
            Self::Nvfp4 => 16,
        }
    }

    /// What MLX calls the tensors that belong to one of codes.
    pub fn companions(self) -> &'static [&'static str] {
        if self.is_affine() { &["scales", "biases"] } else { &["scales"] }
    }

    /// Whether groups have a bias, and scales the type of the weights.
    pub fn is_affine(self) -> bool {
        matches!(self, Self::Affine { .. })
    }

    /// 32-bit words of a row of `columns` values.
    pub fn words(self, columns: usize) -> usize {
        columns * self.bits() / 32
    }

    /// Whether rows of `columns` values can be coded: whole groups and whole words.
    pub fn divides(self, columns: usize) -> bool {
        columns.is_multiple_of(self.group()) && (columns * self.bits()).is_multiple_of(32)
    }
}

/// The affine coding that needs no biases.
pub(super) const CENTRED: Coding = Coding::Affine { bits: 4, group: 32 };

/// The values of a packed matrix `[out, in]`.
#[derive(Debug, Clone)]
pub struct Packed {
    /// How they are coded.
    pub coding: Coding,
    /// `[out, words]`.
    pub values: Bytes,
    /// `[out, in / group]`; U8 where they are powers of two or E4M3.
    pub scales: Numbers,
    /// `[out, in / group]`, of the scales' type; none but for [`Coding::Affine`]. Four affine bits in groups of 32 may do without:
    /// then 8 stands for zero, as if each were −8 · scale.
    pub biases: Option<Numbers>,
}

impl Packed {
    /// Checks that the parts fit a matrix of this shape.
    ///
    /// # Errors
    /// If they do not.
    pub(super) fn check(&self, out_features: usize, in_features: usize) -> Result<()> {
        let Self { coding, values, scales, biases } = self;
        if !coding.divides(in_features) {
            let (group, bits) = (coding.group(), coding.bits());
            return Err(Error::msg(format!(
                "rows of {in_features} values are no whole groups of {group} by {bits} bits"
            )));
        }
        let (expected, groups) =
            (out_features * coding.words(in_features) * 4, out_features * in_features / coding.group());
        if values.len() != expected {
            return Err(Error::msg(format!("{} bytes of packed values where {expected} are needed", values.len())));
        }
        let plain = [Dtype::F32, Dtype::F16, Dtype::Bf16].contains(&scales.dtype);
        let affine = coding.is_affine();
        if (affine && !plain) || (!affine && scales.dtype != Dtype::U8) {
            return Err(Error::msg(format!("{:?} scales do not belong to {} values", scales.dtype, coding.mode())));
        }
        for (what, numbers) in [("scales", Some(scales)), ("biases", biases.as_ref())] {
            if let Some(numbers) = numbers.filter(|numbers| numbers.len() != groups) {
                return Err(Error::msg(format!("{} {what} where {groups} are needed", numbers.len())));
            }
        }
        match biases {
            Some(biases) if affine && biases.dtype == scales.dtype => Ok(()),
            None if !affine => Ok(()),
            Some(biases) if affine => {
                Err(Error::msg(format!("biases are {:?} where the scales are {:?}", biases.dtype, scales.dtype)))
            }
            Some(_) => Err(Error::msg(format!("{} values have no biases", coding.mode()))),
            None if *coding == CENTRED => Ok(()),
            None => Err(Error::msg("affine values need biases, but for four bits in groups of 32")),
        }
    }
}
