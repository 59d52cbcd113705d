//! Invented tensors of any shape, the same for the same seed: true shapes without a checkpoint.

use bytes::Bytes;
use half::bf16;
use sha2::{Digest, Sha256};

use super::digest::hex;
use super::matrix::FP8_BLOCK;
use super::stored::{Dtype, Source, Stored};
use crate::error::{Error, Result};

/// A source that has every tensor one asks for.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    fp8: bool,
}

impl Random {
    /// Invents bf16 tensors, or with `fp8` block-FP8 projections as the FP8 checkpoints have them.
    pub fn new(seed: u64, fp8: bool) -> Self {
        Self { seed, fp8 }
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
        self.fp8 && name.ends_with("_proj.weight") && !kept.iter().any(|part| name.contains(part))
    }
}

impl Source for Random {
    fn has(&self, name: &str) -> bool {
        match name.strip_suffix("_scale_inv") {
            Some(scaled) => self.is_fp8(scaled),
            // experts come one by one, and a tied head is not stored again
            None => !name.ends_with("experts.gate_up_proj") && name != "lm_head.weight",
        }
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let inner = shape.last().copied().unwrap_or(1).max(1) as f32;
        let mut numbers = Numbers::new(self.seed, name);
        let (dtype, bytes) = if self.is_fp8(name) {
            // exponent bits below 0x78: no NaN, at most 240
            let buffer = reserve(name, shape, 1)?;
            (Dtype::Fp8, numbers.fill(buffer, 1, |x| [(x as u8 & 0x80) | (x as u8 & 0x7f).min(0x77), 0]))
        } else {
            // uniform with the variance that keeps activations at one: [-√(3/in), √(3/in)]
            let (middle, reach) = match shape.len() {
                _ if name.ends_with("_scale_inv") => (1.0 / (inner * FP8_BLOCK as f32).sqrt() / 16.0, 0.0),
                1 if name.contains("norm") => (1.0, 0.1),
                1 => (0.0, 1.0),
                _ if name.contains("embed") => (0.0, 1.7),
                _ => (0.0, (3.0 / inner).sqrt()),
            };
            let value = |x: u16| bf16::from_f32(middle + reach * (f32::from(x) / 32768.0 - 1.0)).to_le_bytes();
            (Dtype::Bf16, numbers.fill(reserve(name, shape, 2)?, 2, value))
        };
        let origin = "random weights".to_owned();
        Ok(Stored { name: name.to_owned(), origin, dtype, shape: shape.to_vec(), bytes: Bytes::from(bytes) })
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn find_nan(&self, _names: &[String]) -> Option<String> {
        None
    }
}

/// An empty buffer for the tensor and a word more; shapes are only as sane as the config they come from.
fn reserve(name: &str, shape: &[usize], width: usize) -> Result<(Vec<u8>, usize)> {
    let len = shape.iter().try_fold(width, |len, n| len.checked_mul(*n));
    let mut buffer = Vec::new();
    match len {
        Some(len) if buffer.try_reserve_exact(len.saturating_add(8)).is_ok() => Ok((buffer, len)),
        _ => Err(Error::msg(format!("tensor `{name}` of shape {shape:?} does not fit in memory"))
            .hint("take a smaller model or fewer layers")),
    }
}

/// xorshift64*, seeded by the tensor's name.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64, name: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(name.as_bytes());
        let first = hash.finalize().first_chunk::<8>().map_or(1, |bytes| u64::from_le_bytes(*bytes));
        Self(first | 1)
    }

    fn fill(&mut self, buffer: (Vec<u8>, usize), width: usize, value: impl Fn(u16) -> [u8; 2]) -> Vec<u8> {
        let (mut bytes, len) = buffer;
        while bytes.len() < len {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
            for part in 0..4 {
                bytes.extend_from_slice(&value((word >> (16 * part)) as u16)[..width]);
            }
        }
        bytes.truncate(len);
        bytes
    }
}
