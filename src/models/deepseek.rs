//! DeepSeek-V3 (arXiv 2412.19437) and the Kimi K2 models, which are it with other sizes: latent attention, many experts.

use serde::Deserialize;
use serde_json::Value;

use super::common::{self, Common, PLAIN, bad_config, read};
use super::mla::{ExpertKeys, Experts, LatentKeys};
use super::mlx::{Conventions, NORMS_LAST};
use super::{Architecture, Geometry};
use crate::error::Result;
use crate::nn::{Centre, Decoder, Loader, MoeConfig};

/// How the names of a wrapped text model begin, and its head.
const WRAPPED: (&str, &str) = ("language_model.model.", "language_model.lm_head.weight");

/// Vision towers and what leads from them to the text model.
const VISION: [&str; 2] = ["vision_tower.", "mm_projector."];

/// Buffers that some checkpoints hold: they follow from config.json.
const BUFFER: &str = ".rotary_emb.inv_freq";

/// What config.json calls the numbers of experts.
const KEYS: ExpertKeys = ExpertKeys {
    count: "n_routed_experts",
    chosen: "num_experts_per_tok",
    shared: "n_shared_experts",
    groups: "n_group",
};

/// What a layer's parts hold in mlx_lm, in order.
const MODULES: &[&str] = &[
    "q_proj",
    "q_a_proj",
    "q_a_layernorm",
    "q_b_proj",
    "kv_a_proj_with_mqa",
    "kv_a_layernorm",
    "embed_q",
    "unembed_out",
    "o_proj",
    "switch_mlp.gate_proj",
    "switch_mlp.up_proj",
    "switch_mlp.down_proj",
    "gate",
    "gate.e_score_correction_bias",
    "shared_experts.gate_proj",
    "shared_experts.up_proj",
    "shared_experts.down_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

#[derive(Debug, Deserialize)]
struct DeepSeek {
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    latent: LatentKeys,
    intermediate_size: usize,
    moe_intermediate_size: usize,
    n_routed_experts: usize,
    n_shared_experts: Option<usize>,
    num_experts_per_tok: usize,
    first_k_dense_replace: usize,
    #[serde(default = "common::one")]
    moe_layer_freq: usize,
    #[serde(default = "common::one")]
    n_group: usize,
    #[serde(default = "common::one")]
    topk_group: usize,
    #[serde(default = "common::yes")]
    norm_topk_prob: bool,
    #[serde(default = "common::unscaled")]
    routed_scaling_factor: f32,
    topk_method: Option<String>,
    scoring_func: Option<String>,
    num_nextn_predict_layers: Option<usize>,
    #[serde(skip)]
    names: Option<(&'static str, &'static str)>,
}

/// Reads a `deepseek_v3` or `kimi_k2` config.
pub(super) fn read_config(config: &Value) -> Result<Box<dyn Architecture>> {
    parse(config, None)
}

/// Reads a `kimi_k25` config, whose text model is nested and whose vision model is left alone.
pub(super) fn wrapped(config: &Value) -> Result<Box<dyn Architecture>> {
    let Some(text) = config.get("text_config").filter(|text| text.is_object()) else {
        return Err(bad_config("there is no table `text_config`".to_owned()));
    };
    match text.get("model_type").and_then(Value::as_str) {
        Some("kimi_k2" | "deepseek_v3") | None => parse(text, Some(WRAPPED)),
        Some(other) => Err(bad_config(format!("text_config has the model_type `{other}`, not `kimi_k2`"))),
    }
}

fn parse(text: &Value, names: Option<(&'static str, &'static str)>) -> Result<Box<dyn Architecture>> {
    let mut model: DeepSeek = read(text)?;
    model.names = names;
    model.common = model.common.rotating(model.latent.qk_rope_head_dim);
    model.latent.validate()?;
    model.common.validate()?;
    model.common.refuse_attention_bias()?;
    let known = [("topk_method", &model.topk_method, "noaux_tc"), ("scoring_func", &model.scoring_func, "sigmoid")];
    for (key, value, known) in known {
        if let Some(value) = value.as_ref().filter(|value| *value != known) {
            return Err(bad_config(format!("{key} `{value}` is not supported, only `{known}`")));
        }
    }
    model.experts().validate()?;
    Ok(Box::new(model))
}

impl DeepSeek {
    fn experts(&self) -> Experts {
        Experts {
            dense_inner: self.intermediate_size,
            dense_layers: self.first_k_dense_replace,
            every: self.moe_layer_freq,
            count: self.n_routed_experts,
            chosen: self.num_experts_per_tok,
            inner: self.moe_intermediate_size,
            shared: self.n_shared_experts.unwrap_or(0),
            groups: self.n_group,
            top_groups: self.topk_group,
            normalise: self.norm_topk_prob,
            scale: self.routed_scaling_factor,
            names: ("mlp", MoeConfig::PROJECTIONS),
            keys: KEYS,
        }
    }

    fn names(&self) -> (&'static str, &'static str) {
        self.names.unwrap_or(PLAIN)
    }
}

impl Architecture for DeepSeek {
    fn geometry(&self) -> Geometry {
        self.common.geometry()
    }

    fn load(&self, loader: &Loader<'_>) -> Result<Decoder> {
        let (common, experts) = (&self.common, self.experts());
        common.decoder(loader, self.names(), Centre::Zero, |i, prefix| {
            let mixer = self.latent.attention(loader, prefix, common, true)?;
            Ok((mixer, experts.load(loader, i, prefix, common.hidden_size)?))
        })
    }

    fn skips(&self, name: &str) -> bool {
        // layers that predict further tokens follow the others
        let layer = name.strip_prefix(self.names().0).and_then(|rest| rest.strip_prefix("layers."));
        let layer = layer.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        let (first, more) = (self.common.num_hidden_layers, self.num_nextn_predict_layers.unwrap_or(0));
        VISION.iter().any(|prefix| name.starts_with(prefix))
            || name.ends_with(BUFFER)
            || layer.is_some_and(|layer| (first..first + more).contains(&layer))
    }

    fn mlx(&self) -> Conventions {
        Conventions {
            copied_head: self.common.is_tied().then_some(self.names().1),
            latent: Some(self.latent.per_head()),
            uncast: &["e_score_correction_bias"],
            parts: NORMS_LAST,
            modules: MODULES,
            ..Conventions::PLAIN
        }
    }
}
