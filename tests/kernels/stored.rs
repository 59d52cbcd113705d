//! Random weights in every storage format, and their values by the definition of the format.

use std::ops::Range;
use std::sync::LazyLock;

use candle_core::{DType, Device};
use half::{bf16, f16};
use tbshard::weights::{Coding, Dtype, FP8_BLOCK, Matrix, Numbers, Packed, Values};

use super::guard::{Edge, guarded};
use super::random::Rng;
use super::reference::Exact;

/// A storage format of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Bf16,
    Fp8,
    /// Codes, and scales of a type.
    Packed(Coding, Dtype),
    /// Affine codes without biases: the middle one is zero.
    Centred(Coding, Dtype),
}

pub const PLAIN: [Format; 4] = [Format::Bf16, Format::Fp8, Format::F32, Format::F16];

/// Every packed format with every type of scales.
pub static PACKED: LazyLock<Vec<Format>> = LazyLock::new(|| {
    let mut all: Vec<Format> =
        [Coding::Mxfp4, Coding::Mxfp8, Coding::Nvfp4].map(|coding| Format::Packed(coding, Dtype::U8)).to_vec();
    for (bits, group) in [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| [32, 64, 128].map(|group| (bits, group))) {
        let affine = Coding::Affine { bits, group };
        all.extend([Dtype::Bf16, Dtype::F16, Dtype::F32].map(|dtype| Format::Packed(affine, dtype)));
    }
    all
});

/// The affine format that needs no biases; Kimi's experts are in the first one.
pub const CENTRED: [Format; 3] =
    [Format::Centred(INT4, Dtype::Bf16), Format::Centred(INT4, Dtype::F16), Format::Centred(INT4, Dtype::F32)];
const INT4: Coding = Coding::Affine { bits: 4, group: 32 };

/// All formats of codes.
pub fn coded() -> impl Iterator<Item = Format> {
    CENTRED.into_iter().chain(PACKED.iter().copied())
}

impl Format {
    /// A format for a case: plain and packed ones in turn.
    pub fn of(case: usize) -> Self {
        let packed = || coded().nth(case / 2 % coded().count()).unwrap();
        if case.is_multiple_of(2) { PLAIN[case / 2 % PLAIN.len()] } else { packed() }
    }

    /// At least `width` columns, as many as rows can have.
    pub fn width(self, width: usize) -> usize {
        width.next_multiple_of(self.group())
    }

    /// The least multiple of `unit` at which leaves may start.
    pub fn unit(self, unit: usize) -> usize {
        (1..).map(|n| n * unit).find(|n| n.is_multiple_of(self.group())).unwrap()
    }

    /// As [`Format::unit`], where what ranks own is cut out of it.
    pub fn cut_unit(self, unit: usize) -> usize {
        if self == Self::Fp8 { FP8_BLOCK } else { self.unit(unit) }
    }

    /// Columns that must not be cut.
    fn group(self) -> usize {
        if let Self::Packed(coding, _) | Self::Centred(coding, _) = self { coding.group() } else { 1 }
    }

    fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::Fp8 => 8,
            Self::Packed(coding, _) | Self::Centred(coding, _) => coding.bits(),
        }
    }

    fn is_affine(self) -> bool {
        matches!(self, Self::Packed(Coding::Affine { .. }, _))
    }

    /// The type of the scales, and the rows and columns that share one.
    fn scales(self) -> Option<(Dtype, [usize; 2])> {
        match self {
            Self::Fp8 => Some((Dtype::F32, [FP8_BLOCK; 2])),
            Self::Packed(coding, dtype) | Self::Centred(coding, dtype) => Some((dtype, [1, coding.group()])),
            _ => None,
        }
    }
}

/// A weight `[out, inner]` whose bytes can still be cut.
pub struct Stored {
    pub format: Format,
    pub out: usize,
    pub inner: usize,
    pub bytes: Vec<u8>,
    /// One a block or group, row after row; empty if the format has none.
    pub scales: Vec<u8>,
    pub biases: Vec<u8>,
}

impl Stored {
    /// Values in [-1, 1), or any finite bytes and any codes with scales that are not far from one.
    pub fn random(rng: &mut Rng, format: Format, out: usize, inner: usize) -> Self {
        let count = out * inner;
        let bytes = match format {
            Format::F32 => (0..count).flat_map(|_| rng.value().to_le_bytes()).collect(),
            Format::F16 => (0..count).flat_map(|_| f16::from_f32(rng.value()).to_le_bytes()).collect(),
            Format::Bf16 => (0..count).flat_map(|_| bf16::from_f32(rng.value()).to_le_bytes()).collect(),
            Format::Fp8 | Format::Packed(Coding::Mxfp8, _) => (0..count).map(|_| finite(rng.byte())).collect(),
            Format::Packed(coding, _) | Format::Centred(coding, _) => {
                (0..count * coding.bits() / 8).map(|_| rng.byte()).collect()
            }
        };
        let mut stored = Self { format, out, inner, bytes, scales: Vec::new(), biases: Vec::new() };
        let Some((dtype, [rows, columns])) = format.scales() else { return stored };
        for _ in 0..out.div_ceil(rows) * inner.div_ceil(columns) {
            match format {
                Format::Fp8 => stored.scales.extend(((1.0 + 0.9 * rng.value()) / 512.0).to_le_bytes()),
                Format::Packed(Coding::Nvfp4, _) => stored.scales.push(finite(rng.byte())),
                Format::Packed(Coding::Mxfp4 | Coding::Mxfp8, _) => stored.scales.push(120 + rng.byte() % 14),
                _ => {
                    let mut number = || rng.value() / (1 << rng.below(9)) as f32;
                    stored.scales.extend(encoded(dtype, number()));
                    if format.is_affine() {
                        stored.biases.extend(encoded(dtype, number()));
                    }
                }
            }
        }
        stored
    }

    /// As the kernels take it, with nothing to be read after its end.
    pub fn matrix(&self) -> Matrix {
        self.matrix_at(Edge::End)
    }

    /// As the kernels take it, with nothing to be read beyond that edge of its values, scales and biases.
    pub fn matrix_at(&self, edge: Edge) -> Matrix {
        let bytes = guarded(&self.bytes, edge);
        let numbers = |dtype, bytes: &[u8]| Numbers { dtype, bytes: guarded(bytes, edge) };
        let values = match self.format {
            Format::F32 => Values::F32(bytes),
            Format::F16 => Values::F16(bytes),
            Format::Bf16 => Values::Bf16(bytes),
            Format::Fp8 => Values::Fp8 { values: bytes, scales: numbers(Dtype::F32, &self.scales) },
            Format::Packed(coding, dtype) | Format::Centred(coding, dtype) => {
                let biases = self.format.is_affine().then(|| numbers(dtype, &self.biases));
                Values::Packed(Packed { coding, values: bytes, scales: numbers(dtype, &self.scales), biases })
            }
        };
        Matrix::new(self.out, self.inner, values).unwrap()
    }

    /// The values: exactly, but for affine ones, which are f32 by definition.
    pub fn exact(&self) -> Exact {
        let raw = |dtype| Exact::from_raw_buffer(&self.bytes, dtype, &[self.out, self.inner], &Device::Cpu).unwrap();
        let exact = match self.format {
            Format::F32 => raw(DType::F32),
            Format::F16 => raw(DType::F16),
            Format::Bf16 => raw(DType::BF16),
            Format::Fp8 | Format::Packed(..) | Format::Centred(..) => {
                let values: Vec<f64> = (0..self.out * self.inner).map(|i| self.value(i)).collect();
                Exact::from_vec(values, (self.out, self.inner), &Device::Cpu).unwrap()
            }
        };
        exact.to_dtype(DType::F64).unwrap()
    }

    /// Value `i` of a format that has scales.
    fn value(&self, i: usize) -> f64 {
        let (row, column) = (i / self.inner, i % self.inner);
        let (dtype, [rows, columns]) = self.format.scales().unwrap();
        let block = row / rows * self.inner.div_ceil(columns) + column / columns;
        let code =
            if self.format == Format::Fp8 { self.bytes[i].into() } else { code(&self.bytes, i, self.format.bits()) };
        let number = |bytes: &[u8]| plain(dtype, bytes, block);
        match self.format {
            Format::Packed(Coding::Affine { .. }, _) => {
                nearest(number(&self.scales) * f64::from(code), number(&self.biases))
            }
            Format::Centred(coding, _) => {
                let (scale, centre) = (number(&self.scales), f64::from(1 << (coding.bits() - 1)));
                nearest(scale * f64::from(code), -centre * scale)
            }
            Format::Packed(Coding::Mxfp4, _) => finite_value(code, 2, 1) * e8m0(self.scales[block]),
            Format::Packed(Coding::Mxfp8, _) => e4m3(code as u8) * e8m0(self.scales[block]),
            Format::Packed(Coding::Nvfp4, _) => finite_value(code, 2, 1) * e4m3(self.scales[block]),
            _ => e4m3(code as u8) * number(&self.scales),
        }
    }

    /// Code, scale and bias of every value of a row, where products with rounded activations are made of them.
    pub fn codes(&self, row: usize) -> Option<Vec<(u32, f32, f32)>> {
        let (Format::Packed(coding, dtype) | Format::Centred(coding, dtype)) = self.format else { return None };
        let Coding::Affine { bits: 4 | 8, group } = coding else { return None };
        let part = |i: usize| {
            let group = (row * self.inner + i) / usize::from(group);
            let scale = plain(dtype, &self.scales, group) as f32;
            let bias = if self.format.is_affine() { plain(dtype, &self.biases, group) as f32 } else { -8.0 * scale };
            (code(&self.bytes, row * self.inner + i, coding.bits()), scale, bias)
        };
        Some((0..self.inner).map(part).collect())
    }

    /// Every value as the nearest f32, row after row.
    pub fn widened(&self) -> Vec<f32> {
        let values = self.exact().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        values.into_iter().map(|value| value as f32).collect()
    }

    /// The part that a rank would read; blocks and groups are not cut.
    pub fn cut(&self, rows: Range<usize>, cols: Range<usize>) -> Self {
        // a grid of items of `bits` bits, `width` a row
        let part = |of: &[u8], width: usize, bits: usize, rows: Range<usize>, cols: &Range<usize>| -> Vec<u8> {
            let (start, end) = (cols.start * bits / 8, cols.end * bits / 8);
            rows.flat_map(|row| &of[row * width * bits / 8..][start..end]).copied().collect()
        };
        let bytes = part(&self.bytes, self.inner, self.format.bits(), rows.clone(), &cols);
        let mut cut = Self { bytes, out: rows.len(), inner: cols.len(), scales: vec![], biases: vec![], ..*self };
        let Some((dtype, [height, width])) = self.format.scales() else { return cut };
        if !rows.is_empty() && !cols.is_empty() {
            assert!(rows.start.is_multiple_of(height) && cols.start.is_multiple_of(width), "a block is cut");
            let blocks = |run: &Range<usize>, size: usize| run.start / size..run.end.div_ceil(size);
            let (rows, cols, all) = (blocks(&rows, height), blocks(&cols, width), self.inner.div_ceil(width));
            cut.scales = part(&self.scales, all, dtype.width() * 8, rows.clone(), &cols);
            if self.format.is_affine() {
                cut.biases = part(&self.biases, all, dtype.width() * 8, rows, &cols);
            }
        }
        cut
    }
}

/// Value `i` of `bits` bits, least significant bit first, in 32-bit words.
fn code(bytes: &[u8], i: usize, bits: usize) -> u32 {
    let bit = |at: usize| {
        let word = u32::from_le_bytes(bytes[at / 32 * 4..at / 32 * 4 + 4].try_into().unwrap());
        word >> (at % 32) & 1
    };
    (0..bits).map(|n| bit(i * bits + n) << n).sum()
}

/// Number `i` of a plain type.
fn plain(dtype: Dtype, bytes: &[u8], i: usize) -> f64 {
    let bits = (0..dtype.width()).rev().fold(0, |bits, n| bits << 8 | u32::from(bytes[i * dtype.width() + n]));
    match dtype {
        Dtype::F32 => ieee(bits, 8, 23),
        Dtype::F16 => ieee(bits, 5, 10),
        Dtype::Bf16 => ieee(bits, 8, 7),
        _ => f64::NAN,
    }
}

/// A number as a plain type has it.
pub fn encoded(dtype: Dtype, number: f32) -> Vec<u8> {
    match dtype {
        Dtype::F32 => number.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(number).to_le_bytes().to_vec(),
        _ => bf16::from_f32(number).to_le_bytes().to_vec(),
    }
}

/// The f32 nearest to `a + b`: rounded to odd in f64 first, so that it is rounded to nearest but once (Boldo, Melquiond).
fn nearest(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let from_a = sum - b;
    let error = (a - from_a) + (b - (sum - from_a));
    let bits = match error {
        _ if !sum.is_finite() || error == 0.0 || sum.to_bits() & 1 == 1 => sum.to_bits(),
        _ if (error > 0.0) == (sum > 0.0) => sum.to_bits() + 1,
        _ => sum.to_bits() - 1,
    };
    f64::from(f64::from_bits(bits) as f32)
}

/// 2^(code − 127); 255 is NaN (OCP Microscaling Formats 1.0, section 5.4.1).
pub fn e8m0(code: u8) -> f64 {
    if code == 255 { f64::NAN } else { 2f64.powi(i32::from(code) - 127) }
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
