//! Llama (arXiv 2302.13971) and Qwen2 (arXiv 2407.10671): the same decoder, Qwen2 with biases on q, k and v.

use serde::Deserialize;
use serde_json::Value;

use super::common::{Common, PLAIN, bad_config, check_size, read};
use super::mlx::{Conventions, NORMS_LAST};
use super::{Architecture, Geometry};
use crate::error::Result;
use crate::nn::{AttentionConfig, Centre, Decoder, Loader, Mlp};

#[derive(Debug, Deserialize)]
struct Llama {
    #[serde(flatten)]
    common: Common,
    intermediate_size: usize,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(skip)]
    qkv_bias: bool,
}

/// Reads a `llama` config.
pub(super) fn llama(config: &Value) -> Result<Box<dyn Architecture>> {
    let llama: Llama = read(config)?;
    llama.common.refuse_attention_bias()?;
    llama.validated()
}

/// Reads a `qwen2` config.
pub(super) fn qwen2(config: &Value) -> Result<Box<dyn Architecture>> {
    let llama = Llama { qkv_bias: true, ..read(config)? };
    llama.validated()
}

impl Llama {
    fn validated(self) -> Result<Box<dyn Architecture>> {
        self.common.validate()?;
        check_size("intermediate_size", self.intermediate_size)?;
        if self.mlp_bias {
            return Err(bad_config("mlp_bias is not supported".to_owned()));
        }
        Ok(Box::new(self))
    }
}

impl Architecture for Llama {
    fn geometry(&self) -> Geometry {
        self.common.geometry()
    }

    fn load(&self, loader: &Loader<'_>) -> Result<Decoder> {
        let attention = AttentionConfig { qkv_bias: self.qkv_bias, ..self.common.attention() };
        self.common.decoder(loader, PLAIN, Centre::Zero, |_, prefix| {
            let mlp = Mlp::load(loader, &format!("{prefix}.mlp"), self.common.hidden_size, self.intermediate_size)?;
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
