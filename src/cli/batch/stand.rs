//! Stands in for the room `api` until it is there.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "it is thrown away")]

use std::sync::Arc;

use serde_json::{Value, json};

use crate::engine::{Defaults, Finish, Job, Update};
use crate::error::{Error, Result};
use crate::text::{Message, RenderOptions, StopStrings, Template, Tokenizer};

#[derive(Clone)]
pub struct Texts {
    pub name: String,
    pub tokenizer: Arc<Tokenizer>,
    pub template: Option<Arc<Template>>,
    pub defaults: Defaults,
    pub context: usize,
    pub vocab: usize,
    pub fingerprint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    Chat,
    Completions,
}

#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub message: String,
    pub param: Option<String>,
    pub code: Option<String>,
}

impl Refusal {
    pub fn body(&self) -> Value {
        let kind = if self.status < 500 { "invalid_request_error" } else { "server_error" };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

#[derive(Clone)]
pub struct Stamp {
    pub id: String,
    pub created: u64,
}

pub struct Order {
    pub jobs: Vec<Job>,
    pub reply: Reply,
}

pub struct Reply {
    stamp: Stamp,
    endpoint: Endpoint,
    name: String,
    tokenizer: Arc<Tokenizer>,
    prompt: usize,
    choices: Vec<(Vec<u32>, Option<Finish>)>,
    stops: Vec<String>,
}

pub struct Progress {
    pub chunks: Vec<Value>,
    pub end: bool,
}

pub fn prepare(endpoint: Endpoint, body: &Value, texts: &Texts, stamp: &Stamp) -> std::result::Result<Order, Refusal> {
    let refusal = |message: String| Refusal { status: 400, message, param: None, code: None };
    let prompt = match endpoint {
        Endpoint::Chat => {
            let messages = body["messages"].as_array().ok_or_else(|| refusal("messages is missing".to_owned()))?;
            let messages: Vec<Message> = messages
                .iter()
                .map(|message| {
                    let text = message["content"].as_str().unwrap_or_default();
                    if message["role"] == "system" { Message::system(text) } else { Message::user(text) }
                })
                .collect();
            let options = RenderOptions { add_generation_prompt: true, thinking: None, tools: None };
            let template = texts.template.as_ref().ok_or_else(|| refusal("no template".to_owned()))?;
            let text = template.render(&messages, &options).map_err(|error| refusal(error.to_string()))?;
            texts.tokenizer.encode(&text, false)
        }
        Endpoint::Completions => {
            let text = body["prompt"].as_str().ok_or_else(|| refusal("prompt is missing".to_owned()))?;
            texts.tokenizer.encode(text, true)
        }
    };
    let prompt = prompt.map_err(|error| refusal(error.to_string()))?;
    let mut sampling = texts.defaults.sampling.clone();
    if let Some(value) = body.get("temperature") {
        sampling.temperature = value.as_f64().ok_or_else(|| refusal("temperature is no number".to_owned()))? as f32;
    }
    sampling.seed = body["seed"].as_u64().unwrap_or(sampling.seed);
    let room = (texts.context + 1).saturating_sub(prompt.len());
    let max_tokens = body["max_tokens"].as_u64().map_or(1024, |most| most as usize).min(room);
    let n = body["n"].as_u64().unwrap_or(1);
    let job = |choice| Job {
        id: choice,
        prompt: prompt.clone(),
        max_tokens,
        eos: texts.defaults.eos.clone(),
        sampling: sampling.clone(),
        choice,
        logprobs: None,
        constraint: None,
    };
    let jobs: Vec<Job> = (0..n).map(job).collect();
    let stops = body["stop"].as_str().map(str::to_owned).into_iter().collect();
    let (name, tokenizer) = (texts.name.clone(), Arc::clone(&texts.tokenizer));
    let choices = vec![(Vec::new(), None); jobs.len()];
    Ok(Order {
        jobs,
        reply: Reply { stamp: stamp.clone(), endpoint, name, tokenizer, prompt: prompt.len(), choices, stops },
    })
}

impl Reply {
    fn text(&self, tokens: &[u32]) -> Result<(String, bool)> {
        let mut stops = StopStrings::new(&self.stops);
        let (text, stopped) = stops.push(&self.tokenizer.decode(tokens, true)?);
        Ok((if stopped { text } else { text + &stops.finish() }, stopped))
    }

    pub fn update(&mut self, choice: usize, update: Update) -> Result<Progress> {
        let mut end = false;
        match update {
            Update::Prompt { .. } => {}
            Update::Token { chosen, .. } => {
                self.choices[choice].0.push(chosen.token);
                end = self.text(&self.choices[choice].0)?.1;
                if end {
                    self.choices[choice].1 = Some(Finish::Stop);
                }
            }
            Update::Done { finish, .. } => self.choices[choice].1 = Some(finish),
            Update::Failed { .. } => return Err(Error::msg("failed")),
        }
        Ok(Progress { chunks: Vec::new(), end })
    }

    pub fn is_done(&self) -> bool {
        self.choices.iter().all(|(_, finish)| finish.is_some())
    }

    pub fn whole(&self) -> Value {
        let choice = |(index, (tokens, finish)): (usize, &(Vec<u32>, Option<Finish>))| {
            let text = self.text(tokens).unwrap_or_default().0;
            match self.endpoint {
                Endpoint::Chat => {
                    json!({"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": finish})
                }
                Endpoint::Completions => json!({"index": index, "text": text, "finish_reason": finish}),
            }
        };
        let choices: Vec<Value> = self.choices.iter().enumerate().map(choice).collect();
        let generated: usize = self.choices.iter().map(|(tokens, _)| tokens.len()).sum();
        json!({
            "id": self.stamp.id, "object": "chat.completion", "created": self.stamp.created, "model": self.name,
            "choices": choices,
            "usage": {"prompt_tokens": self.prompt, "completion_tokens": generated},
        })
    }
}
