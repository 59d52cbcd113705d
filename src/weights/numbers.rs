//! Plain numbers as they are stored: values, or the scales and biases of packed ones.

use std::ops::Range;

use bytes::Bytes;
use half::{bf16, f16};

use super::stored::Dtype;

/// The value of an E4M3 byte (OCP 8-bit floating point, table 1).
pub fn e4m3(byte: u8) -> f32 {
    if byte & 0x7f == 0x7f {
        return f32::NAN;
    }
    // exponent and mantissa land on f32's; 2^120 moves the bias from 7 to 127 and normalises subnormals
    let magnitude = f32::from_bits(u32::from(byte & 0x7f) << 20) * f32::from_bits((120 + 127) << 23);
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Numbers in one of the plain types, little-endian.
#[derive(Debug, Clone)]
pub struct Numbers {
    /// F32, F16, Bf16 or U8.
    pub dtype: Dtype,
    /// [`Dtype::width`] bytes a number.
    pub bytes: Bytes,
}

impl Numbers {
    /// f32 numbers.
    pub fn of_f32(values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, bytes: bytes.into() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.width()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// A run of them, in place.
    pub fn part(&self, run: Range<usize>) -> Self {
        let width = self.dtype.width();
        Self { dtype: self.dtype, bytes: self.bytes.slice(run.start * width..run.end * width) }
    }

    /// All of them, widened; a U8 is its bits.
    pub fn to_f32(&self) -> Vec<f32> {
        let pairs = |f: fn([u8; 2]) -> f32| self.bytes.as_chunks::<2>().0.iter().map(|b| f(*b)).collect();
        match self.dtype {
            Dtype::F32 => self.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => pairs(|b| f16::from_le_bytes(b).to_f32()),
            Dtype::Bf16 => pairs(|b| bf16::from_le_bytes(b).to_f32()),
            Dtype::U32 => self.bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b) as f32).collect(),
            Dtype::Fp8 | Dtype::U8 => self.bytes.iter().map(|b| f32::from(*b)).collect(),
        }
    }
}
