//! Qwen3.5 and 3.6, dense and with experts: gated delta nets, every fourth layer gated attention, norms around one.

use serde::Deserialize;
use serde_json::Value;

use super::common::{HEAD, MoeKeys, bad_config, check_size, read, shared_expert};
use super::hybrid::Hybrid;
use super::mlx::Conventions;
use super::{Architecture, Geometry};
use crate::error::Result;
use crate::nn::{Centre, Decoder, DeltaLayout, FeedForward, Loader, Mlp, Moe, MoeConfig, Routing};

/// How the names of a wrapped text model begin.
const WRAPPED: &str = "model.language_model.";

/// A wrapped model's names on the hub and in MLX.
const WRAPPED_NAMES: [(&str, &str); 2] = [(WRAPPED, "language_model.model."), ("lm_head.", "language_model.lm_head.")];

/// Those of the text model alone.
const TEXT_NAMES: [(&str, &str); 2] = [("model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")];

/// Vision and multi-token prediction.
const SKIPPED: [&str; 4] = ["model.visual.", "mtp.", "vision_tower.", "language_model.mtp."];

#[derive(Debug, Deserialize)]
struct Qwen35 {
    #[serde(flatten)]
    hybrid: Hybrid,
    intermediate_size: Option<usize>,
    shared_expert_intermediate_size: Option<usize>,
    #[serde(skip)]
    moe: Option<MoeKeys>,
    #[serde(skip)]
    prefix: &'static str,
}

/// Reads a `qwen3_5` config, whose text model is nested and whose vision model is left alone.
pub(super) fn wrapped(config: &Value) -> Result<Box<dyn Architecture>> {
    unwrap(config, false)
}

/// Reads a `qwen3_5_moe` config, nested likewise.
pub(super) fn wrapped_moe(config: &Value) -> Result<Box<dyn Architecture>> {
    unwrap(config, true)
}

/// Reads a `qwen3_5_text` config.
pub(super) fn text(config: &Value) -> Result<Box<dyn Architecture>> {
    parse(config, "model.", None, false)
}

/// Reads a `qwen3_5_moe_text` config.
pub(super) fn text_moe(config: &Value) -> Result<Box<dyn Architecture>> {
    parse(config, "model.", None, true)
}

fn unwrap(config: &Value, moe: bool) -> Result<Box<dyn Architecture>> {
    let Some(text) = config.get("text_config").filter(|text| text.is_object()) else {
        return Err(bad_config("there is no table `text_config`".to_owned()));
    };
    parse(text, WRAPPED, config.get("tie_word_embeddings").and_then(Value::as_bool), moe)
}

fn parse(text: &Value, prefix: &'static str, tied: Option<bool>, moe: bool) -> Result<Box<dyn Architecture>> {
    let mut model: Qwen35 = read(text)?;
    model.prefix = prefix;
    model.hybrid.common = model.hybrid.common.tied(tied).rotating_a_quarter();
    model.hybrid.validate()?;
    if moe {
        let moe: MoeKeys = read(text)?;
        moe.validate()?;
        model.moe = Some(moe);
    } else {
        let missing = || bad_config("missing field `intermediate_size`".to_owned());
        check_size("intermediate_size", model.intermediate_size.ok_or_else(missing)?)?;
    }
    model.shared_expert_intermediate_size.map_or(Ok(()), |size| check_size("shared_expert_intermediate_size", size))?;
    Ok(Box::new(model))
}

impl Architecture for Qwen35 {
    fn geometry(&self) -> Geometry {
        self.hybrid.common.geometry()
    }

    fn load(&self, loader: &Loader<'_>) -> Result<Decoder> {
        let common = &self.hybrid.common;
        common.decoder(loader, (self.prefix, HEAD), Centre::One, |i, prefix| {
            let mixer = self.hybrid.mixer(loader, i, prefix, DeltaLayout::Split)?;
            let at = format!("{prefix}.mlp");
            let feed_forward: Box<dyn FeedForward> = match &self.moe {
                Some(moe) => Box::new(Moe::load(
                    loader,
                    &at,
                    MoeConfig {
                        hidden: common.hidden_size,
                        experts: moe.num_experts,
                        top_k: moe.num_experts_per_tok,
                        inner: moe.moe_intermediate_size,
                        projections: MoeConfig::PROJECTIONS,
                        shared: self.shared_expert_intermediate_size.map(shared_expert),
                        routing: Routing::Softmax,
                        normalise: true,
                        scale: 1.0,
                    },
                )?),
                None => Box::new(Mlp::load(loader, &at, common.hidden_size, self.intermediate_size.unwrap_or(0))?),
            };
            Ok((mixer, feed_forward))
        })
    }

    fn skips(&self, name: &str) -> bool {
        SKIPPED.iter().any(|prefix| name.starts_with(prefix))
    }

    fn mlx(&self) -> Conventions {
        let (prefixes, wrapper) = match (self.prefix, &self.moe) {
            (WRAPPED, _) => (&WRAPPED_NAMES, None),
            (_, Some(_)) => (&TEXT_NAMES, Some("qwen3_5_moe")),
            (_, None) => (&TEXT_NAMES, Some("qwen3_5")),
        };
        Conventions {
            prefixes,
            centre: Centre::One,
            tied: self.hybrid.common.is_tied(),
            fine_routers: true,
            uncast: &["A_log"],
            // mlx_lm knows the text model only inside the wrapper
            wrapper,
            ..Conventions::PLAIN
        }
    }
}
