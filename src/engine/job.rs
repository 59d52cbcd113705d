//! What a scheduler is asked for, and what it tells.

use std::fmt::Debug;

use super::logits::{likeliest, log_sum, logit};
use super::{Finish, Sampling, Timings};
use crate::error::{Error, Result};

/// One answer that is wanted.
#[derive(Debug)]
pub struct Job {
    /// The caller's number for it, unique among those that are not done.
    pub id: u64,
    /// The prompt.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Tokens that end the answer; they are not part of it.
    pub eos: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The number of the answer among those of one request: what is drawn is a function of seed, choice and position.
    pub choice: u64,
    /// Whether probabilities are wanted: those of the chosen token and of so many others.
    pub logprobs: Option<usize>,
    /// What the answer must look like.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// A grammar that an answer keeps to.
pub trait Constraint: Debug + Send {
    /// Sets the logits of tokens that may not follow to −∞.
    ///
    /// # Errors
    /// If none may follow.
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()>;

    /// Told of the token that was chosen, be it one that ends the answer.
    ///
    /// # Errors
    /// If it may not follow.
    fn accept(&mut self, token: u32) -> Result<()>;

    /// Whether nothing may follow any more.
    fn is_complete(&self) -> bool;
}

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The token.
    pub token: u32,
    /// How probable it was, if that was asked for.
    pub logprobs: Option<Logprobs>,
}

/// Natural logarithms of the softmax of a row of logits, before penalties, temperature and grammar.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// Of the most likely tokens, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// What happened to a job.
#[derive(Debug)]
pub enum Update {
    /// Its prompt is so far.
    Prompt {
        /// The job.
        id: u64,
        /// Tokens that are done.
        done: usize,
        /// Of them, those that were there from another prompt.
        shared: usize,
        /// All of them.
        total: usize,
    },
    /// It has another token.
    Token {
        /// The job.
        id: u64,
        /// The token.
        chosen: Chosen,
    },
    /// It is done: the last word about it.
    Done {
        /// The job.
        id: u64,
        /// Why it ended.
        finish: Finish,
        /// How long it took.
        timings: Timings,
    },
    /// It failed, alone: the last word about it.
    Failed {
        /// The job.
        id: u64,
        /// Why.
        error: Error,
    },
}

impl Update {
    /// Whether it is the last word about its job.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Failed { .. })
    }

    /// The job that it is about.
    pub fn id(&self) -> u64 {
        match self {
            Self::Prompt { id, .. } | Self::Token { id, .. } | Self::Done { id, .. } | Self::Failed { id, .. } => *id,
        }
    }
}

impl Logprobs {
    /// Those of a row of `logits`: of `token`, and of the `count` most likely tokens.
    pub(super) fn of(logits: &[f32], token: u32, count: usize) -> Self {
        let log = log_sum(logits);
        let of = |token: u32| (logit(logits, token) - log) as f32;
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        likeliest(logits, &mut order, count);
        Self { chosen: of(token), top: order.into_iter().map(|token| (token, of(token))).collect() }
    }
}
