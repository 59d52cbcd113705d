//! What DeepSeek-V3 and Kimi-Linear share: latent attention, experts chosen by sigmoids, the first layers dense.

use serde::Deserialize;

use super::common::{Common, bad_config, check_size};
use crate::error::Result;
use crate::nn::{
    FeedForward, LatentAttention, LatentConfig, Loader, Mixer, Mlp, Moe, MoeConfig, Routing, SharedConfig,
};

/// Epsilon of the norms inside the attention, whatever `rms_norm_eps` says.
const LATENT_EPS: f32 = 1e-6;

/// Keys of multi-head latent attention.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct LatentKeys {
    q_lora_rank: Option<usize>,
    kv_lora_rank: usize,
    qk_nope_head_dim: usize,
    pub(super) qk_rope_head_dim: usize,
    v_head_dim: usize,
}

impl LatentKeys {
    /// Checks what serde cannot.
    pub(super) fn validate(&self) -> Result<()> {
        check_size("q_lora_rank", self.q_lora_rank.unwrap_or(1))?;
        check_size("kv_lora_rank", self.kv_lora_rank)?;
        check_size("qk_nope_head_dim", self.qk_nope_head_dim)?;
        check_size("qk_rope_head_dim", self.qk_rope_head_dim)?;
        check_size("v_head_dim", self.v_head_dim)
    }

    /// What `kv_b_proj` makes for a head: values of a key, and of a value.
    pub(super) fn per_head(&self) -> (usize, usize) {
        (self.qk_nope_head_dim, self.v_head_dim)
    }

    /// Loads the attention of a layer.
    pub(super) fn attention(
        &self,
        loader: &Loader<'_>,
        prefix: &str,
        common: &Common,
        rotates: bool,
    ) -> Result<Box<dyn Mixer>> {
        let head_dim = (self.qk_nope_head_dim + self.qk_rope_head_dim) as f32;
        let config = LatentConfig {
            hidden: common.hidden_size,
            heads: common.num_attention_heads,
            q_rank: self.q_lora_rank,
            kv_rank: self.kv_lora_rank,
            plain_dim: self.qk_nope_head_dim,
            rope_dim: self.qk_rope_head_dim,
            value_dim: self.v_head_dim,
            rotates,
            scale: common.score_factor() / head_dim.sqrt(),
            eps: LATENT_EPS,
        };
        Ok(Box::new(LatentAttention::load(loader, &format!("{prefix}.self_attn"), config)?))
    }
}

/// Which layers have experts, and what they are like.
#[derive(Debug, Clone)]
pub(super) struct Experts {
    pub(super) dense_inner: usize,
    pub(super) dense_layers: usize,
    pub(super) every: usize,
    pub(super) count: usize,
    pub(super) chosen: usize,
    pub(super) inner: usize,
    pub(super) shared: usize,
    pub(super) groups: usize,
    pub(super) top_groups: usize,
    pub(super) normalise: bool,
    pub(super) scale: f32,
    /// The module of a layer's experts, and what their projections are called.
    pub(super) names: (&'static str, [&'static str; 3]),
    /// What the config calls them.
    pub(super) keys: ExpertKeys,
}

/// The keys that architectures do not share.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpertKeys {
    pub(super) count: &'static str,
    pub(super) chosen: &'static str,
    pub(super) shared: &'static str,
    pub(super) groups: &'static str,
}

impl Experts {
    /// Checks what serde cannot.
    pub(super) fn validate(&self) -> Result<()> {
        check_size("intermediate_size", self.dense_inner)?;
        check_size("moe_intermediate_size", self.inner)?;
        check_size("moe_layer_freq", self.every)?;
        let Self { count, chosen, groups, top_groups, shared, keys, .. } = *self;
        check_size(keys.count, count)?;
        check_size(keys.chosen, chosen)?;
        check_size(keys.groups, groups)?;
        check_size("topk_group", top_groups)?;
        let all = format!("{count} ({})", keys.count);
        if shared > count {
            return Err(bad_config(format!("{} {shared} is more than {all}", keys.shared)));
        }
        if !count.is_multiple_of(groups) {
            return Err(bad_config(format!("{} {groups} does not divide {all}", keys.groups)));
        }
        if top_groups > groups {
            return Err(bad_config(format!("topk_group {top_groups} is more than {groups} ({})", keys.groups)));
        }
        let open = count / groups * top_groups;
        if chosen > open {
            let error = format!("{} {chosen} is more than the {open} experts of topk_group {top_groups}", keys.chosen);
            return Err(bad_config(error));
        }
        if !self.scale.is_finite() {
            return Err(bad_config(format!("routed_scaling_factor {} is not a number", self.scale)));
        }
        Ok(())
    }

    /// Loads the feed-forward half of layer `layer`.
    pub(super) fn load(
        &self,
        loader: &Loader<'_>,
        layer: usize,
        prefix: &str,
        hidden: usize,
    ) -> Result<Box<dyn FeedForward>> {
        if layer < self.dense_layers || !layer.is_multiple_of(self.every) {
            return Ok(Box::new(Mlp::load(loader, &format!("{prefix}.mlp"), hidden, self.dense_inner)?));
        }
        let (module, projections) = self.names;
        let shared = SharedConfig { name: "shared_experts", inner: self.shared * self.inner, gate: None };
        let config = MoeConfig {
            hidden,
            experts: self.count,
            top_k: self.chosen,
            inner: self.inner,
            projections,
            shared: (self.shared > 0).then_some(shared),
            routing: Routing::Sigmoid { groups: self.groups, top_groups: self.top_groups },
            normalise: self.normalise,
            scale: self.scale,
        };
        Ok(Box::new(Moe::load(loader, &format!("{prefix}.{module}"), config)?))
    }
}
