//! The architectures: one file each, and one line in the register below.

mod ahead;
pub mod catalogue;
mod common;
mod deepseek;
pub mod demo;
mod hybrid;
mod kimi_linear;
mod llama;
mod mla;
pub mod mlx;
mod model;
mod quantisation;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_next;
mod rope;

pub use model::{Blueprint, LoadProgress, Model, parse_json};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::nn::{Decoder, Loader};

/// A parsed config.json: the implementing struct is the config.
pub trait Architecture: Send + Sync {
    /// The sizes that callers need.
    fn geometry(&self) -> Geometry;

    /// Loads the decoder.
    ///
    /// # Errors
    /// Naming the tensor that is missing or misshapen.
    fn load(&self, loader: &Loader<'_>) -> Result<Decoder>;

    /// Whether a text decoder leaves the tensor `name` alone knowingly (vision, multi-token prediction).
    fn skips(&self, name: &str) -> bool;

    /// What mlx_lm does with it when it converts it.
    fn mlx(&self) -> mlx::Conventions;
}

/// The sizes of a model that callers need.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    /// Decoder layers.
    pub layers: usize,
    /// Features of the residual stream.
    pub hidden: usize,
    /// Query heads: more ranks than this find nothing to do in an attention layer.
    pub heads: usize,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Positions the model was made for.
    pub context: usize,
}

type Reader = fn(&Value) -> Result<Box<dyn Architecture>>;

/// `model_type` → how its config is read.
#[rustfmt::skip]
const REGISTER: &[(&str, Reader)] = &[
    ("llama",            llama::llama),
    ("qwen2",            llama::qwen2),
    ("qwen3",            qwen3::read_config),
    ("qwen3_moe",        qwen3_moe::read_config),
    ("qwen3_next",       qwen3_next::read_config),
    ("qwen3_5",          qwen3_5::wrapped),
    ("qwen3_5_text",     qwen3_5::text),
    ("qwen3_5_moe",      qwen3_5::wrapped_moe),
    ("qwen3_5_moe_text", qwen3_5::text_moe),
    ("deepseek_v3",      deepseek::read_config),
    ("kimi_k2",          deepseek::read_config),
    ("kimi_k25",         deepseek::wrapped),
    ("kimi_linear",      kimi_linear::read_config),
];

/// The names of all architectures.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    REGISTER.iter().map(|(name, _)| *name)
}

/// Reads a config.json.
///
/// # Errors
/// If its `model_type` is not known, or a key is missing, mistyped or impossible.
pub fn read_config(config: &Value) -> Result<Box<dyn Architecture>> {
    let Some(kind) = config.get("model_type").and_then(Value::as_str) else {
        return Err(Error::msg("config.json: there is no model_type").hint("this is not the config.json of a model"));
    };
    let Some((_, read)) = REGISTER.iter().find(|(name, _)| *name == kind) else {
        let known: Vec<_> = architectures().collect();
        let error = Error::msg(format!("config.json: the architecture `{kind}` is not supported"));
        return Err(error.hint(format!("tbshard knows {}", known.join(", "))));
    };
    quantisation::Quantisation::read(config)?;
    read(config)
}
