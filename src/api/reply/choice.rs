//! One answer of a reply: what was said, and what a stream is told of it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Head;
use super::logprobs::Ledger;
use super::speech::{Said, Speech, Voice};
use crate::engine::{Chosen, Finish};
use crate::error::Result;
use crate::text::{Call, Tokenizer};

/// An answer that comes to be.
#[derive(Debug)]
pub(super) struct Choice {
    index: usize,
    is_chat: bool,
    speech: Speech,
    ledger: Ledger,
    begun: bool,
    /// What a stream is told first.
    echo: String,
    content: String,
    reasoning: String,
    calls: Vec<Value>,
    /// What the ids of calls begin with.
    stamp: String,
    tokens: usize,
    reasoning_tokens: usize,
    finish: Option<&'static str>,
}

impl Choice {
    pub(super) fn new(index: usize, head: &Head, tokenizer: &Arc<Tokenizer>, voice: &Voice, echo: &str) -> Self {
        Self {
            index,
            is_chat: head.is_chat(),
            speech: Speech::new(tokenizer, voice),
            ledger: Ledger::new(tokenizer, head.is_chat()),
            begun: false,
            echo: echo.to_owned(),
            content: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            stamp: format!("call_{}_{index}", head.id.rsplit('-').next().unwrap_or_default()),
            tokens: 0,
            reasoning_tokens: 0,
            finish: None,
        }
    }

    /// Adds a token; tells whether it completes the answer.
    pub(super) fn token(&mut self, chosen: Chosen, deltas: &mut Vec<Value>) -> Result<bool> {
        self.begin(deltas);
        let start = self.speech.decoded();
        self.tokens += 1;
        let stopped = self.speech.push(chosen.token)?;
        self.ledger.push(chosen, start, &self.speech);
        if stopped {
            self.close("stop", true, deltas)?;
            return Ok(true);
        }
        if self.speech.answer_at().is_none() {
            self.reasoning_tokens = self.tokens;
        }
        if self.speech.is_complete() {
            self.close("stop", false, deltas)?;
            return Ok(true);
        }
        let said = self.speech.take();
        if !said.is_empty() {
            let logprobs = self.ledger.take(&self.speech);
            self.say(said, logprobs, deltas);
        }
        Ok(false)
    }

    /// The engine's last word.
    pub(super) fn finish(&mut self, finish: Finish, deltas: &mut Vec<Value>) -> Result<()> {
        self.begin(deltas);
        let reason = match finish {
            Finish::Length => "length",
            Finish::Stop | Finish::Interrupted => "stop",
        };
        self.close(reason, false, deltas)
    }

    /// There will be no answer.
    pub(super) fn fail(&mut self) {
        self.finish = Some("error");
    }

    pub(super) fn is_done(&self) -> bool {
        self.finish.is_some()
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn reasoning_tokens(&self) -> usize {
        // white space before an answer is neither
        if self.reasoning.is_empty() { 0 } else { self.reasoning_tokens }
    }

    /// The choice of a whole response.
    pub(super) fn whole(&self) -> Value {
        let mut whole = json!({"index": self.index, "logprobs": self.ledger.whole(), "finish_reason": self.finish});
        if self.is_chat {
            whole["message"] = json!({"role": "assistant", "content": self.content, "refusal": null});
            if !self.calls.is_empty() {
                whole["message"]["tool_calls"] = self.calls.clone().into();
                if self.content.is_empty() {
                    whole["message"]["content"] = Value::Null;
                }
            }
            if !self.reasoning.is_empty() {
                whole["message"]["reasoning_content"] = self.reasoning.clone().into();
            }
        } else {
            whole["text"] = format!("{}{}", self.echo, self.content).into();
        }
        whole
    }

    /// A chat says who speaks, and a completion what it goes on from.
    fn begin(&mut self, deltas: &mut Vec<Value>) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        if self.is_chat {
            deltas.push(self.delta(json!({"role": "assistant", "content": ""}), None));
        } else if !self.echo.is_empty() {
            deltas.push(self.delta(self.echo.clone().into(), None));
        }
    }

    fn close(&mut self, reason: &'static str, stopped: bool, deltas: &mut Vec<Value>) -> Result<()> {
        self.speech.finish(stopped)?;
        let said = self.speech.take();
        let mut logprobs = self.ledger.finish(&self.speech, stopped);
        if !said.is_empty() {
            self.say(said, logprobs.take(), deltas);
        }
        self.finish = Some(if reason == "stop" && !self.calls.is_empty() { "tool_calls" } else { reason });
        let nothing = if self.is_chat { json!({}) } else { "".into() };
        deltas.push(self.delta(nothing, logprobs));
        Ok(())
    }

    /// Probabilities go with the last piece.
    fn say(&mut self, said: Vec<Said>, mut logprobs: Option<Value>, deltas: &mut Vec<Value>) {
        let last = said.len() - 1;
        for (at, said) in said.into_iter().enumerate() {
            let delta = match said {
                Said::Content(text) => {
                    self.content.push_str(&text);
                    if self.is_chat { json!({"content": text}) } else { text.into() }
                }
                Said::Reasoning(text) => {
                    self.reasoning.push_str(&text);
                    json!({"reasoning_content": text})
                }
                Said::Call(call) => json!({"tool_calls": [self.call(call)]}),
            };
            let logprobs = logprobs.take_if(|_| at == last);
            deltas.push(self.delta(delta, logprobs));
        }
    }

    /// Notes a call; returns it with its number.
    fn call(&mut self, call: Call) -> Value {
        let index = self.calls.len();
        let id = call.id.unwrap_or_else(|| format!("{}_{index}", self.stamp));
        let call = json!({"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}});
        self.calls.push(call.clone());
        let mut numbered = json!({"index": index});
        if let (Some(numbered), Value::Object(call)) = (numbered.as_object_mut(), call) {
            numbered.extend(call);
        }
        numbered
    }

    /// The choice of a chunk.
    fn delta(&self, delta: Value, logprobs: Option<Value>) -> Value {
        let what = if self.is_chat { "delta" } else { "text" };
        json!({"index": self.index, what: delta, "logprobs": logprobs, "finish_reason": self.finish})
    }
}
