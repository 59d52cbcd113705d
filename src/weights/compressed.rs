//! Checkpoints in the `pack-quantized` format of compressed-tensors, Kimi's from K2-Thinking on: INT4 experts.

use super::checkpoint::Checkpoint;
use super::packed::{CENTRED, Coding};
use super::stored::{Dtype, Source, SourceKind, Stored, TensorInfo};
use crate::error::{Error, Result};

/// What follows the name of a matrix in that of its codes, and in that of their scales.
pub(super) const PACKED: &str = "_packed";
pub(super) const SCALE: &str = "_scale";

/// What follows it in that of a tensor that holds its shape once more.
const SHAPE: &str = "_shape";

/// Eight codes a word, the first in the lowest bits; a weight is (code − 8) · scale, a scale a group of 32 columns.
pub(super) const INT4: Coding = CENTRED;

/// A checkpoint some of whose matrices are packed. Which ones its tensors say: config.json has a list of patterns.
pub struct Compressed(Checkpoint);

impl Compressed {
    /// Reads `checkpoint`.
    pub fn new(checkpoint: Checkpoint) -> Self {
        Self(checkpoint)
    }

    fn packed(&self, name: &str) -> Option<String> {
        Some(format!("{name}{PACKED}")).filter(|packed| self.0.has(packed))
    }
}

impl Source for Compressed {
    fn has(&self, name: &str) -> bool {
        self.0.has(name) || self.packed(name).is_some()
    }

    fn info(&self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        let Some(packed) = self.packed(name) else { return self.0.info(name, shape) };
        let info = self.0.info(&packed, shape)?;
        if info.dtype != Dtype::U32 {
            let error = format!("{}: the packed tensor `{packed}` is {:?}, not I32", info.origin, info.dtype);
            return Err(Error::msg(error).hint("the file is damaged, fetch it again"));
        }
        Ok(TensorInfo { coding: Some(INT4), ..info })
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let info = self.info(name, shape)?;
        Ok(Stored { bytes: self.0.get(&info.name, shape)?.bytes, info })
    }

    fn kind(&self) -> SourceKind {
        self.0.kind()
    }

    fn names(&self) -> Vec<String> {
        let mut names = self.0.names();
        // the shape of a packed matrix, which its codes and scales say already
        let is_told = |name: &String| name.strip_suffix(SHAPE).is_some_and(|matrix| self.packed(matrix).is_some());
        names.retain(|name| !is_told(name));
        names
    }

    fn find_nan(&self, names: &[String]) -> Option<String> {
        self.0.find_nan(names)
    }
}
