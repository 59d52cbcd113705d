//! Probabilities of an answer's tokens, held until the text of their tokens is sent.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::speech::Speech;
use crate::engine::Chosen;
use crate::text::Tokenizer;

/// One token's.
#[derive(Debug)]
struct Entry {
    /// The text it made: characters of the answer.
    start: usize,
    end: usize,
    token: u32,
    chosen: f32,
    top: Vec<(u32, f32)>,
}

/// All of an answer's.
#[derive(Debug)]
pub(super) struct Ledger {
    tokenizer: Arc<Tokenizer>,
    is_chat: bool,
    waiting: VecDeque<Entry>,
    /// What was sent, as one object.
    sent: Option<Value>,
}

impl Ledger {
    pub(super) fn new(tokenizer: &Arc<Tokenizer>, is_chat: bool) -> Self {
        Self { tokenizer: tokenizer.clone(), is_chat, waiting: VecDeque::new(), sent: None }
    }

    /// Adds a token that made the text from `start` to where `speech` is now.
    pub(super) fn push(&mut self, chosen: Chosen, start: usize, speech: &Speech) {
        let Some(logprobs) = chosen.logprobs else { return };
        // a token that completes no character is part of the next one that does
        let end = speech.decoded().max(start + 1);
        let (token, chosen, top) = (chosen.token, logprobs.chosen, logprobs.top);
        self.waiting.push_back(Entry { start, end, token, chosen, top });
    }

    /// The tokens whose text is settled, if any.
    pub(super) fn take(&mut self, speech: &Speech) -> Option<Value> {
        let settled = speech.settled();
        self.take_while(speech, |entry| entry.end <= settled)
    }

    /// All the others that begin in front of a stop string, if there is one.
    pub(super) fn finish(&mut self, speech: &Speech, stopped: bool) -> Option<Value> {
        let end = if stopped { speech.settled() } else { usize::MAX };
        let last = self.take_while(speech, |entry| entry.start < end);
        self.waiting.clear();
        last
    }

    /// All that were sent.
    pub(super) fn whole(&self) -> Value {
        self.sent.clone().unwrap_or(Value::Null)
    }

    fn take_while(&mut self, speech: &Speech, is_ready: impl Fn(&Entry) -> bool) -> Option<Value> {
        let answer_at = speech.answer_at()?;
        let count = self.waiting.iter().take_while(|entry| is_ready(entry)).count();
        let ready: Vec<Entry> = self.waiting.drain(..count).filter(|entry| entry.end > answer_at).collect();
        if ready.is_empty() {
            return None;
        }
        let object = if self.is_chat { self.chat(&ready) } else { self.completion(&ready) };
        match &mut self.sent {
            None => self.sent = Some(object.clone()),
            Some(sent) => append(sent, &object),
        }
        Some(object)
    }

    fn chat(&self, entries: &[Entry]) -> Value {
        let one = |token: u32, logprob: f32| {
            let bytes = self.tokenizer.bytes(token).unwrap_or_default();
            json!({"token": String::from_utf8_lossy(&bytes), "bytes": bytes, "logprob": finite(logprob)})
        };
        let content = entries.iter().map(|entry| {
            let mut object = one(entry.token, entry.chosen);
            object["top_logprobs"] = entry.top.iter().map(|(token, logprob)| one(*token, *logprob)).collect();
            object
        });
        json!({"content": content.collect::<Vec<_>>(), "refusal": null})
    }

    fn completion(&self, entries: &[Entry]) -> Value {
        let text = |token: u32| {
            let bytes = self.tokenizer.bytes(token).unwrap_or_default();
            String::from_utf8(bytes).unwrap_or_else(|error| {
                let escaped: String = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect();
                format!("bytes:{escaped}")
            })
        };
        let top = |entry: &Entry| {
            let mut top: Map<String, Value> = Map::new();
            for (token, logprob) in entry.top.iter().chain([&(entry.token, entry.chosen)]) {
                top.entry(text(*token)).or_insert(finite(*logprob).into());
            }
            top
        };
        json!({
            "tokens": entries.iter().map(|entry| text(entry.token)).collect::<Vec<_>>(),
            "token_logprobs": entries.iter().map(|entry| finite(entry.chosen)).collect::<Vec<_>>(),
            "top_logprobs": entries.iter().map(top).collect::<Vec<_>>(),
            "text_offset": entries.iter().map(|entry| entry.start).collect::<Vec<_>>(),
        })
    }
}

/// JSON has no infinity; clients know this value for it.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// Appends the lists of an object to those of another.
fn append(all: &mut Value, more: &Value) {
    for (key, more) in more.as_object().into_iter().flatten() {
        if let (Some(all), Some(more)) = (all[key].as_array_mut(), more.as_array()) {
            all.extend(more.iter().cloned());
        }
    }
}
