//! Qwen3 dense (arXiv 2505.09388): Llama with RMSNorm on every query and key head.

use serde::Deserialize;
use serde_json::Value;

use super::common::{Common, PLAIN, check_size, read};
use super::mlx::{Conventions, NORMS_LAST};
use super::{Architecture, Geometry};
use crate::error::Result;
use crate::nn::{AttentionConfig, Centre, Decoder, Loader, Mlp};

#[derive(Debug, Deserialize)]
struct Qwen3 {
    #[serde(flatten)]
    common: Common,
    intermediate_size: usize,
}

/// Reads a `qwen3` config.
pub(super) fn read_config(config: &Value) -> Result<Box<dyn Architecture>> {
    let qwen3: Qwen3 = read(config)?;
    qwen3.common.validate()?;
    qwen3.common.refuse_attention_bias()?;
    check_size("intermediate_size", qwen3.intermediate_size)?;
    Ok(Box::new(qwen3))
}

impl Architecture for Qwen3 {
    fn geometry(&self) -> Geometry {
        self.common.geometry()
    }

    fn load(&self, loader: &Loader<'_>) -> Result<Decoder> {
        let common = &self.common;
        let attention = AttentionConfig { qk_norm: Some((common.rms_norm_eps, Centre::Zero)), ..common.attention() };
        common.decoder(loader, PLAIN, Centre::Zero, |_, prefix| {
            let mlp = Mlp::load(loader, &format!("{prefix}.mlp"), common.hidden_size, self.intermediate_size)?;
            Ok((Common::load_attention(loader, prefix, attention)?, Box::new(mlp)))
        })
    }

    fn skips(&self, _name: &str) -> bool {
        false
    }

    fn mlx(&self) -> Conventions {
        Conventions { tied: self.common.is_tied(), parts: NORMS_LAST, ..Conventions::PLAIN }
    }
}
