//! What both endpoints know.

use serde::Deserialize;
use serde_json::Value;

use super::sampling::{outside, sampling};
use super::{OneOrMany, read};
use crate::api::{Refusal, Texts};
use crate::engine::Sampling;

pub(super) const KEYS: &[&str] = &["model", "n", "stop", "stream", "stream_options", "ignore_eos", "logprobs"];

/// What changes no answer.
pub(super) const IGNORED: &[&str] =
    &["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"];

/// Stop strings at most.
const STOPS: usize = 16;

/// Answers of one prompt at most.
const ANSWERS: usize = 128;

#[derive(Deserialize)]
struct Keys {
    model: Option<String>,
    n: Option<usize>,
    stop: Option<OneOrMany<String>>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    ignore_eos: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    // padding against those who measure the lengths of packets: there is none
    include_obfuscation: Option<bool>,
}

/// The keys of both endpoints.
#[derive(Debug)]
pub(in crate::api) struct Shared {
    pub(in crate::api) n: usize,
    pub(in crate::api) stop: Vec<String>,
    pub(in crate::api) stream: bool,
    pub(in crate::api) include_usage: bool,
    pub(in crate::api) ignore_eos: bool,
    pub(in crate::api) sampling: Sampling,
}

impl Shared {
    pub(in crate::api) fn read(body: &Value, texts: &Texts, seed: u64) -> Result<Self, Refusal> {
        let keys: Keys = read(body)?;
        if let Some(model) = keys.model.filter(|model| *model != texts.name) {
            let message = format!("there is no model `{model}` here, but `{}`", texts.name);
            return Err(Refusal { status: 404, ..Refusal::of("model", message) }.code("model_not_found"));
        }
        let n = keys.n.unwrap_or(1);
        if !(1..=ANSWERS).contains(&n) {
            return Err(outside("n", n, &(1..=ANSWERS)));
        }
        let stop = match keys.stop {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stops)) => stops,
        };
        if stop.len() > STOPS || stop.iter().any(String::is_empty) {
            return Err(Refusal::of("stop", format_args!("`stop` is at most {STOPS} texts, none of them empty")));
        }
        let stream = keys.stream.unwrap_or(false);
        if keys.stream_options.is_some() && !stream {
            return Err(Refusal::of("stream_options", "`stream_options` goes with `stream: true` alone"));
        }
        if keys.stream_options.as_ref().is_some_and(|options| options.include_obfuscation == Some(true)) {
            let message = "`stream_options.include_obfuscation`: streams are not padded";
            return Err(Refusal::of("stream_options.include_obfuscation", message));
        }
        Ok(Self {
            n,
            stop,
            stream,
            include_usage: keys.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            ignore_eos: keys.ignore_eos.unwrap_or(false),
            sampling: sampling(body, &texts.defaults.sampling, texts.vocab, seed)?,
        })
    }
}
