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

/// Parts of names on the hub, and what MLX has in their place (Kimi-Linear).
const RENAMED: [(&str, &str); 6] = [
    (".block_sparse_moe.gate.e_score_correction_bias", ".mlp.e_score_correction_bias"),
    (".block_sparse_moe.", ".mlp."),
    (".switch_mlp.w1.", ".switch_mlp.gate_proj."),
    (".switch_mlp.w2.", ".switch_mlp.down_proj."),
    (".switch_mlp.w3.", ".switch_mlp.up_proj."),
    ("_conv1d.weight", "_conv.conv.weight"),
];

/// What MLX calls the tensor that the hub calls `name`, prefixes aside.
pub fn mlx_name(name: &str) -> String {
    RENAMED.iter().fold(name.to_owned(), |name, (hub, mlx)| name.replace(hub, mlx))
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

    /// The name in the file of what the hub calls `name`: the text model of a wrapped one has another prefix, and some
    /// modules have another name.
    fn stored_name(&self, name: &str) -> Option<String> {
        let inner = name.strip_prefix("model.language_model.").map(|rest| format!("language_model.model.{rest}"));
        let candidates = [Some(name.to_owned()), inner, Some(format!("language_model.{name}"))].into_iter().flatten();
        candidates.chain(std::iter::once_with(|| mlx_name(name))).find(|name| self.checkpoint.has(name))
    }

    /// The declared coding of a module.
    fn declared(&self, module: &str) -> Option<Coding> {
        self.formats.modules.get(module).copied().unwrap_or(self.formats.all)
    }

    /// The coding of a stored tensor: modules with scales are packed as declared, all others are plain.
    fn coding(&self, info: &TensorInfo) -> Result<Option<Coding>> {
        let TensorInfo { name, origin, dtype, .. } = info;
        let Some(module) =
            name.strip_suffix(".weight").filter(|module| self.checkpoint.has(&format!("{module}.scales")))
        else {
            return Ok(None);
        };
        match self.declared(module) {
            Some(coding) if *dtype == Dtype::U32 => Ok(Some(coding)),
            Some(_) => {
                Err(Error::msg(format!("{origin}: tensor `{name}` has scales, but is {dtype:?} and not packed"))
                    .hint("the file is damaged, fetch it again"))
            }
            None => {
                let error =
                    format!("{origin}: tensor `{name}` has scales, but config.json does not say how it is coded");
                Err(Error::msg(error).hint("config.json needs the table `quantization` that mlx_lm writes"))
            }
        }
    }

    /// A tensor as it lies in the file, as FP8 if its bytes are E4M3: values in words, or scales.
    fn bytes_of(&self, name: &str) -> Option<Stored> {
        let mut stored = self.checkpoint.get(name, &[]).ok()?;
        let declared = |kind: &str| name.strip_suffix(kind).and_then(|module| self.declared(module));
        match stored.info.dtype {
            Dtype::U32 if declared(".weight") == Some(Coding::Mxfp8) => stored.info.dtype = Dtype::Fp8,
            Dtype::U8 if declared(".scales") == Some(Coding::Nvfp4) => stored.info.dtype = Dtype::Fp8,
            _ => {}
        }
        Some(stored)
    }
}

impl Source for Mlx {
    fn has(&self, name: &str) -> bool {
        self.stored_name(name).is_some()
    }

    fn info(&self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        let stored = self.stored_name(name).unwrap_or_else(|| name.to_owned());
        let mut info = self.checkpoint.info(&stored, shape)?;
        info.coding = self.coding(&info)?;
        // [channels, taps, 1] is the hub's [channels, 1, taps]
        let is_convolution = ["conv1d.weight", ".conv.weight"].iter().any(|end| stored.ends_with(end));
        if let ([channels, taps, 1], true) = (&info.shape[..], is_convolution) {
            info.shape = vec![*channels, 1, *taps];
        }
        Ok(info)
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let info = self.info(name, shape)?;
        if let (Dtype::U32, None, Some(module)) = (info.dtype, info.coding, info.name.strip_suffix(".weight")) {
            let error = format!("{}: packed tensor `{}` has no `{module}.scales`", info.origin, info.name);
            return Err(Error::msg(error).hint("the checkpoint is incomplete, download it again"));
        }
        Ok(Stored { bytes: self.checkpoint.get(&info.name, shape)?.bytes, info })
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Mlx
    }

    fn names(&self) -> Vec<String> {
        self.checkpoint.names()
    }

    fn find_nan(&self, names: &[String]) -> Option<String> {
        names.iter().filter_map(|name| self.bytes_of(name)).find(Stored::has_nan).map(|stored| stored.info.place())
    }
}
