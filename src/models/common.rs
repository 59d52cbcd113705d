//! The keys of config.json that all these architectures share, and the parts of a decoder that follow from them.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Geometry;
use crate::backend::RopeStyle;
use crate::error::{Error, Result};
use crate::nn::{
    Attention, AttentionConfig, Block, Centre, Decoder, Embedding, FeedForward, Head, Loader, Mixer, RmsNorm, Rotary,
};

/// Keys of every decoder's config.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Common {
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    pub(super) vocab_size: usize,
    max_position_embeddings: usize,
    pub(super) rms_norm_eps: f32,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    attention_bias: bool,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
}

/// `rope_scaling` of older files, `rope_parameters` of newer ones.
#[derive(Debug, Clone, Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
}

/// Keys of a mixture of experts.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct MoeKeys {
    pub(super) num_experts: usize,
    pub(super) num_experts_per_tok: usize,
    pub(super) moe_intermediate_size: usize,
    #[serde(default = "yes")]
    pub(super) norm_topk_prob: bool,
    #[serde(default = "one")]
    pub(super) decoder_sparse_step: usize,
    #[serde(default)]
    pub(super) mlp_only_layers: Vec<usize>,
}

impl MoeKeys {
    /// Whether layer `layer` has experts rather than a dense layer.
    pub(super) fn is_sparse(&self, layer: usize) -> bool {
        !self.mlp_only_layers.contains(&layer) && (layer + 1).is_multiple_of(self.decoder_sparse_step.max(1))
    }

    /// Checks what serde cannot.
    pub(super) fn validate(&self) -> Result<()> {
        let (experts, chosen) = (self.num_experts, self.num_experts_per_tok);
        if chosen == 0 || chosen > experts {
            return Err(bad_config(format!("num_experts_per_tok {chosen} is not one of 1..={experts} (num_experts)")));
        }
        at_least_one("moe_intermediate_size", self.moe_intermediate_size)
    }
}

fn silu() -> String {
    "silu".to_owned()
}

fn yes() -> bool {
    true
}

fn one() -> usize {
    1
}

/// An error about a value of config.json.
pub(super) fn bad_config(message: String) -> Error {
    Error::msg(format!("config.json: {message}"))
        .hint("the file is damaged, or the model is a variant tbshard does not know")
}

/// Refuses zero.
pub(super) fn at_least_one(key: &str, value: usize) -> Result<()> {
    if value == 0 { Err(bad_config(format!("{key} is 0"))) } else { Ok(()) }
}

/// Reads a config struct; a missing or mistyped key is an error that names it.
pub(super) fn read<T: DeserializeOwned>(config: &Value) -> Result<T> {
    T::deserialize(config).map_err(|error| bad_config(error.to_string()))
}

impl Common {
    /// Checks what serde cannot: heads that divide, sizes that are not zero, options that are known.
    pub(super) fn validate(&self) -> Result<()> {
        at_least_one("hidden_size", self.hidden_size)?;
        at_least_one("num_hidden_layers", self.num_hidden_layers)?;
        at_least_one("num_attention_heads", self.num_attention_heads)?;
        at_least_one("num_key_value_heads", self.kv_heads())?;
        at_least_one("vocab_size", self.vocab_size)?;
        at_least_one("max_position_embeddings", self.max_position_embeddings)?;
        let (heads, kv_heads) = (self.num_attention_heads, self.kv_heads());
        if heads % kv_heads != 0 {
            return Err(bad_config(format!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )));
        }
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(heads) {
            let hidden = self.hidden_size;
            return Err(bad_config(format!("hidden_size {hidden} is not a multiple of num_attention_heads {heads}")));
        }
        at_least_one("head_dim", self.head_dim())?;
        if self.hidden_act != "silu" {
            return Err(bad_config(format!("hidden_act `{}` is not supported, only `silu`", self.hidden_act)));
        }
        if self.use_sliding_window {
            return Err(bad_config("use_sliding_window is not supported".to_owned()));
        }
        for rope in [&self.rope_scaling, &self.rope_parameters].into_iter().flatten() {
            if let Some(kind) = rope.rope_type.as_deref().filter(|kind| *kind != "default") {
                return Err(bad_config(format!("rope type `{kind}` is not supported yet")));
            }
        }
        let rotated = self.rope_dim();
        if rotated == 0 || !rotated.is_multiple_of(2) || rotated > self.head_dim() {
            return Err(bad_config(format!("partial_rotary_factor rotates {rotated} of {} values", self.head_dim())));
        }
        Ok(())
    }

    pub(super) fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    pub(super) fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    fn rope_dim(&self) -> usize {
        let ropes = [&self.rope_parameters, &self.rope_scaling];
        let nested = ropes.into_iter().flatten().find_map(|rope| rope.partial_rotary_factor);
        let factor = nested.or(self.partial_rotary_factor).unwrap_or(1.0);
        (self.head_dim() as f32 * factor) as usize
    }

    fn rotary(&self) -> Rotary {
        let nested = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        Rotary::new(self.rope_dim(), nested.or(self.rope_theta).unwrap_or(10_000.0), RopeStyle::Halves)
    }

    /// What a planner and a cache need to know.
    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            vocab: self.vocab_size,
            context: self.max_position_embeddings,
        }
    }

    /// Attention with this config's heads, without biases, norms or gate.
    pub(super) fn attention(&self) -> AttentionConfig {
        AttentionConfig {
            hidden: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.kv_heads(),
            head_dim: self.head_dim(),
            qkv_bias: false,
            qk_norm: None,
            output_gate: false,
            rope: RopeStyle::Halves,
        }
    }

    /// Refuses biases where the architecture as tbshard knows it has none.
    pub(super) fn refuse_attention_bias(&self) -> Result<()> {
        if self.attention_bias {
            return Err(bad_config("attention_bias is not supported for this architecture".to_owned()));
        }
        Ok(())
    }

    /// Overrides `tie_word_embeddings` where a wrapper says it.
    pub(super) fn tied(mut self, tied: Option<bool>) -> Self {
        self.tie_word_embeddings |= tied.unwrap_or(false);
        self
    }

    /// Loads embedding, layers, norm and head; `layer` gives the two halves of layer i under its prefix.
    pub(super) fn decoder(
        &self,
        loader: &Loader<'_>,
        prefix: &str,
        centre: Centre,
        layer: impl Fn(usize, &str) -> Result<(Box<dyn Mixer>, Box<dyn FeedForward>)>,
    ) -> Result<Decoder> {
        let (vocab, hidden, eps) = (self.vocab_size, self.hidden_size, self.rms_norm_eps);
        let norm = |name: &str| RmsNorm::load(loader, name, hidden, eps, centre);
        let embedding = Embedding::load(loader, &format!("{prefix}embed_tokens.weight"), vocab, hidden)?;
        let mut blocks = Vec::new();
        for i in 0..self.num_hidden_layers {
            let prefix = format!("{prefix}layers.{i}");
            let (mixer, feed_forward) = layer(i, &prefix)?;
            let input_norm = norm(&format!("{prefix}.input_layernorm.weight"))?;
            let post_norm = norm(&format!("{prefix}.post_attention_layernorm.weight"))?;
            blocks.push(Block { input_norm, mixer, post_norm, feed_forward });
            loader.report(i + 1, self.num_hidden_layers);
        }
        let head = if self.tie_word_embeddings {
            embedding.tied_head()
        } else {
            Head::load(loader, "lm_head", vocab, hidden)?
        };
        Ok(Decoder { embedding, blocks, norm: norm(&format!("{prefix}norm.weight"))?, head, rotary: self.rotary() })
    }

    /// Loads the attention of a layer.
    pub(super) fn load_attention(loader: &Loader<'_>, prefix: &str, config: AttentionConfig) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Attention::load(loader, &format!("{prefix}.self_attn"), config)?))
    }

    /// Tensors a tied checkpoint may carry all the same.
    pub(super) fn spare(&self) -> &'static [&'static str] {
        if self.tie_word_embeddings { &["lm_head.weight"] } else { &[] }
    }
}
