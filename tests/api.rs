//! OpenAI's endpoints as pure data: what bodies become, and what replies look like.

mod bodies;
mod replies;

use std::sync::Arc;

use serde_json::Value;
use tbshard::api::{Endpoint, Order, Progress, Refusal, Reply, Stamp, Texts, prepare};
use tbshard::engine::{Chosen, Defaults, Finish, Job, Logprobs, Timings, Update};
use tbshard::models::demo;
use tbshard::text::{Template, Tokenizer};

/// The demo model's texts.
pub fn texts() -> Texts {
    with_template(demo::TEMPLATE)
}

/// The demo model's tokenizer with a template.
pub fn with_template(source: &str) -> Texts {
    let tokenizer = Arc::new(Tokenizer::from_bytes(demo::TOKENIZER).unwrap());
    let template = Arc::new(Template::from_source(source, &[]).unwrap());
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let defaults = Defaults::from_values(&parse(demo::GENERATION), &parse(demo::CONFIG)).unwrap();
    let fingerprint = Some("fp_test".to_owned());
    Texts { defaults, context: 2048, fingerprint, ..Texts::new("demo", tokenizer, Some(template)) }
}

pub fn stamp() -> Stamp {
    Stamp { id: "chatcmpl-1".to_owned(), created: 1_700_000_000 }
}

pub fn order(endpoint: Endpoint, body: &Value, texts: &Texts) -> Result<Order, Refusal> {
    prepare(endpoint, body, texts, &stamp())
}

pub fn chat(body: Value) -> Result<Order, Refusal> {
    order(Endpoint::Chat, &body, &texts())
}

pub fn completions(body: Value) -> Result<Order, Refusal> {
    order(Endpoint::Completions, &body, &texts())
}

/// The update that a job has another token, with made-up probabilities if it wants some.
pub fn token(job: &Job, token: u32) -> Update {
    let logprobs = job.logprobs.map(|top| Logprobs {
        chosen: -0.5,
        top: (0..top as u32).map(|rank| (token + rank, -0.5 - rank as f32)).collect(),
    });
    Update::Token { id: job.id, chosen: Chosen { token, logprobs } }
}

pub fn done(job: &Job, finish: Finish) -> Update {
    Update::Done { id: job.id, finish, timings: Timings::default() }
}

/// Lets the jobs have these answers as an engine would; returns the chunks.
pub fn play(order: Order, answers: &[&[u32]], finish: Finish) -> (Reply, Vec<Value>) {
    let Order { jobs, mut reply } = order;
    let mut chunks = Vec::new();
    for (job, tokens) in jobs.iter().zip(answers) {
        let index = job.id as usize;
        let total = job.prompt.len();
        let mut tell = |update: Update| {
            let Progress { chunks: more, end } = reply.update(index, update).unwrap();
            chunks.extend(more);
            end
        };
        tell(Update::Prompt { id: job.id, done: total, shared: total / 2, total });
        let ended = tokens.iter().any(|id| tell(token(job, *id)));
        if !ended {
            tell(done(job, finish));
        }
    }
    assert!(reply.is_done());
    (reply, chunks)
}

/// Plays a text, the demo model's tokens of it.
pub fn play_text(order: Order, text: &str, finish: Finish) -> (Reply, Vec<Value>) {
    let tokens = texts().tokenizer.encode(text, false).unwrap();
    play(order, &[&tokens], finish)
}
