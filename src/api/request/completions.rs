//! The body of a completion.

use serde::Deserialize;
use serde_json::Value;

use super::sampling::outside;
use super::{Prompt, known, read, sampling, shared};
use crate::api::Refusal;

const KEYS: &[&str] = &["prompt", "max_tokens", "echo", "suffix", "best_of"];

/// Tokens of an answer when the body does not say, as OpenAI has it.
const MAX_TOKENS: usize = 16;

/// Alternatives to each token at most.
const ALTERNATIVES: usize = 20;

#[derive(Deserialize)]
struct Keys {
    prompt: Option<Value>,
    max_tokens: Option<usize>,
    echo: Option<bool>,
    suffix: Option<String>,
    best_of: Option<usize>,
    logprobs: Option<usize>,
    n: Option<usize>,
}

/// The keys of a completion alone.
#[derive(Debug)]
pub(in crate::api) struct Completions {
    pub(in crate::api) prompts: Vec<Prompt>,
    pub(in crate::api) max_tokens: usize,
    pub(in crate::api) echo: bool,
    pub(in crate::api) logprobs: Option<usize>,
}

impl Completions {
    pub(in crate::api) fn read(body: &Value) -> Result<Self, Refusal> {
        known(body, &[KEYS, shared::KEYS, shared::IGNORED, sampling::KEYS])?;
        let keys: Keys = read(body)?;
        let (echo, max_tokens) = (keys.echo.unwrap_or(false), keys.max_tokens.unwrap_or(MAX_TOKENS));
        if max_tokens == 0 {
            return Err(Refusal::of("max_tokens", "`max_tokens` is 0: it is at least 1"));
        }
        if keys.suffix.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(Refusal::of("suffix", "`suffix`: text is continued, not inserted"));
        }
        if keys.best_of.is_some_and(|best_of| best_of != keys.n.unwrap_or(1)) {
            return Err(Refusal::of("best_of", "`best_of` is not `n`: every answer is returned"));
        }
        if let Some(logprobs) = keys.logprobs.filter(|logprobs| *logprobs > ALTERNATIVES) {
            return Err(outside("logprobs", logprobs, &(0..=ALTERNATIVES)));
        }
        if echo && keys.logprobs.is_some() {
            return Err(Refusal::of("echo", "`echo` with `logprobs`: there are none of a prompt"));
        }
        Ok(Self { prompts: Prompt::read(keys.prompt.as_ref())?, max_tokens, echo, logprobs: keys.logprobs })
    }
}
