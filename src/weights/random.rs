//! Invented tensors of any shape, the same for the same seed: true shapes without a checkpoint.
//!
//! A value depends on the seed, the tensor's name and its place there, so that a rank invents only its own part.

use std::ops::Range;

use bytes::Bytes;
use half::bf16;
use sha2::{Digest, Sha256};

use super::compressed::{INT4, PACKED, SCALE};
use super::digest::hex;
use super::format::{self, scales_name, scales_shape};
use super::matrix::{FP8_BLOCK, Matrix, Values};
use super::numbers::Numbers;
use super::packed::Packed;
use super::stored::{Dtype, Source, SourceKind, Stored, TensorInfo};
use crate::error::{Error, Result};

/// The storage format of invented matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invented {
    /// bf16.
    Bf16,
    /// Block-FP8 projections, as the FP8 checkpoints have them.
    BlockFp8,
    /// INT4 experts, as Kimi's checkpoints have them.
    Int4Experts,
}

/// A source that has every tensor one asks for.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    kind: Invented,
}

/// Parts of names that nothing invented has: experts come one by one and projections as on the hub, and a tied head is
/// not stored again.
const ABSENT: [&str; 4] = ["experts.gate_up_proj", "switch_mlp", "embed_q", "lm_head.weight"];

/// A run of rows and of columns of a tensor; the last dimension is the columns, all before it are rows.
#[derive(Clone)]
struct Part {
    rows: Range<usize>,
    columns: Range<usize>,
    stride: usize,
}

impl Random {
    /// Invents tensors; those that `kind` does not store otherwise are bf16.
    pub fn new(seed: u64, kind: Invented) -> Self {
        Self { seed, kind }
    }

    /// SHA-256 over `config` and the seed: what [`super::Checkpoint::digest`] is for files.
    pub fn digest(&self, config: &[u8]) -> String {
        let mut hash = Sha256::new();
        hash.update(b"random");
        hash.update(self.seed.to_le_bytes());
        hash.update(config);
        hex(hash)
    }

    fn is_fp8(&self, name: &str) -> bool {
        let kept = ["in_proj_a.", "in_proj_b.", "in_proj_ba.", "conv1d", "norm"];
        let projects = ["_proj.weight", "_proj_with_mqa.weight"].iter().any(|end| name.ends_with(end));
        self.kind == Invented::BlockFp8 && projects && !kept.iter().any(|part| name.contains(part))
    }

    /// Whether the matrix `name`, or the tensor that belongs to it, is packed.
    fn is_int4(&self, name: &str) -> bool {
        self.kind == Invented::Int4Experts && name.contains(".experts.")
    }

    /// The bytes of a part of the tensor.
    fn invent(&self, info: &TensorInfo, part: Part) -> Result<Bytes> {
        let TensorInfo { name, dtype, shape, .. } = info;
        let values = part.rows.len().checked_mul(part.columns.len());
        let mut bytes = Vec::new();
        // shapes are only as sane as the config they come from, and a failed allocation aborts
        match values.and_then(|values| values.checked_mul(dtype.width())) {
            Some(len) if bytes.try_reserve_exact(len).is_ok() => {}
            _ => {
                let error = Error::msg(format!("tensor `{name}` of shape {shape:?} does not fit in memory"));
                return Err(error.hint("take a smaller model or fewer layers"));
            }
        }
        let noise = Noise::new(self.seed, name);
        if *dtype == Dtype::Fp8 {
            // exponent bits below 0x78: no NaN, at most 240
            noise.fill(&mut bytes, part, |[x]| [(x & 0x80) | (x & 0x7f).min(0x77)]);
            return Ok(bytes.into());
        }
        if *dtype == Dtype::U32 {
            noise.fill(&mut bytes, part, |word: [u8; 4]| word);
            return Ok(bytes.into());
        }
        // uniform with the variance that keeps activations at one: [-√(3/in), √(3/in)]
        let inner = part.stride.max(1) as f32;
        let (middle, reach) = match shape.len() {
            _ if name.ends_with("_scale_inv") => (1.0 / (inner * FP8_BLOCK as f32).sqrt() / 16.0, 0.0),
            // codes of variance 21, as many columns as there are groups of them
            _ if name.ends_with(SCALE) => (1.0 / (inner * INT4.group() as f32 * 21.0).sqrt(), 0.0),
            1 if name.contains("norm") => (1.0, 0.1),
            1 => (0.0, 1.0),
            _ if name.contains("embed") => (0.0, 1.7),
            _ => (0.0, (3.0 / inner).sqrt()),
        };
        let value = |x: f32| bf16::from_f32(middle + reach * (x / 32768.0 - 1.0));
        noise.fill(&mut bytes, part, |x| value(u16::from_le_bytes(x).into()).to_le_bytes());
        Ok(bytes.into())
    }

    /// The FP8 values and the scales of whole blocks.
    fn blocks(&self, info: &TensorInfo, part: Part) -> Result<Values> {
        let blocks = |run: &Range<usize>| run.start / FP8_BLOCK..run.end.div_ceil(FP8_BLOCK);
        let shape = scales_shape(info.shape[0], info.shape[1]);
        let scaled = Part { rows: blocks(&part.rows), columns: blocks(&part.columns), stride: shape[1] };
        let scales = self.info(&scales_name(&info.name), &shape)?;
        let scales = Numbers { dtype: scales.dtype, bytes: self.invent(&scales, scaled)? };
        Ok(Values::Fp8 { values: self.invent(info, part)?, scales })
    }
}

impl Random {
    /// The codes and the scales of whole groups.
    fn packed(&self, info: TensorInfo, shape: &[usize], part: Part) -> Result<Values> {
        let per = |run: &Range<usize>, each: usize| run.start / each..run.end.div_ceil(each);
        let scales = self.info(&format!("{}{SCALE}", info.name.trim_end_matches(PACKED)), shape)?;
        let scaled = |each: usize| Part {
            rows: part.rows.clone(),
            columns: per(&part.columns, each),
            stride: part.stride / each,
        };
        let values = self.invent(&info, scaled(32 / INT4.bits()))?;
        let scales = Numbers { dtype: scales.dtype, bytes: self.invent(&scales, scaled(INT4.group()))? };
        Ok(Values::Packed(Packed { coding: INT4, values, scales, biases: None }))
    }
}

impl Source for Random {
    fn has(&self, name: &str) -> bool {
        match name.strip_suffix("_scale_inv") {
            Some(scaled) => self.is_fp8(scaled),
            None => !ABSENT.iter().any(|part| name.contains(part)),
        }
    }

    fn info(&self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        let origin = "random weights".to_owned();
        if self.is_int4(name) && name.ends_with(".weight") {
            let columns = shape.last().copied().unwrap_or(0);
            if !INT4.divides(columns) {
                let error =
                    format!("{origin}: rows of {columns} values of `{name}` are no whole groups of {}", INT4.group());
                return Err(Error::msg(error).hint("sizes of INT4 experts are multiples of 32: look at config.json"));
            }
            let mut shape = shape.to_vec();
            shape.last_mut().into_iter().for_each(|columns| *columns = INT4.words(*columns));
            let name = format!("{name}{PACKED}");
            return Ok(TensorInfo { name, origin, dtype: Dtype::U32, shape, coding: Some(INT4) });
        }
        let dtype = match name {
            name if self.is_fp8(name) => Dtype::Fp8,
            name if self.is_int4(name) && name.ends_with(PACKED) => Dtype::U32,
            _ => Dtype::Bf16,
        };
        Ok(TensorInfo { name: name.to_owned(), origin, dtype, shape: shape.to_vec(), coding: None })
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let info = self.info(name, shape)?;
        let (rows, stride) = format::flat(shape);
        let bytes = self.invent(&info, Part { rows: 0..rows, columns: 0..stride, stride })?;
        Ok(Stored { info, bytes })
    }

    fn part(&self, name: &str, shape: &[usize], rows: Range<usize>, columns: Range<usize>) -> Result<Matrix> {
        let (out_features, in_features) = format::flat(shape);
        let info = self.info(name, shape)?;
        let mut made = Part { rows: rows.clone(), columns: columns.clone(), stride: in_features };
        if info.coding.is_some() {
            return Matrix::new(rows.len(), columns.len(), self.packed(info, shape, made)?);
        }
        if info.dtype != Dtype::Fp8 {
            return Matrix::new(rows.len(), columns.len(), Values::Bf16(self.invent(&info, made)?));
        }
        let whole = |run: Range<usize>, all: usize| match run.is_empty() {
            true => 0..0,
            false => run.start / FP8_BLOCK * FP8_BLOCK..run.end.next_multiple_of(FP8_BLOCK).min(all),
        };
        (made.rows, made.columns) = (whole(rows.clone(), out_features), whole(columns.clone(), in_features));
        let (top, left) = (made.rows.start, made.columns.start);
        let matrix = Matrix::new(made.rows.len(), made.columns.len(), self.blocks(&info, made)?)?;
        let inside =
            |run: Range<usize>, from: usize| if run.is_empty() { 0..0 } else { run.start - from..run.end - from };
        matrix.part(inside(rows, top), inside(columns, left))
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Invented
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn find_nan(&self, _names: &[String]) -> Option<String> {
        None
    }
}

/// Random bytes by their place (splitmix64), seeded by the tensor's name.
struct Noise(u64);

/// Bytes made at a time; whole words.
const CHUNK: usize = 512;

impl Noise {
    fn new(seed: u64, name: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(name.as_bytes());
        Self(hash.finalize().first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
    }

    fn word(&self, index: usize) -> u64 {
        let mut word = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.0);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Appends `value` of the random bytes at every place of `part`.
    fn fill<const WIDTH: usize>(&self, bytes: &mut Vec<u8>, part: Part, value: impl Fn([u8; WIDTH]) -> [u8; WIDTH]) {
        let Part { rows, columns, stride } = part;
        // whole rows are one run
        let (runs, len) = match columns.len() == stride {
            true => (rows.start..rows.end.min(rows.start + 1), rows.len() * stride),
            false => (rows, columns.len()),
        };
        for row in runs {
            let start = (row * stride + columns.start) * WIDTH;
            let (mut at, end) = (start, start + len * WIDTH);
            while at < end {
                let mut chunk = [0; CHUNK];
                for (i, word) in chunk.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    *word = self.word(at / 8 + i).to_le_bytes();
                }
                for number in chunk.as_chunks_mut::<WIDTH>().0 {
                    *number = value(*number);
                }
                let made = &chunk[at % 8..CHUNK.min(at % 8 + end - at)];
                bytes.extend_from_slice(made);
                at += made.len();
            }
        }
    }
}
