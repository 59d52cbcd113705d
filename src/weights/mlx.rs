//! MLX's checkpoints as mlx_lm writes them, seen by the hub's names: prefixes, stacked experts, packed weights.

use std::collections::BTreeMap;

use super::checkpoint::Checkpoint;
use super::packed::Coding;
use super::stored::{Dtype, Source, SourceKind, Stored, TensorInfo};
use crate::error::{Error, Result};

/// The `quantization` table of a config: how modules are coded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Formats {
    /// Of modules that are not named.
    pub all: Option<Coding>,
    /// By module (a tensor's name in the file without `.weight`); `None` is plain.
    pub modules: BTreeMap<String, Option<Coding>>,
}

/// A checkpoint in MLX's conventions.
pub struct Mlx {
    checkpoint: Checkpoint,
    formats: Formats,
}

impl Mlx {
    /// Reads `checkpoint` by `formats`.
    pub fn new(checkpoint: Checkpoint, formats: Formats) -> Self {
        Self { checkpoint, formats }
    }

    /// The name in the file of what the hub calls `name`: the text model of a wrapped one has another prefix.
    fn stored_name(&self, name: &str) -> Option<String> {
        let inner = name.strip_prefix("model.language_model.").map(|rest| format!("language_model.model.{rest}"));
        let candidates = [Some(name.to_owned()), inner, Some(format!("language_model.{name}"))];
        candidates.into_iter().flatten().find(|name| self.checkpoint.has(name))
    }

    fn coding(&self, name: &str, info: &TensorInfo) -> Result<Option<Coding>> {
        let Some(module) =
            name.strip_suffix(".weight").filter(|module| self.checkpoint.has(&format!("{module}.scales")))
        else {
            return Ok(None);
        };
        let coding = self.formats.modules.get(module).copied().unwrap_or(self.formats.all);
        match coding {
            Some(coding) if info.dtype == Dtype::U32 => Ok(Some(coding)),
            Some(_) => Err(Error::msg(format!("{}: tensor `{name}` is {:?}, not packed", info.origin, info.dtype))
                .hint("the file is damaged, fetch it again")),
            None => {
                Err(Error::msg(format!("{}: `{module}` has scales, but config.json does not say how", info.origin))
                    .hint("config.json needs mlx_lm's table `quantization`"))
            }
        }
    }
}

impl Source for Mlx {
    fn has(&self, name: &str) -> bool {
        self.stored_name(name).is_some()
    }

    fn info(&self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        let stored = self.stored_name(name).unwrap_or_else(|| name.to_owned());
        let mut info = self.checkpoint.info(&stored, shape)?;
        info.coding = self.coding(&stored, &info)?;
        // [channels, taps, 1] is the hub's [channels, 1, taps]
        if let ([channels, taps, 1], true) = (&info.shape[..], stored.ends_with("conv1d.weight")) {
            info.shape = vec![*channels, 1, *taps];
        }
        Ok(info)
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let info = self.info(name, shape)?;
        Ok(Stored { bytes: self.checkpoint.get(&info.name, shape)?.bytes, info })
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Mlx
    }

    fn names(&self) -> Vec<String> {
        self.checkpoint.names()
    }

    fn find_nan(&self, names: &[String]) -> Option<String> {
        self.checkpoint.find_nan(names)
    }
}
