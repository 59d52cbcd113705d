//! The catalogue: which models can be asked for by a short name, how large they are and what shapes they have.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// The embedded files, one a family; adding a family is one file and one line here.
const FILES: [(&str, &str); 9] = [
    ("kimi-k2.yaml", include_str!("../../models/kimi-k2.yaml")),
    ("kimi-linear.yaml", include_str!("../../models/kimi-linear.yaml")),
    ("qwen2.5.yaml", include_str!("../../models/qwen2.5.yaml")),
    ("qwen3.yaml", include_str!("../../models/qwen3.yaml")),
    ("qwen3-next.yaml", include_str!("../../models/qwen3-next.yaml")),
    ("qwen3.5.yaml", include_str!("../../models/qwen3.5.yaml")),
    ("qwen3.6.yaml", include_str!("../../models/qwen3.6.yaml")),
    ("qwen3.8.yaml", include_str!("../../models/qwen3.8.yaml")),
    ("smollm2.yaml", include_str!("../../models/smollm2.yaml")),
];

/// How many short names the hint of an unknown name lists.
const NEAREST: usize = 3;

/// One model of the catalogue.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// The short name, lower case: the last part of the hub id.
    pub name: String,
    /// The hub repository, `owner/name`.
    pub hub: String,
    /// `model_type` of config.json.
    pub architecture: String,
    /// Logical weights in the whole checkpoint, vision tower and multi-token prediction included.
    pub parameters: u64,
    /// Bytes of tensor data in the hub's safetensors files, their headers not counted.
    pub bytes: u64,
    /// Native context length in tokens.
    pub context: usize,
    /// Licence of the weights.
    pub licence: String,
    /// Family the model belongs to.
    pub family: String,
    /// Sampling the publisher recommends.
    pub sampling: Sampling,
    /// The keys of config.json that fix shapes and arithmetic, nested as on the hub.
    pub config: serde_json::Value,
}

/// Sampling parameters a publisher recommends for its model, in thinking mode where there is one.
///
/// `None` means that the publisher names no value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Divisor of the logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Probability mass that nucleus sampling keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// How many of the likeliest tokens are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Least probability a token keeps, relative to the likeliest one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// What is taken from the logit of every token that has been generated already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
}

/// A file as it is written: family and licence once, then its models.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Family {
    family: String,
    licence: String,
    models: Vec<Model>,
}

/// A model as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    name: String,
    hub: String,
    licence: Option<String>,
    architecture: String,
    parameters: u64,
    bytes: u64,
    context: usize,
    #[serde(default)]
    sampling: Sampling,
    config: serde_json::Value,
}

/// Returns every model of the catalogue, file by file in the order they are written.
///
/// # Errors
///
/// Names the file that is not valid, or the model name that occurs twice.
pub fn all() -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (file, text) in FILES {
        entries.extend(parse(text).with_context(|| format!("catalogue file `{file}`"))?);
    }
    let mut names = HashSet::new();
    match entries.iter().find(|entry| !names.insert(entry.name.as_str())) {
        Some(entry) => Err(Error::msg(format_args!("model `{}` is in the catalogue twice", entry.name))),
        None => Ok(entries),
    }
}

/// Finds a model by its short name or its hub id, in any case.
///
/// # Errors
///
/// A usage error that names an unknown model and hints at the nearest short names.
pub fn find(name: &str) -> Result<Entry> {
    let entries = all()?;
    let wanted = name.trim();
    let known = |entry: &&Entry| entry.name.eq_ignore_ascii_case(wanted) || entry.hub.eq_ignore_ascii_case(wanted);
    match entries.iter().find(known) {
        Some(entry) => Ok(entry.clone()),
        None => Err(Error::usage(format_args!("model `{name}` is not in the catalogue"))
            .hint(format_args!("the nearest names are {}", nearest(wanted, &entries)))),
    }
}

/// Whether `text` has the form of a hub id: `owner/name`, both of letters, digits, `-`, `_` and `.`.
pub fn is_hub_id(text: &str) -> bool {
    let part = |part: &str| {
        !part.starts_with(['.', '-'])
            && !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    text.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

/// Reads one file of the catalogue.
fn parse(text: &str) -> Result<Vec<Entry>> {
    let Family { family, licence, models } = serde_saphyr::from_str(text).map_err(Error::from_std)?;
    let entry = |model: Model| Entry {
        name: model.name,
        hub: model.hub,
        architecture: model.architecture,
        parameters: model.parameters,
        bytes: model.bytes,
        context: model.context,
        licence: model.licence.unwrap_or_else(|| licence.clone()),
        family: family.clone(),
        sampling: model.sampling,
        config: model.config,
    };
    Ok(models.into_iter().map(entry).collect())
}

/// Lists the short names most like `wanted`, which may be a hub id, the nearest first.
fn nearest(wanted: &str, entries: &[Entry]) -> String {
    let wanted = wanted.rsplit('/').next().unwrap_or(wanted).to_ascii_lowercase();
    let mut names: Vec<_> = entries
        .iter()
        .map(|entry| (strsim::normalized_damerau_levenshtein(&wanted, &entry.name), entry.name.as_str()))
        .collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0));
    names.iter().take(NEAREST).map(|(_, name)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
