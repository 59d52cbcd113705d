//! Flags that say how numbers are stored and rounded.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::backend::Arithmetic;
use crate::weights::Coding;

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(super) enum Weights {
    /// The model's own.
    Checkpoint,
    /// Invented, of the model's shapes.
    Random,
}

/// How numbers are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(super) enum Rounding {
    /// f32 activations, weights as exact as their format is.
    Exact,
    /// Products of bf16, or of affine weights of 4 or 8 bits with activations of 8, and a KV cache in bf16.
    Fast,
}

impl From<Rounding> for Arithmetic {
    fn from(rounding: Rounding) -> Self {
        match rounding {
            Rounding::Exact => Self::Exact,
            Rounding::Fast => Self::Fast,
        }
    }
}

/// Reads what `--quantize` is given.
pub(super) fn coding(text: &str) -> std::result::Result<Coding, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is no number"));
    let named = match text.split_once(':') {
        _ if text.starts_with(|first: char| first.is_ascii_alphabetic()) => Coding::named(text, None, None),
        Some((bits, group)) => Coding::named("affine", Some(number(bits)?), Some(number(group)?)),
        None => Coding::named("affine", Some(number(text)?), None),
    };
    named.map_err(|error| format!("{error}: {}", error.hint_text().unwrap_or_default()))
}

/// What [`coding`] reads as `coding`, with the word bits where there are some.
pub(super) fn coding_name(coding: Coding) -> String {
    match coding {
        Coding::Affine { bits, group } => format!("{bits} bits, groups of {group}"),
        other => other.mode().to_owned(),
    }
}
