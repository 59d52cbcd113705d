//! What all chunks of a reply have in common.

use serde_json::{Value, json};

use crate::api::request::Shared;
use crate::api::{Endpoint, Stamp, Texts};

/// Who answers whom.
#[derive(Debug)]
pub(in crate::api) struct Head {
    pub(super) endpoint: Endpoint,
    pub(super) id: String,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// Answers to each prompt.
    pub(super) n: usize,
    created: u64,
    model: String,
    fingerprint: Option<String>,
}

impl Head {
    pub(in crate::api) fn new(endpoint: Endpoint, shared: &Shared, texts: &Texts, stamp: &Stamp) -> Self {
        Self {
            endpoint,
            id: stamp.id.clone(),
            stream: shared.stream,
            include_usage: shared.include_usage,
            n: shared.n,
            created: stamp.created,
            model: texts.name.clone(),
            fingerprint: texts.fingerprint.clone(),
        }
    }

    pub(super) fn is_chat(&self) -> bool {
        self.endpoint == Endpoint::Chat
    }

    /// An event of a stream.
    pub(super) fn chunk(&self, choices: Vec<Value>) -> Value {
        let kind = if self.is_chat() { "chat.completion.chunk" } else { "text_completion" };
        let mut chunk = self.object(kind, choices);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// A whole response.
    pub(super) fn whole(&self, choices: Vec<Value>) -> Value {
        self.object(if self.is_chat() { "chat.completion" } else { "text_completion" }, choices)
    }

    fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}
