//! Operands for the operations: the same numbers on every machine.

use half::{bf16, f16};

use crate::backend::{Constant, Tensor};
use crate::error::Result;
use crate::weights::{Coding, Dtype, FP8_BLOCK, Matrix, Numbers, Packed, Values};

/// Counts, then scrambles (SplitMix64).
#[derive(Debug)]
pub(super) struct Numbered(u64);

impl Numbered {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// An E4M3 that is a number.
    fn e4m3(&mut self) -> u8 {
        let byte = self.byte();
        if byte & 0x7f == 0x7f { byte & 0x80 } else { byte }
    }

    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// `count` values in [-1, 1).
    pub(super) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }

    /// `[rows, cols]` in [-1, 1).
    pub(super) fn tensor(&mut self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::from_vec(rows, cols, self.values(rows * cols))
    }

    /// Values in [-1, 1).
    pub(super) fn constant(&mut self, count: usize) -> Constant {
        self.values(count).into()
    }

    fn numbers(&mut self, dtype: Dtype, count: usize, scale: f32) -> Numbers {
        let values = self.values(count).into_iter().map(|value| value * scale);
        let bytes = match dtype {
            Dtype::F16 => values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
            Dtype::Bf16 => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>(),
        };
        Numbers { dtype, bytes: bytes.into() }
    }

    /// A matrix in `format`, its values about as large as one.
    pub(super) fn matrix(&mut self, format: Format, out: usize, inner: usize) -> Result<Matrix> {
        let count = out * inner;
        let values = match format {
            Format::F32 => Values::F32(self.numbers(Dtype::F32, count, 1.0).bytes),
            Format::F16 => Values::F16(self.numbers(Dtype::F16, count, 1.0).bytes),
            Format::Bf16 => Values::Bf16(self.numbers(Dtype::Bf16, count, 1.0).bytes),
            Format::Fp8(dtype) => {
                let values: Vec<u8> = (0..count).map(|_| self.e4m3()).collect();
                let blocks = out.div_ceil(FP8_BLOCK) * inner.div_ceil(FP8_BLOCK);
                Values::Fp8 { values: values.into(), scales: self.numbers(dtype, blocks, 0.01) }
            }
            Format::Packed(coding, dtype) => Values::Packed(self.packed(coding, dtype, true, out, inner)),
            Format::Centred(dtype) => {
                let coding = Coding::Affine { bits: 4, group: 32 };
                Values::Packed(self.packed(coding, dtype, false, out, inner))
            }
        };
        Matrix::new(out, inner, values)
    }

    /// A bf16 matrix of one number, for what only counts bytes.
    pub(super) fn ones(out: usize, inner: usize) -> Result<Matrix> {
        Matrix::new(out, inner, Values::Bf16(vec![0x3f; out * inner * 2].into()))
    }

    fn packed(&mut self, coding: Coding, dtype: Dtype, biased: bool, out: usize, inner: usize) -> Packed {
        let groups = out * inner / coding.group();
        let codes = out * coding.words(inner) * 4;
        let values: Vec<u8> = match coding {
            Coding::Mxfp8 => (0..codes).map(|_| self.e4m3()).collect(),
            _ => (0..codes).map(|_| self.byte()).collect(),
        };
        let scales = match coding {
            Coding::Affine { .. } => self.numbers(dtype, groups, 0.1),
            // powers of two about 2⁻⁴
            Coding::Mxfp4 | Coding::Mxfp8 => {
                let bytes: Vec<u8> = (0..groups).map(|_| 121 + self.below(4) as u8).collect();
                Numbers { dtype: Dtype::U8, bytes: bytes.into() }
            }
            // E4M3 below one half
            Coding::Nvfp4 => {
                let bytes: Vec<u8> = (0..groups).map(|_| self.byte() & 0x2f).collect();
                Numbers { dtype: Dtype::U8, bytes: bytes.into() }
            }
        };
        let biases = (coding.is_affine() && biased).then(|| self.numbers(dtype, groups, 1.0));
        Packed { coding, values: values.into(), scales, biases }
    }
}

/// A storage format of weights, with the type of its scales.
#[derive(Debug, Clone, Copy)]
pub(super) enum Format {
    F32,
    F16,
    Bf16,
    Fp8(Dtype),
    Packed(Coding, Dtype),
    /// Four bits in groups of 32 without biases.
    Centred(Dtype),
}

impl Format {
    /// Every format and coding, with one type of scales each; all three types among them.
    pub(super) fn all() -> Vec<Self> {
        let dtypes = [Dtype::Bf16, Dtype::F16, Dtype::F32];
        let affine = [(2, 32), (3, 64), (4, 64), (4, 128), (5, 32), (6, 64), (8, 64), (8, 32)];
        let affine = affine.into_iter().zip(dtypes.into_iter().cycle());
        let affine = affine.map(|((bits, group), dtype)| Self::Packed(Coding::Affine { bits, group }, dtype));
        let plain = [Self::F32, Self::F16, Self::Bf16, Self::Fp8(Dtype::F32), Self::Fp8(Dtype::Bf16)];
        let others = [Coding::Mxfp4, Coding::Mxfp8, Coding::Nvfp4].map(|coding| Self::Packed(coding, Dtype::U8));
        let centred = dtypes.map(Self::Centred);
        plain.into_iter().chain(affine).chain(others).chain(centred).collect()
    }

    /// Columns that must not be cut.
    pub(super) fn group(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Fp8(_) => FP8_BLOCK,
            Self::Packed(coding, _) => coding.group(),
            Self::Centred(_) => 32,
        }
    }

    /// Its name.
    pub(super) fn name(self) -> String {
        match self {
            Self::Packed(coding @ Coding::Affine { bits, group }, dtype) => {
                format!("{} {bits} bits g{group} {dtype:?}", coding.mode())
            }
            Self::Packed(coding, _) => coding.mode().to_owned(),
            Self::Centred(dtype) => format!("int4 g32 {dtype:?}"),
            Self::Fp8(dtype) => format!("fp8 {dtype:?}"),
            plain => format!("{plain:?}").to_lowercase(),
        }
    }
}
