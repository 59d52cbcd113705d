//! Stands in for the room `api` until that is there: messages become a prompt, tokens become text.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::engine::{Defaults, Finish, Job, Sampling, Update};
use crate::error::Error;
use crate::text::{Message, RenderOptions, StopStrings, Template, Tokenizer};

#[derive(Clone)]
pub struct Texts {
    pub name: String,
    pub tokenizer: Arc<Tokenizer>,
    pub template: Option<Arc<Template>>,
    pub defaults: Defaults,
    pub context: usize,
    pub vocab: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    Chat,
    Completions,
}

#[derive(Debug, Clone)]
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

pub struct Stamp {
    pub id: String,
    pub created: u64,
}

pub struct Order {
    pub jobs: Vec<Job>,
    pub reply: Reply,
}

pub struct Reply {
    chat: bool,
    stream: bool,
    usage: bool,
    texts: Texts,
    stamp: Stamp,
    tokens: Vec<Vec<u32>>,
    sent: Vec<String>,
    stops: Vec<StopStrings>,
    finish: Vec<Option<Finish>>,
    prompt: usize,
}

#[derive(Default)]
pub struct Progress {
    pub chunks: Vec<Value>,
    pub end: bool,
}

fn refuse(message: &str, param: &str) -> Refusal {
    Refusal { status: 400, message: message.to_owned(), param: Some(param.to_owned()), code: None }
}

pub fn prepare(endpoint: Endpoint, body: &Value, texts: &Texts, stamp: &Stamp) -> Result<Order, Refusal> {
    let failed = |error: Error| refuse(&error.to_string(), "messages");
    let chat = endpoint == Endpoint::Chat;
    let prompt = if chat {
        let messages = body["messages"].as_array().ok_or_else(|| refuse("there are no messages", "messages"))?;
        let messages: Option<Vec<Message>> = messages
            .iter()
            .map(|message| {
                let text = message["content"].as_str()?;
                Some(if message["role"] == "system" { Message::system(text) } else { Message::user(text) })
            })
            .collect();
        let messages = messages.ok_or_else(|| refuse("a message has no content", "messages"))?;
        let template = texts.template.as_ref().ok_or_else(|| refuse("no template", "messages"))?;
        let options = RenderOptions { add_generation_prompt: true, thinking: None, tools: None };
        let rendered = template.render(&messages, &options).map_err(failed)?;
        texts.tokenizer.encode(&rendered, false).map_err(failed)?
    } else {
        let text = body["prompt"].as_str().ok_or_else(|| refuse("there is no prompt", "prompt"))?;
        texts.tokenizer.encode(text, true).map_err(failed)?
    };
    if prompt.len() > texts.context {
        return Err(Refusal { code: Some("context_length_exceeded".to_owned()), ..refuse("too long", "messages") });
    }
    let n = body["n"].as_u64().unwrap_or(1) as usize;
    let stop: Vec<String> = body["stop"].as_str().map(str::to_owned).into_iter().collect();
    let sampling = Sampling {
        temperature: body["temperature"].as_f64().unwrap_or(0.0) as f32,
        seed: body["seed"].as_u64().unwrap_or(0),
        ..texts.defaults.sampling.clone()
    };
    let max_tokens = body["max_tokens"].as_u64().unwrap_or(1024) as usize;
    let max_tokens = max_tokens.min(texts.context + 1 - prompt.len());
    let ignore = body["ignore_eos"] == true;
    let jobs = (0..n)
        .map(|choice| Job {
            id: choice as u64,
            prompt: prompt.clone(),
            max_tokens,
            eos: if ignore { Vec::new() } else { texts.defaults.eos.clone() },
            sampling: sampling.clone(),
            choice: choice as u64,
            logprobs: None,
            constraint: None,
        })
        .collect();
    let stamp = Stamp { id: stamp.id.clone(), created: stamp.created };
    let reply = Reply {
        chat,
        stream: body["stream"] == true,
        usage: body["stream_options"]["include_usage"] == true,
        texts: texts.clone(),
        stamp,
        tokens: vec![Vec::new(); n],
        sent: vec![String::new(); n],
        stops: (0..n).map(|_| StopStrings::new(&stop)).collect(),
        finish: vec![None; n],
        prompt: prompt.len(),
    };
    Ok(Order { jobs, reply })
}

impl Reply {
    pub fn stream(&self) -> bool {
        self.stream
    }

    pub fn include_usage(&self) -> bool {
        self.usage
    }

    pub fn update(&mut self, choice: usize, update: Update) -> Result<Progress, Error> {
        let mut end = false;
        let mut piece = String::new();
        match update {
            Update::Prompt { .. } => return Ok(Progress::default()),
            Update::Token { chosen, .. } => {
                let before = self.texts.tokenizer.decode(&self.tokens[choice], true)?;
                self.tokens[choice].push(chosen.token);
                let after = self.texts.tokenizer.decode(&self.tokens[choice], true)?;
                let (text, stopped) = self.stops[choice].push(after.strip_prefix(&before).unwrap_or_default());
                piece = text;
                if stopped {
                    (end, self.finish[choice]) = (true, Some(Finish::Stop));
                }
            }
            Update::Done { finish, .. } => {
                piece = self.stops[choice].finish();
                self.finish[choice] = Some(finish);
            }
            Update::Failed { error, .. } => return Err(error),
        }
        self.sent[choice].push_str(&piece);
        let finish = self.finish[choice].map(|finish| if finish == Finish::Length { "length" } else { "stop" });
        let delta = if self.chat { json!({"content": piece}) } else { json!(piece) };
        let key = if self.chat { "delta" } else { "text" };
        let kind = if self.chat { "chat.completion.chunk" } else { "text_completion" };
        let choice = json!({"index": choice, key: delta, "finish_reason": finish});
        let mut chunks = vec![self.object(kind, vec![choice])];
        if self.is_done() && self.usage {
            let mut last = self.object(kind, Vec::new());
            last["usage"] = self.usage();
            chunks.push(last);
        }
        Ok(Progress { chunks, end })
    }

    fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        let (id, created) = (&self.stamp.id, self.stamp.created);
        json!({"id": id, "object": kind, "created": created, "model": self.texts.name, "choices": choices})
    }

    fn usage(&self) -> Value {
        let completion: usize = self.tokens.iter().map(Vec::len).sum();
        json!({"prompt_tokens": self.prompt, "completion_tokens": completion, "total_tokens": self.prompt + completion})
    }

    pub fn is_done(&self) -> bool {
        self.finish.iter().all(Option::is_some)
    }

    pub fn whole(&self) -> Value {
        let choices = self.sent.iter().enumerate().map(|(index, text)| {
            let finish = if self.finish[index] == Some(Finish::Length) { "length" } else { "stop" };
            let text = if self.chat { json!({"role": "assistant", "content": text}) } else { json!(text) };
            let key = if self.chat { "message" } else { "text" };
            json!({"index": index, key: text, "finish_reason": finish})
        });
        let choices = choices.collect();
        let mut whole = self.object(if self.chat { "chat.completion" } else { "text_completion" }, choices);
        whole["usage"] = self.usage();
        whole
    }
}
