//! Qwen3-Next: Qwen3.5's predecessor, with fused input projections and experts in every layer.

use serde::Deserialize;
use serde_json::Value;

use super::common::{MoeKeys, PLAIN, check_size, read, shared_expert};
use super::hybrid::Hybrid;
use super::mlx::Conventions;
use super::{Architecture, Geometry};
use crate::error::Result;
use crate::nn::{Centre, Decoder, DeltaLayout, FeedForward, Loader, Mlp, Moe, MoeConfig, Routing};

#[derive(Debug, Deserialize)]
struct Qwen3Next {
    #[serde(flatten)]
    hybrid: Hybrid,
    #[serde(flatten)]
    moe: MoeKeys,
    intermediate_size: usize,
    shared_expert_intermediate_size: usize,
}

/// Reads a `qwen3_next` config.
pub(super) fn read_config(config: &Value) -> Result<Box<dyn Architecture>> {
    let mut next: Qwen3Next = read(config)?;
    next.hybrid.common = next.hybrid.common.rotating_a_quarter();
    next.hybrid.validate()?;
    next.moe.validate()?;
    check_size("intermediate_size", next.intermediate_size)?;
    check_size("shared_expert_intermediate_size", next.shared_expert_intermediate_size)?;
    Ok(Box::new(next))
}

impl Architecture for Qwen3Next {
    fn geometry(&self) -> Geometry {
        self.hybrid.common.geometry()
    }

    fn load(&self, loader: &Loader<'_>) -> Result<Decoder> {
        let (common, moe) = (&self.hybrid.common, &self.moe);
        let experts = MoeConfig {
            hidden: common.hidden_size,
            experts: moe.num_experts,
            top_k: moe.num_experts_per_tok,
            inner: moe.moe_intermediate_size,
            projections: MoeConfig::PROJECTIONS,
            shared: Some(shared_expert(self.shared_expert_intermediate_size)),
            routing: Routing::Softmax,
            normalise: moe.norm_topk_prob.unwrap_or(true),
            scale: 1.0,
        };
        common.decoder(loader, PLAIN, Centre::One, |i, prefix| {
            let mixer = self.hybrid.mixer(loader, i, prefix, DeltaLayout::Fused)?;
            let at = format!("{prefix}.mlp");
            let feed_forward: Box<dyn FeedForward> = if moe.is_sparse(i) {
                Box::new(Moe::load(loader, &at, experts)?)
            } else {
                Box::new(Mlp::load(loader, &at, common.hidden_size, self.intermediate_size)?)
            };
            Ok((mixer, feed_forward))
        })
    }

    fn skips(&self, name: &str) -> bool {
        ["mtp.", "language_model.mtp."].iter().any(|prefix| name.starts_with(prefix))
    }

    fn mlx(&self) -> Conventions {
        let tied = self.hybrid.common.is_tied();
        Conventions { centre: Centre::One, tied, fine_routers: true, ..Conventions::PLAIN }
    }
}
