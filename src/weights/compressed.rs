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

    /// Refuses codes of another shape than the tensor beside them says, if there is one.
    fn check_shape(&self, name: &str, codes: &TensorInfo) -> Result<()> {
        let shape = format!("{name}{SHAPE}");
        // each is a page of the file: of a layer's experts the first stands for all
        let is_another = name.split_once(".experts.").is_some_and(|(_, expert)| !expert.starts_with("0."));
        if is_another || !self.0.has(&shape) {
            return Ok(());
        }
        let (said, file) = self.0.integers(&shape)?;
        let mut held: Vec<u64> = codes.shape.iter().map(|size| *size as u64).collect();
        held.last_mut().into_iter().for_each(|words| *words *= 32 / INT4.bits() as u64);
        if said == held {
            return Ok(());
        }
        let (file, codes) = (file.display(), &codes.name);
        let error = format!("`{file}`: tensor `{shape}` says {said:?}, but `{codes}` holds {held:?} values");
        Err(Error::msg(error)
            .hint("the checkpoint is damaged or was packed otherwise than tbshard knows, fetch it again"))
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
        if info.coding.is_some() {
            self.check_shape(name, &info)?;
        }
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
