//! Which storage format a config declares; the tensors themselves say it once more, by their types and their scales.

use serde_json::Value;

use super::common::bad_config;
use crate::error::Result;
use crate::weights::FP8_BLOCK;

/// The declared storage format of the linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quantisation {
    /// bf16, f16 or f32.
    None,
    /// E4M3 with a scale per 128 × 128 block.
    BlockFp8,
}

impl Quantisation {
    /// Reads `quantization_config` (or MLX's `quantization`), of the config or of its `text_config`.
    ///
    /// # Errors
    /// If it is a format that is not supported.
    pub(super) fn read(config: &Value) -> Result<Self> {
        let places = [Some(config), config.get("text_config")];
        let find =
            |key: &str| places.iter().flatten().find_map(|place| place.get(key).filter(|value| !value.is_null()));
        if find("quantization").is_some() {
            return Err(bad_config("MLX's quantised weights are not supported yet".to_owned()));
        }
        let Some(declared) = find("quantization_config") else { return Ok(Self::None) };
        let method = declared.get("quant_method").and_then(Value::as_str).unwrap_or("");
        if method != "fp8" {
            return Err(bad_config(format!("the quantisation method `{method}` is not supported")));
        }
        let block = declared.get("weight_block_size").cloned().unwrap_or_default();
        if block != Value::from(vec![FP8_BLOCK, FP8_BLOCK]) {
            return Err(bad_config(format!("weight_block_size {block} is not [{FP8_BLOCK},{FP8_BLOCK}]")));
        }
        Ok(Self::BlockFp8)
    }
}
