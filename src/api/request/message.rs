//! The messages of a conversation, as clients send them.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::OneOrMany;
use crate::api::Refusal;
use crate::text::{Content, Message, Role};

/// A message; what an answer has and a prompt has no use for is read over.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Turn {
    role: Speaker,
    content: Option<OneOrMany<Part>>,
    name: Option<String>,
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<Call>>,
    tool_call_id: Option<String>,
    refusal: Option<String>,
    #[serde(rename = "annotations")]
    _annotations: Option<IgnoredAny>,
    audio: Option<IgnoredAny>,
    function_call: Option<IgnoredAny>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Speaker {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    id: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    function: Function,
    #[serde(rename = "index")]
    _index: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Function {
    name: String,
    arguments: Option<Value>,
}

/// Reads all of a conversation.
pub(super) fn conversation(turns: Vec<Turn>) -> Result<Vec<Message>, Refusal> {
    if turns.is_empty() {
        return Err(Refusal::of("messages", "`messages` is empty"));
    }
    turns.into_iter().enumerate().map(|(index, turn)| message(&format!("messages[{index}]"), turn)).collect()
}

fn message(place: &str, turn: Turn) -> Result<Message, Refusal> {
    let wrong = |key: &str, message: &str| {
        Err(Refusal::of(format_args!("{place}.{key}"), format_args!("`{place}.{key}`: {message}")))
    };
    if turn.audio.is_some() {
        return wrong("audio", "there is no audio here, models read text alone");
    }
    if turn.function_call.is_some() {
        return wrong("function_call", "it is called `tool_calls` now");
    }
    let (role, is_assistant) = match turn.role {
        Speaker::System | Speaker::Developer => (Role::System, false),
        Speaker::User => (Role::User, false),
        Speaker::Assistant => (Role::Assistant, true),
        Speaker::Tool => (Role::Tool, false),
    };
    let calls = turn.tool_calls.filter(|calls| !calls.is_empty());
    if !is_assistant && calls.is_some() {
        return wrong("tool_calls", "an assistant makes calls, no one else");
    }
    if turn.role == Speaker::Tool && turn.tool_call_id.is_none() {
        return wrong("tool_call_id", "it is missing: which call is this the result of?");
    }
    let content = match turn.content {
        Some(content) => Some(text(place, content)?),
        None => turn.refusal,
    };
    if content.is_none() && (!is_assistant || calls.is_none() && turn.reasoning_content.is_none()) {
        return wrong("content", "it is missing");
    }
    Ok(Message {
        role,
        content: content.map(Content::Text),
        reasoning_content: turn.reasoning_content,
        tool_calls: calls.map(|calls| tool_calls(place, calls)).transpose()?,
        tool_call_id: turn.tool_call_id,
        name: turn.name,
    })
}

/// Parts make one text: some templates read no parts, and those that do join them like this.
fn text(place: &str, content: OneOrMany<Part>) -> Result<String, Refusal> {
    let parts = match content {
        OneOrMany::One(text) => return Ok(text),
        OneOrMany::Many(parts) => parts,
    };
    let mut whole = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        match (part.kind.as_str(), part.text, part.refusal) {
            ("text", Some(text), _) | ("refusal", _, Some(text)) => whole.push_str(&text),
            ("text" | "refusal", ..) => {
                let param = format!("{place}.content[{index}].text");
                return Err(Refusal::of(&param, format_args!("`{param}` is missing")));
            }
            (kind, ..) => {
                let param = format!("{place}.content[{index}].type");
                let message = format!("`{param}` is `{kind}`: models read text alone here");
                return Err(Refusal::of(param, message));
            }
        }
    }
    Ok(whole)
}

fn tool_calls(place: &str, calls: Vec<Call>) -> Result<Vec<crate::text::ToolCall>, Refusal> {
    let call = |(index, call): (usize, Call)| {
        if let Some(kind) = call.kind.filter(|kind| kind != "function") {
            let param = format!("{place}.tool_calls[{index}].type");
            return Err(Refusal::of(&param, format_args!("`{param}` is `{kind}`: there are functions alone")));
        }
        let Function { name, arguments } = call.function;
        // read once more, because arguments that are JSON in a string become what they say
        let read =
            json!({"id": call.id, "function": {"name": name, "arguments": arguments.unwrap_or_else(|| json!({}))}});
        serde_json::from_value(read).map_err(|error| Refusal::of(format_args!("{place}.tool_calls[{index}]"), error))
    };
    calls.into_iter().enumerate().map(call).collect()
}
