//! What becomes of the updates of a request's jobs: chunks of a stream, and the whole response.

mod choice;
mod head;
mod logprobs;
mod speech;

pub(super) use head::Head;
pub(super) use speech::Voice;

use std::sync::Arc;

use serde_json::{Value, json};

use self::choice::Choice;
use crate::engine::Update;
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// What an update leads to.
#[derive(Debug, Default)]
pub struct Progress {
    /// What a stream sends now, each an event.
    pub chunks: Vec<Value>,
    /// The job has to be ended, because its answer is complete: nothing more of it is listened to.
    pub end: bool,
}

/// A reply that comes to be.
#[derive(Debug)]
pub struct Reply {
    head: Head,
    choices: Vec<Choice>,
    /// Tokens of each prompt, and how many of them were there from other prompts.
    prompts: Vec<(usize, usize)>,
}

impl Reply {
    /// `prompts`: the tokens of each, and what of it is part of the answer.
    pub(super) fn new(head: Head, tokenizer: &Arc<Tokenizer>, voice: &Voice, prompts: &[(usize, String)]) -> Self {
        let choices = prompts.iter().flat_map(|(_, echo)| std::iter::repeat_n(echo, head.n)).enumerate();
        let choices = choices.map(|(index, echo)| Choice::new(index, &head, tokenizer, voice, echo)).collect();
        Self { choices, prompts: prompts.iter().map(|(tokens, _)| (*tokens, 0)).collect(), head }
    }

    /// Whether the client asked for a stream.
    pub fn stream(&self) -> bool {
        self.head.stream
    }

    /// Takes an update of the job with the id `choice` in the order.
    ///
    /// # Errors
    /// If the job failed, or a token cannot be decoded: there is no reply then.
    pub fn update(&mut self, choice: usize, update: Update) -> Result<Progress> {
        let was_done = self.is_done();
        let Some(answer) = self.choices.get_mut(choice) else {
            return Err(Error::msg(format_args!(
                "choice {choice} is not one of the {} of `{}`",
                self.choices.len(),
                self.head.id
            )));
        };
        if answer.is_done() {
            return Ok(Progress::default());
        }
        let mut deltas = Vec::new();
        let end = match update {
            Update::Prompt { shared, .. } => {
                // other answers to the same prompt share with the first
                if let Some((_, cached)) =
                    self.prompts.get_mut(choice / self.head.n).filter(|_| choice.is_multiple_of(self.head.n))
                {
                    *cached = shared;
                }
                false
            }
            Update::Token { chosen, .. } => answer.token(chosen, &mut deltas)?,
            Update::Done { finish, .. } => {
                answer.finish(finish, &mut deltas)?;
                false
            }
            Update::Failed { error, .. } => {
                answer.fail();
                return Err(error);
            }
        };
        let mut chunks: Vec<Value> = deltas.into_iter().map(|delta| self.head.chunk(vec![delta])).collect();
        if !was_done && self.is_done() && self.head.include_usage {
            let mut last = self.head.chunk(Vec::new());
            last["usage"] = self.usage();
            chunks.push(last);
        }
        Ok(Progress { chunks, end })
    }

    /// Whether every answer has had its last word.
    pub fn is_done(&self) -> bool {
        self.choices.iter().all(Choice::is_done)
    }

    /// The response to a request without a stream.
    pub fn whole(&self) -> Value {
        let choices = self.choices.iter().map(Choice::whole).collect();
        let mut whole = self.head.whole(choices);
        whole["usage"] = self.usage();
        whole
    }

    /// Tokens in and out.
    pub fn usage(&self) -> Value {
        let prompt: usize = self.prompts.iter().map(|(tokens, _)| tokens).sum();
        let cached: usize = self.prompts.iter().map(|(_, cached)| cached).sum();
        let completion: usize = self.choices.iter().map(Choice::tokens).sum();
        let reasoning: usize = self.choices.iter().map(Choice::reasoning_tokens).sum();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        })
    }
}
