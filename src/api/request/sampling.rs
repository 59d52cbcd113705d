//! How tokens are chosen: the keys of both endpoints over what the checkpoint says.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde_json::Value;

use super::read;
use crate::api::Refusal;
use crate::engine::Sampling;

pub(super) const KEYS: &[&str] = &[
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
];

/// Tokens with a bias at most: every answer has its own table, and looks through it at every token.
const BIASES: usize = 1024;

#[derive(Deserialize)]
struct Keys {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
}

/// Reads them. Without a seed the answer is as random as `seed` is.
pub(super) fn sampling(body: &Value, defaults: &Sampling, vocab: usize, seed: u64) -> Result<Sampling, Refusal> {
    let keys: Keys = read(body)?;
    let within = |name: &str, value: Option<f32>, range: RangeInclusive<f32>, default: f32| match value {
        Some(value) if !range.contains(&value) => Err(outside(name, value, &range)),
        value => Ok(value.unwrap_or(default)),
    };
    let top_k = match keys.top_k {
        // what vLLM calls all
        Some(-1) => 0,
        Some(top_k) => usize::try_from(top_k).map_err(|_| {
            Refusal::of("top_k", format_args!("`top_k` is {top_k}: it is 0 for all tokens, or so many"))
        })?,
        None => defaults.top_k,
    };
    Ok(Sampling {
        temperature: within("temperature", keys.temperature, 0.0..=2.0, defaults.temperature)?,
        top_p: within("top_p", keys.top_p, 0.0..=1.0, defaults.top_p)?,
        top_k,
        min_p: within("min_p", keys.min_p, 0.0..=1.0, defaults.min_p)?,
        presence_penalty: within("presence_penalty", keys.presence_penalty, -2.0..=2.0, defaults.presence_penalty)?,
        frequency_penalty: within("frequency_penalty", keys.frequency_penalty, -2.0..=2.0, defaults.frequency_penalty)?,
        repetition_penalty: within(
            "repetition_penalty",
            keys.repetition_penalty,
            0.01..=100.0,
            defaults.repetition_penalty,
        )?,
        logit_bias: biases(&keys.logit_bias.unwrap_or_default(), vocab)?,
        seed: keys.seed.map_or(seed, |seed| seed as u64),
    })
}

fn biases(given: &BTreeMap<String, f32>, vocab: usize) -> Result<BTreeMap<u32, f32>, Refusal> {
    if given.len() > BIASES {
        let message = format_args!("`logit_bias` has {} tokens, at most {BIASES} are allowed", given.len());
        return Err(Refusal::of("logit_bias", message));
    }
    let mut biases = BTreeMap::new();
    for (key, bias) in given {
        let param = format!("logit_bias.{key}");
        let Some(id) = key.parse::<u32>().ok().filter(|id| (*id as usize) < vocab) else {
            return Err(Refusal::of(param, format_args!("`logit_bias`: `{key}` is not a token id below {vocab}")));
        };
        if !(-100.0..=100.0).contains(bias) {
            return Err(outside(&param, *bias, &(-100.0..=100.0)));
        }
        biases.insert(id, *bias);
    }
    Ok(biases)
}

pub(super) fn outside<T: Display + PartialOrd>(name: &str, value: T, range: &RangeInclusive<T>) -> Refusal {
    Refusal::of(name, format_args!("`{name}` is {value}: it is a number from {} to {}", range.start(), range.end()))
}
