//! The body of a chat completion.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::format::Wanted;
use super::message::{Turn, conversation};
use super::sampling::outside;
use super::{Format, Offer, known, read, sampling, shared};
use crate::api::Refusal;
use crate::text::{Message, Template};

const KEYS: &[&str] = &[
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "chat_template_kwargs",
    "reasoning_effort",
    "modalities",
];

/// Alternatives to each token at most.
const ALTERNATIVES: usize = 20;

/// What a template is given by other means.
const OURS: [&str; 4] = ["messages", "tools", "add_generation_prompt", "documents"];

#[derive(Deserialize)]
struct Keys {
    messages: Option<Vec<Turn>>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<Wanted>,
    chat_template_kwargs: Option<Map<String, Value>>,
    reasoning_effort: Option<String>,
    modalities: Option<Vec<String>>,
}

/// The keys of a chat alone.
#[derive(Debug)]
pub(in crate::api) struct Chat {
    pub(in crate::api) messages: Vec<Message>,
    /// As many as there is room for, if not given.
    pub(in crate::api) max_tokens: Option<usize>,
    pub(in crate::api) logprobs: Option<usize>,
    pub(in crate::api) offer: Option<Offer>,
    pub(in crate::api) format: Format,
    /// Variables of the template.
    pub(in crate::api) variables: Map<String, Value>,
}

impl Chat {
    pub(in crate::api) fn read(body: &Value, template: &Template) -> Result<Self, Refusal> {
        known(body, &[KEYS, shared::KEYS, shared::IGNORED, sampling::KEYS])?;
        let keys: Keys = read(body)?;
        let max_tokens = keys.max_completion_tokens.or(keys.max_tokens);
        if max_tokens == Some(0) {
            return Err(Refusal::of("max_completion_tokens", "`max_completion_tokens` is 0: it is at least 1"));
        }
        let logprobs = match (keys.logprobs.unwrap_or(false), keys.top_logprobs) {
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                return Err(Refusal::of("top_logprobs", "`top_logprobs` goes with `logprobs: true` alone"));
            }
            (true, Some(top)) if top > ALTERNATIVES => return Err(outside("top_logprobs", top, &(0..=ALTERNATIVES))),
            (true, top) => Some(top.unwrap_or(0)),
        };
        if let Some(other) = keys.modalities.iter().flatten().find(|modality| *modality != "text") {
            return Err(Refusal::of(
                "modalities",
                format_args!("`modalities`: there is no `{other}` here, text alone"),
            ));
        }
        let Some(turns) = keys.messages else {
            return Err(Refusal::of("messages", "`messages` is missing").code("missing_required_parameter"));
        };
        let mut variables = Map::new();
        for (key, value) in keys.chat_template_kwargs.unwrap_or_default() {
            let key = if SWITCHES.contains(&key.as_str()) { switch(template).map_or(key, str::to_owned) } else { key };
            if OURS.contains(&key.as_str()) || !template.knows(&key) {
                let param = format!("chat_template_kwargs.{key}");
                return Err(Refusal::of(
                    &param,
                    format_args!("`{param}`: this model's chat template has no such choice"),
                ));
            }
            variables.insert(key, value);
        }
        if let Some(effort) = keys.reasoning_effort {
            reasoning(template, &effort, &mut variables)?;
        }
        let parallel = keys.parallel_tool_calls.unwrap_or(true);
        Ok(Self {
            messages: conversation(turns)?,
            max_tokens,
            logprobs,
            offer: Offer::read(keys.tools, keys.tool_choice.as_ref(), parallel)?,
            format: Format::of(keys.response_format)?,
            variables,
        })
    }
}

/// What Qwen's and Kimi's templates call the choice whether to reason.
const SWITCHES: [&str; 2] = ["enable_thinking", "thinking"];

fn switch(template: &Template) -> Option<&'static str> {
    SWITCHES.into_iter().find(|switch| template.knows(switch))
}

/// Says to a template how much to reason, as far as it has a way of saying it.
fn reasoning(template: &Template, effort: &str, variables: &mut Map<String, Value>) -> Result<(), Refusal> {
    match (effort, switch(template)) {
        ("none", Some(switch)) => variables.entry(switch).or_insert(false.into()),
        (effort, _) if effort != "none" && template.knows("reasoning_effort") => {
            variables.entry("reasoning_effort").or_insert(effort.into())
        }
        _ => {
            let message = format!("`reasoning_effort`: this model's chat template has no way of saying `{effort}`");
            return Err(Refusal::of("reasoning_effort", message));
        }
    };
    Ok(())
}
