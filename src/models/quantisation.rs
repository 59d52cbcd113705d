//! Which storage format a config declares; the tensors themselves say it once more, by their types and their scales.

use serde_json::Value;

use super::common::bad_config;
use crate::error::{Context, Result};
use crate::weights::{Coding, FP8_BLOCK, Formats};

/// The declared storage format of the linear layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Quantisation {
    /// bf16, f16 or f32.
    None,
    /// E4M3 with a scale per 128 × 128 block.
    BlockFp8,
    /// compressed-tensors' `pack-quantized`: 4 bits, symmetric, groups of 32.
    PackedInt4,
    /// MLX's packed formats.
    Mlx(Formats),
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
        if let Some(table) = find("quantization") {
            return formats(table).map(Self::Mlx);
        }
        let Some(declared) = find("quantization_config") else { return Ok(Self::None) };
        let method = declared.get("quant_method").and_then(Value::as_str).unwrap_or("");
        if method == "compressed-tensors" {
            return packed_int4(declared);
        }
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

/// Refuses all that compressed-tensors can say but the one format that kernels read.
fn packed_int4(declared: &Value) -> Result<Quantisation> {
    let format = declared.get("format").and_then(Value::as_str).unwrap_or("");
    if format != "pack-quantized" {
        let error = format!("the compressed-tensors format `{format}` is not supported, only pack-quantized");
        return Err(bad_config(error));
    }
    let groups = declared.get("config_groups").and_then(Value::as_object).filter(|groups| !groups.is_empty());
    let Some(groups) = groups else {
        return Err(bad_config("config_groups of quantization_config does not say how weights are packed".to_owned()));
    };
    let expected: [(&str, Value); 4] =
        [("num_bits", 4.into()), ("type", "int".into()), ("symmetric", true.into()), ("group_size", 32.into())];
    for (group, table) in groups {
        let of = |key: &str| table.get("weights").and_then(|weights| weights.get(key)).unwrap_or(&Value::Null);
        if let Some((key, value)) = expected.iter().find(|(key, value)| of(key) != value) {
            let error = format!("{key} of weights in {group} is {}, and only {value} is supported", of(key));
            return Err(bad_config(error));
        }
    }
    Ok(Quantisation::PackedInt4)
}

/// Reads MLX's table: `group_size`, `bits` and `mode` of all modules, and under the names of some their own, or false.
fn formats(table: &Value) -> Result<Formats> {
    let Some(entries) = table.as_object() else {
        return Err(bad_config(format!("quantization is {table}, not a table")));
    };
    let mut formats = Formats { all: Some(coding("quantization", table)?), ..Formats::default() };
    for (name, entry) in entries {
        let coding = match entry {
            Value::Object(_) => Some(coding(&format!("quantization of `{name}`"), entry)?),
            Value::Bool(false) => None,
            Value::Bool(true) => formats.all,
            // the table's own keys, and what other writers say about how they made it
            _ => continue,
        };
        formats.modules.insert(name.clone(), coding);
    }
    Ok(formats)
}

fn coding(place: &str, entry: &Value) -> Result<Coding> {
    let number = |key: &str| match entry.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(bad_config(format!("{key} {value} of {place} is not a number"))),
        },
    };
    let mode = entry.get("mode").map_or(Some("affine"), Value::as_str);
    let mode = mode.ok_or_else(|| bad_config(format!("mode of {place} is not a text")))?;
    Coding::named(mode, number("bits")?, number("group_size")?).with_context(|| format!("config.json: {place}"))
}
