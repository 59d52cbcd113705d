//! The flags that change how tokens are chosen; what they leave open comes from the checkpoint.

use clap::Args;
use serde::Serialize;

use crate::engine::Sampling;
use crate::error::{Error, Result};

/// Flags over a checkpoint's generation_config.json.
#[derive(Debug, Clone, Args, Serialize)]
#[command(next_help_heading = "Sampling (defaults come from the checkpoint's generation_config.json)")]
pub(super) struct SamplingArgs {
    /// Temperature; 0 takes the most likely token
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temp: Option<f32>,
    /// Keep the most likely tokens up to this probability together
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Keep this many of the most likely tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Drop tokens less likely than this times the most likely
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Taken off the logits of tokens already generated
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Taken off the logit of a token as often as it was generated already
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Divides the logits of tokens already seen; 1 changes nothing
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Equal seeds give equal answers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    /// The flags over `defaults`.
    pub(super) fn over(&self, defaults: &Sampling) -> Result<Sampling> {
        let sampling = Sampling {
            temperature: self.temp.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            logit_bias: defaults.logit_bias.clone(),
            seed: self.seed,
        };
        if let Some((what, value)) = sampling.impossible() {
            let flag = if what == "temperature" { "temp" } else { what };
            return Err(Error::usage(format!("--{flag} {value} is impossible"))
                .hint("`tbshard generate --help` says what it does"));
        }
        Ok(sampling)
    }

    /// Whether flags are given that only matter when tokens are drawn, and none is.
    pub(super) fn is_pointless(&self, sampling: &Sampling) -> bool {
        let given = self.top_p.is_some() || self.top_k.is_some() || self.min_p.is_some() || self.seed != 0;
        sampling.temperature == 0.0 && given
    }
}
