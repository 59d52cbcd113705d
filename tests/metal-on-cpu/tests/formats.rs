//! Stored matrices of every format that kernels read, and what they stand for.

use half::{bf16, f16};
use tbshard::gpu::params::MatrixParams;

use crate::support::{bytes, random};

/// Rows and columns of an FP8 block that are before those that are read, and columns that are stored after them.
const BEFORE: [usize; 2] = [125, 120];
const AFTER: usize = 8;

/// A matrix as it is stored, from the first value that is read.
pub struct Stored {
    pub format: &'static str,
    pub params: MatrixParams,
    pub values: Vec<u8>,
    pub scales: Vec<u8>,
    pub biases: Vec<u8>,
    width: usize,
}

/// A format, values that share a scale (rows too, for fp8), what type scales have, and whether there are biases.
pub const FORMATS: [(&str, usize, u32, bool); 19] = [
    ("f32", 0, 0, false),
    ("f16", 0, 0, false),
    ("bf16", 0, 0, false),
    ("fp8", 128, 0, false),
    ("fp8", 128, 2, false),
    ("affine2", 64, 1, true),
    ("affine3", 32, 0, true),
    ("affine4", 32, 0, false),
    ("affine4", 64, 2, true),
    ("affine4", 128, 1, true),
    ("affine5", 64, 2, true),
    ("affine5", 128, 0, true),
    ("affine6", 64, 1, true),
    ("affine6", 32, 2, true),
    ("affine8", 64, 2, true),
    ("affine8", 32, 0, true),
    ("fp4", 32, 3, false),
    ("fp4", 16, 4, false),
    ("mxfp8", 32, 3, false),
];

fn e4m3(code: u8) -> f32 {
    let (sign, exponent, mantissa) = (code >> 7, i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (0, _) => mantissa * 2_f32.powi(-9),
        (15, 7) => f32::NAN,
        _ => (1.0 + mantissa / 8.0) * 2_f32.powi(exponent - 7),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

fn bits_of(format: &str) -> usize {
    match format {
        "f32" => 32,
        "f16" | "bf16" => 16,
        "fp8" | "mxfp8" => 8,
        "fp4" => 4,
        affine => affine.trim_start_matches("affine").parse().unwrap(),
    }
}

/// Random numbers of one of the types that scales have.
fn scales(seed: u64, count: usize, dtype: u32) -> Vec<u8> {
    let numbers = random(seed, count);
    let codes = |low: f32, high: f32| numbers.iter().map(|x| ((x + 1.0) / 2.0 * (high - low) + low) as u8).collect();
    match dtype {
        0 => bytes(&numbers).to_vec(),
        1 => numbers.iter().flat_map(|x| f16::from_f32(*x).to_bits().to_ne_bytes()).collect(),
        2 => numbers.iter().flat_map(|x| bf16::from_f32(*x).to_bits().to_ne_bytes()).collect(),
        3 => codes(120.0, 130.0),
        _ => codes(30.0, 70.0),
    }
}

fn scale(scales: &[u8], index: usize, dtype: u32) -> f32 {
    let short = |index: usize| u16::from_ne_bytes([scales[2 * index], scales[2 * index + 1]]);
    match dtype {
        0 => f32::from_ne_bytes(scales[4 * index..][..4].try_into().unwrap()),
        1 => f16::from_bits(short(index)).to_f32(),
        2 => bf16::from_bits(short(index)).to_f32(),
        3 => 2_f32.powi(i32::from(scales[index]) - 127),
        _ => e4m3(scales[index]),
    }
}

impl Stored {
    /// One of which `rows` rows of `columns` columns can be read.
    pub fn random(
        (format, group, dtype, biased): (&'static str, usize, u32, bool),
        rows: usize,
        columns: usize,
    ) -> Self {
        let bits = bits_of(format);
        let before = if format == "fp8" { BEFORE } else { [0; 2] };
        let width = (columns + before[1] + AFTER).next_multiple_of(group.max(1));
        let height = rows + before[0];
        let plain = random(4, height * width);
        let values = match format {
            "f32" => bytes(&plain).to_vec(),
            "f16" => scales(4, height * width, 1),
            "bf16" => scales(4, height * width, 2),
            // codes of numbers, not of NaN
            "fp8" | "mxfp8" => plain.iter().map(|x| u8::from(*x < 0.0) << 7 | (x * 60.0).abs() as u8).collect(),
            _ => plain[..height * width * bits / 8].iter().map(|x| (x * 127.0) as i8 as u8).collect(),
        };
        let blocks = if format == "fp8" { height.div_ceil(group) } else { height };
        let groups = width.checked_div(group).unwrap_or(0);
        let params = MatrixParams {
            out_features: rows as u32,
            row: before[0] as u32,
            column: before[1] as u32,
            row_bytes: (width * bits / 8) as u32,
            group: group as u32,
            groups_a_row: groups as u32,
            scales: dtype,
            biased: biased.into(),
        };
        let count = (blocks * groups).max(1);
        let biases = if biased { scales(6, count, dtype) } else { vec![0; 4] };
        let values = values[(before[0] * width + before[1]) * bits / 8..].to_vec();
        Self { format, params, values, scales: scales(5, count, dtype), biases, width }
    }

    /// The value at a row and a column that can be read.
    pub fn at(&self, row: usize, column: usize) -> f32 {
        let (bits, start) = (bits_of(self.format), row * self.width + column);
        let (row, column) = (row + self.params.row as usize, column + self.params.column as usize);
        let code = || {
            let first = start * bits;
            (0..bits)
                .map(|bit| u32::from(self.values[(first + bit) / 8] >> ((first + bit) % 8) & 1) << bit)
                .sum::<u32>()
        };
        let MatrixParams { group, groups_a_row, scales: dtype, .. } = self.params;
        let index = |row: usize| row * groups_a_row as usize + column / group as usize;
        match self.format {
            "f32" => scale(&self.values, start, 0),
            "f16" => scale(&self.values, start, 1),
            "bf16" => scale(&self.values, start, 2),
            "fp8" => e4m3(self.values[start]) * scale(&self.scales, index(row / group as usize), dtype),
            "mxfp8" => e4m3(self.values[start]) * scale(&self.scales, index(row), dtype),
            "fp4" => {
                let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][code() as usize & 7];
                let value = if code() & 8 == 0 { magnitude } else { -magnitude };
                value * scale(&self.scales, index(row), dtype)
            }
            _ => {
                let factor = scale(&self.scales, index(row), dtype);
                let bias = match self.params.biased {
                    0 => -8.0 * factor,
                    _ => scale(&self.biases, index(row), dtype),
                };
                factor.mul_add(code() as f32, bias)
            }
        }
    }
}
