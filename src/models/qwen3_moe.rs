//! Qwen3-MoE (arXiv 2505.09388): Qwen3's attention, softmax-routed experts without a shared one.

use serde::Deserialize;
use serde_json::Value;

use super::common::{Common, MoeKeys, PLAIN, check_size, read};
use super::mlx::Conventions;
use super::{Architecture, Geometry};
use crate::error::Result;
use crate::nn::{AttentionConfig, Centre, Decoder, FeedForward, Loader, Mlp, Moe, MoeConfig, Routing};

#[derive(Debug, Deserialize)]
struct Qwen3Moe {
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    moe: MoeKeys,
    intermediate_size: usize,
}

/// Reads a `qwen3_moe` config.
pub(super) fn read_config(config: &Value) -> Result<Box<dyn Architecture>> {
    let qwen3: Qwen3Moe = read(config)?;
    qwen3.common.validate()?;
    qwen3.common.refuse_attention_bias()?;
    qwen3.moe.validate()?;
    check_size("intermediate_size", qwen3.intermediate_size)?;
    Ok(Box::new(qwen3))
}

impl Architecture for Qwen3Moe {
    fn geometry(&self) -> Geometry {
        self.common.geometry()
    }

    fn load(&self, loader: &Loader<'_>) -> Result<Decoder> {
        let (common, moe) = (&self.common, &self.moe);
        let attention = AttentionConfig { qk_norm: Some((common.rms_norm_eps, Centre::Zero)), ..common.attention() };
        let experts = MoeConfig {
            hidden: common.hidden_size,
            experts: moe.num_experts,
            top_k: moe.num_experts_per_tok,
            inner: moe.moe_intermediate_size,
            projections: MoeConfig::PROJECTIONS,
            shared: None,
            routing: Routing::Softmax,
            normalise: moe.norm_topk_prob.unwrap_or(false),
            scale: 1.0,
        };
        common.decoder(loader, PLAIN, Centre::Zero, |i, prefix| {
            let at = format!("{prefix}.mlp");
            let feed_forward: Box<dyn FeedForward> = if moe.is_sparse(i) {
                Box::new(Moe::load(loader, &at, experts)?)
            } else {
                Box::new(Mlp::load(loader, &at, common.hidden_size, self.intermediate_size)?)
            };
            Ok((Common::load_attention(loader, prefix, attention)?, feed_forward))
        })
    }

    fn skips(&self, _name: &str) -> bool {
        false
    }

    fn mlx(&self) -> Conventions {
        Conventions { tied: self.common.is_tied(), fine_routers: true, ..Conventions::PLAIN }
    }
}
