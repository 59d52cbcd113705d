//! The small files of a converted checkpoint: config.json, the index, and what is copied.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Conventions;
use super::entry::Origin;
use super::plan::Conversion;
use crate::error::{Error, Result};
use crate::weights::Coding;

/// What is copied beside the weights, where the model has it.
const COPIED: [&str; 11] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// The name of the index.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The files of a model beside its weights.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// config.json.
    pub(crate) config: Value,
    /// Those that are copied: name and content.
    pub(crate) copied: Vec<(String, Vec<u8>)>,
}

/// Reads what is copied beside the weights of the model in `dir`: names and contents.
///
/// # Errors
/// Naming a file that is there and cannot be read.
pub fn copied_files(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut copied = Vec::new();
    for name in COPIED {
        let path = dir.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => copied.push((name.to_owned(), bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(&path, error)),
        }
    }
    Ok(copied)
}

impl Files {
    /// The end tokens that generation_config.json names, if it can be read.
    fn eos(&self) -> Option<Value> {
        let (_, text) = self.copied.iter().find(|(name, _)| name == "generation_config.json")?;
        let generation: Value = serde_json::from_slice(text).ok()?;
        generation.get("eos_token_id").filter(|eos| !eos.is_null() && **eos != 0).cloned()
    }
}

impl Conversion {
    /// config.json of the converted model, as mlx_lm writes it.
    pub(super) fn config(&self, files: &Files) -> Value {
        let mut config = files.config.as_object().cloned().unwrap_or_default();
        if let Some(wrapper) = self.conventions.wrapper {
            let architectures = config.get("architectures").cloned();
            let mut outer = Map::new();
            outer.insert("model_type".to_owned(), wrapper.into());
            outer.extend(architectures.map(|names| ("architectures".to_owned(), names)));
            outer.insert("text_config".to_owned(), Value::Object(config));
            config = outer;
        }
        config.extend(files.eos().map(|eos| ("eos_token_id".to_owned(), eos)));
        for key in ["_name_or_path", "vision_config", "quantization_config"] {
            config.shift_remove(key);
        }
        if let Some(Value::Object(text)) = config.get_mut("text_config") {
            // what the weights were, which mlx_lm would believe they are
            text.shift_remove("quantization_config");
        }
        let table = self.table();
        config.insert("quantization".to_owned(), table.clone());
        config.insert("quantization_config".to_owned(), table);
        config.sort_keys();
        Value::Object(config)
    }

    /// How modules are quantised; those that differ by name.
    fn table(&self) -> Value {
        let size = |coding: Coding| {
            let mut table = Map::new();
            table.insert("group_size".to_owned(), coding.group().into());
            table.insert("bits".to_owned(), coding.bits().into());
            table
        };
        let full = |coding: Coding| {
            let mut table = size(coding);
            table.insert("mode".to_owned(), coding.mode().into());
            table
        };
        // of a model that was packed in part mlx_lm takes that as the rule, and names what it packs itself
        let kept = self.kept();
        let mut table = full(kept.unwrap_or(self.coding));
        for entry in &self.entries {
            let (Origin::Rows(_), Some(coding)) = (&entry.origin, entry.coding) else { continue };
            // what mlx_lm decides for a module alone it writes down, without a mode and even if it is the same
            if Conventions::is_router(entry.module()) {
                table.insert(entry.module().to_owned(), size(coding).into());
            } else if kept.is_some() {
                table.insert(entry.module().to_owned(), full(coding).into());
            }
        }
        Value::Object(table)
    }

    /// The index: which tensor is in which of the files `names`.
    pub(super) fn index(&self, shards: &[(String, Vec<String>)]) -> Value {
        let mut map = Map::new();
        for (file, tensors) in shards {
            map.extend(tensors.iter().map(|tensor| (tensor.clone(), file.as_str().into())));
        }
        map.sort_keys();
        json!({
            "metadata": {"total_size": self.bytes(), "total_parameters": self.parameters()},
            "weight_map": map,
        })
    }
}

/// JSON as Python's `json.dump(…, indent=4)` lays it out.
pub(super) fn pretty(value: &Value) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, format)).map_err(Error::from_std)?;
    Ok(text)
}
