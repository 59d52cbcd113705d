//! Random weights in every storage format, and their values by the definition of the format.

use std::ops::Range;

use bytes::Bytes;
use candle_core::{DType, Device};
use half::{bf16, f16};
use tbshard::weights::{FP8_BLOCK, Matrix, Numbers, Values};

use super::random::Rng;
use super::reference::Exact;

/// A storage format of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Bf16,
    Fp8,
}

pub const FORMATS: [Format; 4] = [Format::Bf16, Format::Fp8, Format::F32, Format::F16];

/// A weight `[out, inner]` whose bytes can still be cut.
pub struct Stored {
    format: Format,
    pub out: usize,
    pub inner: usize,
    pub bytes: Vec<u8>,
    /// `[out / 128, inner / 128]`, rounded up; empty unless FP8.
    pub scales: Vec<f32>,
}

impl Stored {
    /// Values in [-1, 1), or, of FP8, any finite bytes with scales near 2⁻⁹.
    pub fn random(rng: &mut Rng, format: Format, out: usize, inner: usize) -> Self {
        let count = out * inner;
        let bytes = match format {
            Format::F32 => (0..count).flat_map(|_| rng.value().to_le_bytes()).collect(),
            Format::F16 => (0..count).flat_map(|_| f16::from_f32(rng.value()).to_le_bytes()).collect(),
            Format::Bf16 => (0..count).flat_map(|_| bf16::from_f32(rng.value()).to_le_bytes()).collect(),
            Format::Fp8 => (0..count).map(|_| finite(rng.byte())).collect(),
        };
        let blocks = if format == Format::Fp8 { out.div_ceil(FP8_BLOCK) * inner.div_ceil(FP8_BLOCK) } else { 0 };
        let scales = (0..blocks).map(|_| (1.0 + 0.9 * rng.value()) / 512.0).collect();
        Self { format, out, inner, bytes, scales }
    }

    /// As the kernels take it.
    pub fn matrix(&self) -> Matrix {
        let bytes = Bytes::from(self.bytes.clone());
        let values = match self.format {
            Format::F32 => Values::F32(bytes),
            Format::F16 => Values::F16(bytes),
            Format::Bf16 => Values::Bf16(bytes),
            Format::Fp8 => Values::Fp8 { values: bytes, scales: Numbers::of_f32(&self.scales) },
        };
        Matrix::new(self.out, self.inner, values).unwrap()
    }

    /// The values, exactly.
    pub fn exact(&self) -> Exact {
        let raw = |dtype| Exact::from_raw_buffer(&self.bytes, dtype, &[self.out, self.inner], &Device::Cpu).unwrap();
        let exact = match self.format {
            Format::F32 => raw(DType::F32),
            Format::F16 => raw(DType::F16),
            Format::Bf16 => raw(DType::BF16),
            Format::Fp8 => {
                let blocks = self.inner.div_ceil(FP8_BLOCK);
                let scale = |i: usize| self.scales[i / self.inner / FP8_BLOCK * blocks + i % self.inner / FP8_BLOCK];
                let value = |(i, byte): (usize, &u8)| e4m3(*byte) * f64::from(scale(i));
                let values: Vec<f64> = self.bytes.iter().enumerate().map(value).collect();
                Exact::from_vec(values, (self.out, self.inner), &Device::Cpu).unwrap()
            }
        };
        exact.to_dtype(DType::F64).unwrap()
    }

    /// Every value as the nearest f32, row after row.
    pub fn widened(&self) -> Vec<f32> {
        let values = self.exact().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        values.into_iter().map(|value| value as f32).collect()
    }

    /// The part that a rank would read; FP8 is cut at whole blocks.
    pub fn cut(&self, rows: Range<usize>, cols: Range<usize>) -> Self {
        let part = |width: usize, of: &[u8], rows: Range<usize>, cols: Range<usize>, size: usize| -> Vec<u8> {
            rows.flat_map(|row| &of[(row * width + cols.start) * size..(row * width + cols.end) * size])
                .copied()
                .collect()
        };
        let size = self.bytes.len() / (self.out * self.inner).max(1);
        let bytes = part(self.inner, &self.bytes, rows.clone(), cols.clone(), size);
        let mut scales = Vec::new();
        if self.format == Format::Fp8 && !rows.is_empty() && !cols.is_empty() {
            assert!(rows.start.is_multiple_of(FP8_BLOCK) && cols.start.is_multiple_of(FP8_BLOCK));
            let blocks = self.inner.div_ceil(FP8_BLOCK);
            for row in rows.start / FP8_BLOCK..rows.end.div_ceil(FP8_BLOCK) {
                scales.extend(&self.scales[row * blocks..][cols.start / FP8_BLOCK..cols.end.div_ceil(FP8_BLOCK)]);
            }
        }
        Self { format: self.format, out: rows.len(), inner: cols.len(), bytes, scales }
    }
}

fn finite(byte: u8) -> u8 {
    if byte & 0x7f == 0x7f { byte & 0x80 } else { byte }
}

/// (−1)ˢ · 2^(e − bias) · 1.m, or (−1)ˢ · 2^(1 − bias) · 0.m where e is zero.
fn finite_value(bits: u32, exponent_bits: u32, mantissa_bits: u32) -> f64 {
    let (sign, magnitude) =
        (bits >> (exponent_bits + mantissa_bits), bits & ((1 << (exponent_bits + mantissa_bits)) - 1));
    let (exponent, mantissa) = (magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1));
    let bias = (1 << (exponent_bits - 1)) - 1;
    let fraction = f64::from(mantissa) / f64::from(1 << mantissa_bits);
    let value = if exponent == 0 { fraction } else { 1.0 + fraction } * 2f64.powi(exponent.max(1) as i32 - bias);
    if sign == 0 { value } else { -value }
}

/// The value of an E4M3 byte: all ones is NaN, there is no infinity (OCP 8-bit floating point specification, table 1).
pub fn e4m3(byte: u8) -> f64 {
    if byte & 0x7f == 0x7f { f64::NAN } else { finite_value(u32::from(byte), 4, 3) }
}

/// The value of an IEEE 754 binary format: the largest exponent is infinity or NaN.
pub fn ieee(bits: u32, exponent_bits: u32, mantissa_bits: u32) -> f64 {
    let (largest, exponent) = ((1 << exponent_bits) - 1, bits >> mantissa_bits & ((1 << exponent_bits) - 1));
    match bits & ((1 << mantissa_bits) - 1) {
        0 if exponent == largest && bits >> (exponent_bits + mantissa_bits) == 0 => f64::INFINITY,
        0 if exponent == largest => f64::NEG_INFINITY,
        _ if exponent == largest => f64::NAN,
        _ => finite_value(bits, exponent_bits, mantissa_bits),
    }
}
