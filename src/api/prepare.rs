//! From a body to jobs: the prompt rendered and encoded, limits checked, one job an answer.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::grammar::{Shape, Start, Thinking};
use super::reply::{Head, Voice};
use super::request::{Chat, Completions, MOST, Prompt, SWITCHES, Shared};
use super::{Endpoint, Refusal, Reply, Stamp, Texts};
use crate::engine::{Constraint, Job};
use crate::text::{CallForm, Reasoning, RenderOptions, Template};

/// A request that can be run.
#[derive(Debug)]
pub struct Order {
    /// One an answer; their ids are 0, 1, 2 … and the caller gives them others.
    pub jobs: Vec<Job>,
    /// What becomes of their updates.
    pub reply: Reply,
}

/// Reads a body.
///
/// # Errors
/// If it asks for what cannot be, or is not known here.
pub fn prepare(endpoint: Endpoint, body: &Value, texts: &Texts, stamp: &Stamp) -> Result<Order, Refusal> {
    if !body.is_object() {
        return Err(Refusal::new(400, "the body is not a JSON object"));
    }
    let shared = Shared::read(body, texts, seed(stamp))?;
    match endpoint {
        Endpoint::Chat => chat(body, &shared, texts, stamp),
        Endpoint::Completions => completions(body, &shared, texts, stamp),
    }
}

/// The seed of a request that names none: as arbitrary as its id.
fn seed(stamp: &Stamp) -> u64 {
    Sha256::digest(&stamp.id).iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

fn chat(body: &Value, shared: &Shared, texts: &Texts, stamp: &Stamp) -> Result<Order, Refusal> {
    let Some(template) = &texts.template else {
        let message = format!("`{}` has no chat template, use {}", texts.name, Endpoint::Completions.path());
        return Err(Refusal::of("messages", message));
    };
    let chat = Chat::read(body, template)?;
    let form = chat.offer.as_ref().map(|_| form(template, texts)).transpose()?;
    let options = RenderOptions {
        add_generation_prompt: true,
        thinking: None,
        tools: chat.offer.as_ref().map(|offer| offer.tools.clone()),
        variables: chat.variables,
    };
    let rendered = template.render(&chat.messages, &options).map_err(|error| Refusal::of("messages", error))?;
    let tokens = texts.tokenizer.encode(&rendered, false).map_err(|error| Refusal::of("messages", error))?;
    let max_tokens = room(&tokens, chat.max_tokens, texts, "messages")?;
    let calls = form.zip(chat.offer.as_ref());
    let voice = Voice::chat(&rendered, &shared.stop, calls, &texts.tokenizer);
    let head = Head::new(Endpoint::Chat, shared, texts, stamp);
    let shape = Shape::of(&chat.format, calls);
    let thinking = Thinking::new(start(template, &rendered), &texts.tokenizer);
    let grammar =
        shape.map(|shape| texts.grammars.constraint(&shape, texts, &eos(shared, texts), &thinking)).transpose()?;
    let mut grammars = grammar.map(|grammar| std::iter::repeat_n(grammar, shared.n));
    let mut jobs = Vec::new();
    for choice in 0..shared.n {
        let mut job = job(choice, choice, &tokens, max_tokens, chat.logprobs, shared, texts);
        let grammar = grammars.as_mut().and_then(Iterator::next);
        job.constraint = grammar.map(|grammar| Box::new(grammar) as Box<dyn Constraint>);
        jobs.push(job);
    }
    Ok(Order { jobs, reply: Reply::new(head, &texts.tokenizer, &voice, &[(tokens.len(), String::new())]) })
}

/// How the answer to a prompt starts.
fn start(template: &Template, rendered: &str) -> Start {
    if Reasoning::is_open_at_end(rendered) {
        Start::Thinks
    } else if SWITCHES.iter().any(|switch| template.knows(switch)) && !rendered.trim_end().ends_with("</think>") {
        Start::MayThink
    } else {
        Start::Answer
    }
}

fn completions(body: &Value, shared: &Shared, texts: &Texts, stamp: &Stamp) -> Result<Order, Refusal> {
    let request = Completions::read(body)?;
    let answers = request.prompts.len() * shared.n;
    if answers > MOST {
        let message = format_args!("`n` answers to each prompt are {answers}, at most {MOST} are allowed");
        return Err(Refusal::of("n", message));
    }
    let (mut jobs, mut prompts) = (Vec::new(), Vec::new());
    for prompt in &request.prompts {
        let tokens = encode(prompt, texts)?;
        let max_tokens = room(&tokens, Some(request.max_tokens), texts, "prompt")?;
        let echo = match prompt {
            _ if !request.echo => String::new(),
            Prompt::Text(text) => text.clone(),
            Prompt::Tokens(ids) => texts.tokenizer.decode(ids, false).map_err(|error| Refusal::of("prompt", error))?,
        };
        prompts.push((tokens.len(), echo));
        for choice in 0..shared.n {
            jobs.push(job(jobs.len(), choice, &tokens, max_tokens, request.logprobs, shared, texts));
        }
    }
    let head = Head::new(Endpoint::Completions, shared, texts, stamp);
    let voice = Voice::plain(&shared.stop);
    Ok(Order { jobs, reply: Reply::new(head, &texts.tokenizer, &voice, &prompts) })
}

/// How this model writes calls.
fn form(template: &Template, texts: &Texts) -> Result<CallForm, Refusal> {
    let form = CallForm::of(template.source()).filter(|_| template.knows("tools"));
    form.ok_or_else(|| {
        let message =
            format!("`tools`: the chat template of `{}` has none, or calls of a form not known here", texts.name);
        Refusal::of("tools", message)
    })
}

fn encode(prompt: &Prompt, texts: &Texts) -> Result<Vec<u32>, Refusal> {
    let tokens = match prompt {
        Prompt::Text(text) => texts.tokenizer.encode(text, true).map_err(|error| Refusal::of("prompt", error))?,
        Prompt::Tokens(tokens) => tokens.clone(),
    };
    if tokens.is_empty() {
        return Err(Refusal::of("prompt", "`prompt` has no tokens: give it some text"));
    }
    if let Some(id) = tokens.iter().find(|id| **id as usize >= texts.vocab) {
        return Err(Refusal::of("prompt", format_args!("`prompt`: {id} is not a token id below {}", texts.vocab)));
    }
    Ok(tokens)
}

/// Tokens that an answer may have.
fn room(prompt: &[u32], asked: Option<usize>, texts: &Texts, param: &str) -> Result<usize, Refusal> {
    let (used, context) = (prompt.len(), texts.context);
    // the last token of an answer needs no position: nothing follows it
    let left = (context + 1).saturating_sub(used);
    let wanted = asked.unwrap_or(left.max(1));
    if wanted <= left {
        return Ok(wanted);
    }
    let message = format!(
        "this model's context has room for {context} tokens, but {} were requested: {used} in `{param}`, {wanted} for \
         the answer",
        used.saturating_add(wanted)
    );
    Err(Refusal::of(param, message).code("context_length_exceeded"))
}

/// Tokens that end an answer.
fn eos(shared: &Shared, texts: &Texts) -> Vec<u32> {
    if shared.ignore_eos { Vec::new() } else { texts.defaults.eos.clone() }
}

fn job(
    id: usize,
    choice: usize,
    prompt: &[u32],
    max_tokens: usize,
    logprobs: Option<usize>,
    shared: &Shared,
    texts: &Texts,
) -> Job {
    Job {
        id: id as u64,
        prompt: prompt.to_vec(),
        max_tokens,
        eos: eos(shared, texts),
        sampling: shared.sampling.clone(),
        choice: choice as u64,
        logprobs,
        constraint: None,
    }
}
