//! Kimi-Linear (arXiv 2510.26692): Kimi Delta Attention, every fourth layer latent attention without positions, experts.

use serde::Deserialize;
use serde_json::Value;

use super::common::{self, Common, PLAIN, bad_config, check_size, read};
use super::mla::{ExpertKeys, Experts, LatentKeys};
use super::mlx::{Conventions, NORMS_LAST};
use super::{Architecture, Geometry};
use crate::error::Result;
use crate::nn::{Centre, Decoder, KdaConfig, KimiDeltaAttention, Loader, Mixer};

/// The module of a layer's experts, and an expert's gate, up and down projections.
const EXPERTS: (&str, [&str; 3]) = ("block_sparse_moe", ["w1", "w3", "w2"]);

/// What config.json calls the numbers of experts.
const KEYS: ExpertKeys = ExpertKeys {
    count: "num_experts",
    chosen: "num_experts_per_token",
    shared: "num_shared_experts",
    groups: "num_expert_group",
};

/// What a layer's parts hold in mlx_lm, in order.
const MODULES: &[&str] = &[
    "q_proj",
    "k_proj",
    "v_proj",
    "q_conv.conv",
    "k_conv.conv",
    "v_conv.conv",
    "f_a_proj",
    "f_b_proj",
    "b_proj",
    "g_a_proj",
    "g_b_proj",
    "A_log",
    "dt_bias",
    "o_norm",
    "kv_a_proj_with_mqa",
    "kv_a_layernorm",
    "embed_q",
    "unembed_out",
    "o_proj",
    "gate",
    "switch_mlp.gate_proj",
    "switch_mlp.up_proj",
    "switch_mlp.down_proj",
    "e_score_correction_bias",
    "shared_experts.gate_proj",
    "shared_experts.up_proj",
    "shared_experts.down_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

#[derive(Debug, Deserialize)]
struct KimiLinear {
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    latent: LatentKeys,
    #[serde(default)]
    mla_use_nope: bool,
    // read apart, so that errors name its keys
    #[serde(skip)]
    linear: LinearAttention,
    intermediate_size: usize,
    moe_intermediate_size: usize,
    num_experts: usize,
    num_experts_per_token: usize,
    #[serde(default)]
    num_shared_experts: usize,
    first_k_dense_replace: usize,
    #[serde(default = "common::one")]
    moe_layer_freq: usize,
    #[serde(default = "common::one")]
    num_expert_group: usize,
    #[serde(default = "common::one")]
    topk_group: usize,
    #[serde(default = "common::yes")]
    moe_renormalize: bool,
    #[serde(default = "common::unscaled")]
    routed_scaling_factor: f32,
    moe_router_activation_func: Option<String>,
}

/// Which layers are what, counted from one.
#[derive(Debug, Default, Deserialize)]
struct LinearAttention {
    full_attn_layers: Vec<usize>,
    kda_layers: Vec<usize>,
    num_heads: usize,
    head_dim: usize,
    short_conv_kernel_size: usize,
}

/// Reads a `kimi_linear` config.
pub(super) fn read_config(config: &Value) -> Result<Box<dyn Architecture>> {
    let mut model: KimiLinear = read(config)?;
    let Some(linear) = config.get("linear_attn_config").filter(|linear| linear.is_object()) else {
        return Err(bad_config("there is no table `linear_attn_config`".to_owned()));
    };
    model.linear = read(linear)?;
    model.common = model.common.rotating(model.latent.qk_rope_head_dim);
    model.latent.validate()?;
    model.common.validate()?;
    model.common.refuse_attention_bias()?;
    if !model.mla_use_nope {
        return Err(bad_config(
            "mla_use_nope is not true: latent attention with positions is not supported".to_owned(),
        ));
    }
    if let Some(func) = model.moe_router_activation_func.as_ref().filter(|func| *func != "sigmoid") {
        return Err(bad_config(format!("moe_router_activation_func `{func}` is not supported, only `sigmoid`")));
    }
    model.experts().validate()?;
    model.linear.validate(model.common.num_hidden_layers)?;
    Ok(Box::new(model))
}

impl LinearAttention {
    fn validate(&self, layers: usize) -> Result<()> {
        check_size("num_heads", self.num_heads)?;
        check_size("head_dim", self.head_dim)?;
        check_size("short_conv_kernel_size", self.short_conv_kernel_size)?;
        if !self.head_dim.is_multiple_of(16) {
            return Err(bad_config(format!(
                "head_dim {} of linear_attn_config is not a multiple of 16",
                self.head_dim
            )));
        }
        let named = |layer: &usize| [&self.full_attn_layers, &self.kda_layers].map(|layers| layers.contains(layer));
        let wrong = |layer: &usize| match named(layer) {
            [full, delta] if *layer == 0 => full || delta,
            [full, delta] => full == delta,
        };
        match (0..=layers).find(wrong) {
            Some(layer) => Err(bad_config(format!(
                "layer {layer} is not in one of kda_layers and full_attn_layers, which count from 1 to {layers}"
            ))),
            None => Ok(()),
        }
    }
}

impl KimiLinear {
    fn experts(&self) -> Experts {
        Experts {
            dense_inner: self.intermediate_size,
            dense_layers: self.first_k_dense_replace,
            every: self.moe_layer_freq,
            count: self.num_experts,
            chosen: self.num_experts_per_token,
            inner: self.moe_intermediate_size,
            shared: self.num_shared_experts,
            groups: self.num_expert_group,
            top_groups: self.topk_group,
            normalise: self.moe_renormalize,
            scale: self.routed_scaling_factor,
            names: EXPERTS,
            keys: KEYS,
        }
    }

    fn mixer(&self, loader: &Loader<'_>, layer: usize, prefix: &str) -> Result<Box<dyn Mixer>> {
        let linear = &self.linear;
        if linear.full_attn_layers.contains(&(layer + 1)) {
            return self.latent.attention(loader, prefix, &self.common, false);
        }
        let config = KdaConfig {
            hidden: self.common.hidden_size,
            heads: linear.num_heads,
            head_dim: linear.head_dim,
            kernel: linear.short_conv_kernel_size,
            eps: self.common.rms_norm_eps,
        };
        Ok(Box::new(KimiDeltaAttention::load(loader, &format!("{prefix}.self_attn"), config)?))
    }
}

impl Architecture for KimiLinear {
    fn geometry(&self) -> Geometry {
        self.common.geometry()
    }

    fn load(&self, loader: &Loader<'_>) -> Result<Decoder> {
        let experts = self.experts();
        self.common.decoder(loader, PLAIN, Centre::Zero, |i, prefix| {
            Ok((self.mixer(loader, i, prefix)?, experts.load(loader, i, prefix, self.common.hidden_size)?))
        })
    }

    fn skips(&self, _name: &str) -> bool {
        false
    }

    fn mlx(&self) -> Conventions {
        Conventions {
            tied: self.common.is_tied(),
            latent: Some(self.latent.per_head()),
            fine_routers: true,
            uncast: &["e_score_correction_bias", "A_log", "dt_bias"],
            parts: NORMS_LAST,
            modules: MODULES,
            ..Conventions::PLAIN
        }
    }
}
