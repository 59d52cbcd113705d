//! MLX's names of tensors, and the order in which mlx_lm has them: that of its modules' attributes.

use super::Conventions;
use crate::nn::Centre;
use crate::weights::{Coding, mlx_name};

/// The parts of a layer of Qwen's newer models, in order.
pub(super) const PARTS: &[&str] = &["linear_attn", "self_attn", "input_layernorm", "post_attention_layernorm", "mlp"];

/// Those of a layer whose norms come last.
pub(in crate::models) const NORMS_LAST: &[&str] = &["self_attn", "mlp", "input_layernorm", "post_attention_layernorm"];

/// What the parts of Llama's and Qwen's layers hold, in order; some names are in several parts.
pub(super) const MODULES: &[&str] = &[
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "q_norm",
    "k_norm",
    "conv1d",
    "in_proj_qkvz",
    "in_proj_ba",
    "in_proj_qkv",
    "in_proj_z",
    "in_proj_b",
    "in_proj_a",
    "dt_bias",
    "A_log",
    "norm",
    "out_proj",
    "gate",
    "switch_mlp.gate_proj",
    "switch_mlp.up_proj",
    "switch_mlp.down_proj",
    "gate_proj",
    "down_proj",
    "up_proj",
    "shared_expert.gate_proj",
    "shared_expert.down_proj",
    "shared_expert.up_proj",
    "shared_expert_gate",
];

/// Norms that are stored around one where the architecture has such norms.
const CENTRED: [&str; 5] = [
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    "model.norm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
];

/// How routers are quantised where their architecture is particular about them.
const ROUTER: Coding = Coding::Affine { bits: 8, group: 64 };

/// Where a tensor is in mlx_lm's order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    section: usize,
    layer: usize,
    part: usize,
    inner: usize,
    kind: usize,
    name: String,
}

impl Conventions {
    /// MLX's name of the tensor that the hub calls `name`; MLX's own stay.
    pub(super) fn mlx_name(&self, name: &str) -> String {
        let name = mlx_name(name);
        let renamed = self.prefixes.iter().find_map(|(hub, mlx)| Some(format!("{mlx}{}", name.strip_prefix(hub)?)));
        renamed.unwrap_or(name)
    }

    /// Whether MLX's module `module` is a router or the like.
    pub(super) fn is_router(module: &str) -> bool {
        module.ends_with("mlp.gate") || module.ends_with("shared_expert_gate")
    }

    /// How MLX's module `module` is quantised where the others are by `coding`.
    pub(super) fn coding(&self, module: &str, coding: Coding) -> Option<Coding> {
        match (Self::is_router(module), self.fine_routers) {
            (false, _) => Some(coding),
            (true, true) => Some(ROUTER),
            (true, false) => None,
        }
    }

    /// Whether one is added to the norm weight that MLX calls `name`.
    pub(super) fn adds_one(&self, name: &str) -> bool {
        self.centre == Centre::One && CENTRED.iter().any(|end| name.ends_with(end))
    }

    /// The place of the tensor that MLX calls `name`.
    pub(super) fn place(&self, name: &str) -> Place {
        let (module, kind) = name.rsplit_once('.').unwrap_or(("", name));
        let kind = ["weight", "scales", "biases", "bias"].iter().position(|known| *known == kind);
        // A_log and the like are no modules
        let path = if kind.is_some() { module } else { name };
        let path = path.strip_prefix("language_model.").unwrap_or(path);
        let path = path.strip_prefix("model.").unwrap_or(path);
        let after = |list: &[&str], name: &str| list.iter().position(|known| *known == name).unwrap_or(list.len());
        let (section, layer, part, inner) = match path.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
            Some((layer, rest)) => {
                let (part, inner) = rest.split_once('.').unwrap_or((rest, ""));
                (1, layer.parse().unwrap_or(usize::MAX), after(self.parts, part), after(self.modules, inner))
            }
            None => (if path == "embed_tokens" { 0 } else { 2 }, 0, after(&["norm", "lm_head"], path), 0),
        };
        Place { section, layer, part, inner, kind: kind.unwrap_or(0), name: name.to_owned() }
    }
}
