//! Prefill, then decode token by token, with the times it took.

use std::ops::ControlFlow;
use std::time::Instant;

use serde::Serialize;

use super::{Engine, Sampler, Sampling, Sequence};
use crate::error::Result;

/// What to generate.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt: what the sequence does not hold yet.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Tokens that end the answer; they are not part of it.
    pub eos: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
    /// The user ended it.
    Interrupted,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Generated {
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// How long it took.
    pub timings: Timings,
}

/// Seconds and tokens of one generation.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Timings {
    /// Prompt tokens that were run.
    pub prompt_tokens: usize,
    /// Seconds for them.
    pub prompt_seconds: f64,
    /// Seconds from the request to the first token.
    pub first_token_seconds: f64,
    /// Tokens generated, the one that ended the answer included.
    pub generated_tokens: usize,
    /// Seconds for all of them but the first, which the prompt's pass yields.
    pub decode_seconds: f64,
}

impl Timings {
    /// Prompt tokens a second.
    pub fn prompt_rate(&self) -> f64 {
        self.prompt_tokens as f64 / self.prompt_seconds.max(1e-9)
    }

    /// Generated tokens a second, without the first.
    pub fn decode_rate(&self) -> f64 {
        self.generated_tokens.saturating_sub(1) as f64 / self.decode_seconds.max(1e-9)
    }
}

/// What a caller is told while a request runs. It may end it.
pub enum Event {
    /// So many tokens of the prompt are done.
    Prompt(usize),
    /// This token was chosen.
    Token(u32),
}

/// Appends the prompt and an answer to `sequence`.
///
/// `on` is shown the prompt's progress and every token of the answer as it is chosen, and may end the answer.
///
/// # Errors
/// As [`Engine::forward`].
pub fn generate(
    engine: &mut Engine,
    sequence: &mut Sequence,
    request: &Request,
    sampler: &mut Sampler,
    on: &mut dyn FnMut(Event) -> ControlFlow<Finish>,
) -> Result<Generated> {
    let start = Instant::now();
    let mut timings = Timings::default();
    let mut tokens = Vec::new();
    let (mut ended, mut ran) = (None, 0);
    sampler.accept_prompt(&request.prompt);
    let (wanted, prompts) = (sampler.wanted(), &mut [(&mut *sequence, &request.prompt[..])]);
    let output = engine.prefill_for(prompts, wanted, &mut |done| {
        ran = done;
        ended = on(Event::Prompt(done)).break_value();
        ended.is_none()
    })?;
    timings.prompt_tokens = ran;
    timings.prompt_seconds = start.elapsed().as_secs_f64();
    let Some(mut output) = output else {
        return Ok(Generated { tokens, finish: ended.unwrap_or(Finish::Interrupted), timings });
    };
    let mut finish = Finish::Length;
    for _ in 0..request.max_tokens {
        let token = sampler.choose_from(output.basis(), sequence.len());
        timings.generated_tokens += 1;
        if timings.generated_tokens == 1 {
            timings.first_token_seconds = start.elapsed().as_secs_f64();
        }
        if request.eos.contains(&token) {
            finish = Finish::Stop;
            break;
        }
        tokens.push(token);
        if let ControlFlow::Break(reason) = on(Event::Token(token)) {
            finish = reason;
            break;
        }
        if tokens.len() == request.max_tokens || sequence.len() == engine.context() {
            break;
        }
        output = engine.pass(&mut [(&mut *sequence, &[token])], wanted, None)?;
    }
    timings.decode_seconds = start.elapsed().as_secs_f64() - timings.first_token_seconds;
    Ok(Generated { tokens, finish, timings })
}
