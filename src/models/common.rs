//! The keys of config.json that all these architectures share, and the parts of a decoder that follow from them.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Geometry;
use super::rope::RopeKeys;
use crate::backend::RopeStyle;
use crate::error::{Error, Result};
use crate::nn::{
    Attention, AttentionConfig, Block, Centre, Decoder, Embedding, FeedForward, Head, Loader, Mixer, RmsNorm,
    SharedConfig,
};

/// No size of a model comes near this; it bounds what is multiplied and reserved on a config's word.
const MAX_SIZE: usize = 1 << 24;

/// Keys of every decoder's config.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Common {
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    pub(super) vocab_size: usize,
    #[serde(alias = "model_max_length")]
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
    #[serde(flatten)]
    rope: RopeKeys,
    // values of a head that are rotated, where the architecture knows it
    #[serde(skip)]
    rotated: Option<usize>,
}

/// Keys of a mixture of experts.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct MoeKeys {
    pub(super) num_experts: usize,
    pub(super) num_experts_per_tok: usize,
    pub(super) moe_intermediate_size: usize,
    pub(super) norm_topk_prob: Option<bool>,
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
        check_size("num_experts", self.num_experts)?;
        let (experts, chosen) = (self.num_experts, self.num_experts_per_tok);
        if chosen == 0 || chosen > experts {
            return Err(bad_config(format!("num_experts_per_tok {chosen} is not one of 1..={experts} (num_experts)")));
        }
        check_size("moe_intermediate_size", self.moe_intermediate_size)
    }
}

/// Qwen's shared expert of `inner` columns.
pub(super) fn shared_expert(inner: usize) -> SharedConfig {
    SharedConfig { name: "shared_expert", inner, gate: Some("shared_expert_gate") }
}

/// How the names of a model begin that is not wrapped, and its head.
pub(super) const PLAIN: (&str, &str) = ("model.", HEAD);

/// The head's usual name.
pub(super) const HEAD: &str = "lm_head.weight";

fn silu() -> String {
    "silu".to_owned()
}

pub(super) fn one() -> usize {
    1
}

pub(super) fn yes() -> bool {
    true
}

pub(super) fn unscaled() -> f32 {
    1.0
}

/// An error about a value of config.json.
pub(super) fn bad_config(message: String) -> Error {
    Error::msg(format!("config.json: {message}"))
        .hint("the file is damaged, or the model is a variant tbshard does not know")
}

/// Refuses zero, and what no model has: products of two sizes stay far below what 64 bits hold.
pub(super) fn check_size(key: &str, value: usize) -> Result<()> {
    if value == 0 || value > MAX_SIZE {
        return Err(bad_config(format!("{key} {value} is not one of 1..={MAX_SIZE}")));
    }
    Ok(())
}

pub(super) fn check_positive(key: &str, value: f32) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(bad_config(format!("{key} {value} is not a positive number")))
}

/// Reads a config struct; a missing or mistyped key is an error that names it.
pub(super) fn read<T: DeserializeOwned>(config: &Value) -> Result<T> {
    T::deserialize(config).map_err(|error| match mistyped::<T>(config) {
        Some(key) => bad_config(format!("{key}: {error}")),
        None => bad_config(error.to_string()),
    })
}

/// The key that makes the config readable when it has a value of another type: serde does not say it for flattened structs.
fn mistyped<T: DeserializeOwned>(config: &Value) -> Option<&String> {
    let samples = [Value::Null, true.into(), 1.into(), "".into(), Value::Array(Vec::new())];
    config.as_object()?.keys().find(|key| {
        let mut changed = config.clone();
        samples.iter().any(|sample| {
            changed[key.as_str()] = sample.clone();
            T::deserialize(&changed).is_ok()
        })
    })
}

impl Common {
    /// Checks what serde cannot: heads that divide, sizes that are not zero, options that are known.
    pub(super) fn validate(&self) -> Result<()> {
        check_size("hidden_size", self.hidden_size)?;
        check_size("num_hidden_layers", self.num_hidden_layers)?;
        check_size("num_attention_heads", self.num_attention_heads)?;
        check_size("num_key_value_heads", self.kv_heads())?;
        check_size("vocab_size", self.vocab_size)?;
        check_size("max_position_embeddings", self.max_position_embeddings)?;
        let (heads, kv_heads) = (self.num_attention_heads, self.kv_heads());
        if heads % kv_heads != 0 {
            return Err(bad_config(format!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )));
        }
        // latent attention has sizes of its own for that
        let derived = self.head_dim.is_none() && self.rotated.is_none();
        if derived && !self.hidden_size.is_multiple_of(heads) {
            let hidden = self.hidden_size;
            return Err(bad_config(format!("hidden_size {hidden} is not a multiple of num_attention_heads {heads}")));
        }
        if derived || self.head_dim.is_some() {
            check_size("head_dim", self.head_dim())?;
        }
        check_positive("rms_norm_eps", self.rms_norm_eps)?;
        self.rope.validate()?;
        if self.hidden_act != "silu" {
            return Err(bad_config(format!("hidden_act `{}` is not supported, only `silu`", self.hidden_act)));
        }
        if self.use_sliding_window {
            return Err(bad_config("use_sliding_window is not supported".to_owned()));
        }
        let rotated = self.rope_dim();
        if self.rotated.is_some() && !rotated.is_multiple_of(2) {
            return Err(bad_config(format!("qk_rope_head_dim {rotated} is not an even number")));
        }
        if rotated == 0 || !rotated.is_multiple_of(2) || (self.rotated.is_none() && rotated > self.head_dim()) {
            let (dim, factor) = (self.head_dim(), self.rope.partial_rotary_factor());
            let error = format!("head_dim {dim} times partial_rotary_factor {factor} rotates {rotated} values");
            return Err(bad_config(format!("{error}, not an even number up to head_dim")));
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
        let part = || (self.head_dim() as f32 * self.rope.partial_rotary_factor()) as usize;
        self.rotated.unwrap_or_else(part)
    }

    /// What a planner and a cache need to know.
    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            heads: self.num_attention_heads,
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

    /// Takes `tie_word_embeddings` from a wrapper that says it.
    pub(super) fn tied(mut self, tied: Option<bool>) -> Self {
        self.tie_word_embeddings = tied.unwrap_or(self.tie_word_embeddings);
        self
    }

    /// Whether the head is the embedding.
    pub(super) fn is_tied(&self) -> bool {
        self.tie_word_embeddings
    }

    /// Rotates a quarter of a head where the config does not say how much.
    pub(super) fn rotating_a_quarter(mut self) -> Self {
        self.rope.partial_rotary_factor.get_or_insert(0.25);
        self
    }

    /// Rotates `dim` values of a head, as the architecture has it.
    pub(super) fn rotating(mut self, dim: usize) -> Self {
        self.rotated = Some(dim);
        self
    }

    /// What scores are multiplied by besides `head_dim^-½` because of how the rotation is stretched.
    pub(super) fn score_factor(&self) -> f32 {
        self.rope.score_factor()
    }

    /// Loads embedding, layers and norm under `prefix`, and the head `own_head`; `layer` gives the two halves of layer i
    /// under its prefix.
    pub(super) fn decoder(
        &self,
        loader: &Loader<'_>,
        (prefix, own_head): (&str, &str),
        centre: Centre,
        layer: impl Fn(usize, &str) -> Result<(Box<dyn Mixer>, Box<dyn FeedForward>)>,
    ) -> Result<Decoder> {
        let (vocab, hidden, eps) = (self.vocab_size, self.hidden_size, self.rms_norm_eps);
        let norm = |name: &str| RmsNorm::load(loader, name, hidden, eps, centre);
        let (seat, tp) = (loader.seat().clone(), loader.group().size());
        let table = format!("{prefix}embed_tokens.weight");
        let embedding = seat.first.then(|| Embedding::load(loader, &table, vocab, hidden)).transpose()?;
        let mut blocks = Vec::new();
        for i in seat.layers.clone() {
            let prefix = format!("{prefix}layers.{i}");
            blocks.push(loader.layer(i, || {
                let (mixer, feed_forward) = layer(i, &prefix)?;
                let input_norm = norm(&format!("{prefix}.input_layernorm.weight"))?;
                let post_norm = norm(&format!("{prefix}.post_attention_layernorm.weight"))?;
                Ok(Block { input_norm, mixer, post_norm, feed_forward })
            })?);
        }
        // a tied checkpoint may store its head all the same; if that differs from the embedding, it is the head
        let tied = self.tie_word_embeddings && !loader.has(own_head);
        let head = if tied { table.as_str() } else { own_head };
        Ok(Decoder {
            embedding,
            first_layer: seat.layers.start,
            blocks,
            hidden,
            norm: seat.last.then(|| norm(&format!("{prefix}norm.weight"))).transpose()?,
            head: Head::load(loader, head, vocab, hidden)?,
            rotary: self.rope.rotary(self.rope_dim()),
            neighbours: ((!seat.first).then(|| loader.rank() - tp), (!seat.last).then(|| loader.rank() + tp)),
        })
    }

    /// Loads the attention of a layer.
    pub(super) fn load_attention(loader: &Loader<'_>, prefix: &str, config: AttentionConfig) -> Result<Box<dyn Mixer>> {
        Ok(Box::new(Attention::load(loader, &format!("{prefix}.self_attn"), config)?))
    }
}
