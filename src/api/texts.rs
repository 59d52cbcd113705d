//! What the endpoints need of a loaded model, apart from its weights.

use std::sync::Arc;

use super::Endpoint;
use super::grammar::Grammars;
use crate::engine::Defaults;
use crate::text::{Template, Tokenizer};

/// A model's texts and limits, shared by all requests.
#[derive(Debug, Clone)]
pub struct Texts {
    /// What the model is called.
    pub name: String,
    /// Turns text into tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template, if it has one.
    pub template: Option<Arc<Template>>,
    /// What a request leaves open.
    pub defaults: Defaults,
    /// Positions of a sequence.
    pub context: usize,
    /// Rows of the embedding table: no token id is as large.
    pub vocab: usize,
    /// What tells apart builds and weights, as `system_fingerprint`.
    pub fingerprint: Option<String>,
    /// Its vocabulary as grammars see it.
    pub grammars: Grammars,
}

impl Texts {
    /// The texts of a model with a tokenizer.
    pub fn new(name: impl Into<String>, tokenizer: Arc<Tokenizer>, template: Option<Arc<Template>>) -> Self {
        let (defaults, vocab) = (Defaults::default(), tokenizer.vocab_size());
        let grammars = Grammars::default();
        Self { name: name.into(), tokenizer, template, defaults, context: 0, vocab, fingerprint: None, grammars }
    }
}

/// What tells replies apart. It is the caller's, so that the same request can have the same reply.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
}

impl Stamp {
    /// That of a reply called `name`, which was asked for at `created`.
    pub fn new(endpoint: Endpoint, name: &str, created: u64) -> Self {
        let kind = match endpoint {
            Endpoint::Chat => "chatcmpl",
            Endpoint::Completions => "cmpl",
        };
        Self { id: format!("{kind}-{name}"), created }
    }
}
