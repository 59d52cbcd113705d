//! A grammar over the tokens of one answer, which begins when the model has reasoned.

use llguidance::Matcher;
use toktrie::SimpleVob;

use crate::engine::Constraint;
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// How a model reasons in front of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Start {
    /// Not at all.
    Answer,
    /// If it likes to.
    MayThink,
    /// It is at it when the prompt ends.
    Thinks,
}

/// What reasoning looks like in a vocabulary.
#[derive(Debug, Clone)]
pub(in crate::api) struct Thinking {
    start: Start,
    open: Option<u32>,
    close: Option<u32>,
    /// Blank lines between reasoning and answer.
    blank: Vec<u32>,
}

impl Thinking {
    pub(in crate::api) fn new(start: Start, tokenizer: &Tokenizer) -> Self {
        let blank = ["\n", "\n\n"].iter().filter_map(|text| tokenizer.encode(text, false).ok());
        Self {
            start,
            open: tokenizer.token_id("<think>"),
            close: tokenizer.token_id("</think>"),
            blank: blank.filter_map(|ids| <[u32; 1]>::try_from(ids).ok()).map(|[id]| id).collect(),
        }
    }

    /// Whether there is a token that ends reasoning: a grammar cannot begin without.
    pub(in crate::api) fn is_followed(&self) -> bool {
        self.start == Start::Answer || self.close.is_some()
    }
}

/// Where in an answer the next token is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// At the very start, where reasoning may begin.
    Start,
    Reasoning,
    /// Right behind it.
    Blank,
    Answer,
    Complete,
}

/// Keeps one answer to a grammar.
pub(in crate::api) struct Grammar {
    matcher: Matcher,
    phase: Phase,
    ends: Vec<u32>,
    thinking: Thinking,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// The same for another answer: nothing is shared with the first.
impl Clone for Grammar {
    fn clone(&self) -> Self {
        let Self { matcher, phase, ends, thinking } = self;
        Self { matcher: matcher.deep_clone(), phase: *phase, ends: ends.clone(), thinking: thinking.clone() }
    }
}

impl Grammar {
    pub(super) fn new(matcher: Matcher, ends: &[u32], thinking: &Thinking) -> Self {
        let phase = match thinking.start {
            Start::Answer => Phase::Answer,
            Start::MayThink => Phase::Start,
            Start::Thinks => Phase::Reasoning,
        };
        Self { matcher, phase, ends: ends.to_vec(), thinking: thinking.clone() }
    }

    fn answer(&mut self, token: u32) -> Result<()> {
        self.phase = Phase::Answer;
        if self.ends.contains(&token) {
            if !self.matcher.is_accepting().map_err(failed)? {
                return Err(failed(format_args!("it cannot end here, at token {token}")));
            }
            self.phase = Phase::Complete;
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(failed)?;
        if self.matcher.is_stopped() {
            self.phase = Phase::Complete;
        }
        Ok(())
    }
}

impl Constraint for Grammar {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()> {
        let mut forbid = |token: u32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        };
        if self.phase == Phase::Reasoning {
            // an answer is to follow
            self.ends.iter().for_each(|end| forbid(*end));
            return Ok(());
        }
        let mut mask = self.matcher.compute_mask_or_eos().map_err(failed)?;
        let allow = |mask: &mut SimpleVob, tokens: &[u32]| {
            let size = mask.len();
            tokens.iter().filter(|token| (**token as usize) < size).for_each(|token| mask.allow_token(*token));
        };
        let has = |mask: &SimpleVob, token: usize| token < mask.len() && mask.get(token);
        if self.ends.iter().any(|end| has(&mask, *end as usize)) {
            allow(&mut mask, &self.ends);
        }
        match self.phase {
            Phase::Start => allow(&mut mask, self.thinking.open.as_slice()),
            Phase::Blank => allow(&mut mask, &self.thinking.blank),
            _ => {}
        }
        if mask.is_zero() {
            return Err(failed("no token may follow"));
        }
        for (token, logit) in logits.iter_mut().enumerate() {
            if !has(&mask, token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        match self.phase {
            Phase::Start if self.thinking.open == Some(token) => self.phase = Phase::Reasoning,
            Phase::Reasoning if self.thinking.close == Some(token) => self.phase = Phase::Blank,
            Phase::Reasoning => {}
            Phase::Blank if self.thinking.blank.contains(&token) => self.phase = Phase::Answer,
            Phase::Complete => return Err(failed("the answer is complete")),
            _ => self.answer(token)?,
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.phase == Phase::Complete
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    let text = error.to_string();
    Error::msg(format_args!("the answer's grammar: {}", text.lines().next().unwrap_or_default()))
        .hint("simplify the schema")
}
