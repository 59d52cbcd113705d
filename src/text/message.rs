//! One turn of a conversation, as chat templates and chat APIs write it.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The instructions; `developer`, their newer name in chat APIs, is read as the same role.
    #[serde(alias = "developer")]
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

/// What is said: plain text or typed parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// The whole text.
    Text(String),
    /// Objects like `{"type": "text", "text": "..."}`, passed on to the template as they are.
    Parts(Vec<Value>),
}

/// A call the model made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// What the result refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The kind of tool, always `function` so far.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// What was called.
    pub function: FunctionCall,
}

/// A function's name and arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// The arguments. Chat APIs send an object as a string of JSON; it is read as the object, which is what
    /// templates walk through. Any other string stays a string.
    #[serde(default = "no_arguments", deserialize_with = "arguments")]
    pub arguments: Value,
}

/// One turn of a conversation. Absent fields are absent for the template too, except `content`, which is then none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; none for a turn of tool calls alone.
    #[serde(default)]
    pub content: Option<Content>,
    /// The reasoning before an assistant's answer, without tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The calls an assistant made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// The call a tool's result answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The speaker's or the tool's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// Returns a turn of plain text.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: Some(Content::Text(text.into())),
            reasoning_content: None,
            tool_calls: None,
            tool_call_id: None,
            name: None,
        }
    }

    /// Returns a system turn.
    pub fn system(text: impl Into<String>) -> Self {
        Self::new(Role::System, text)
    }

    /// Returns a user turn.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Role::User, text)
    }

    /// Returns an assistant turn.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::new(Role::Assistant, text)
    }
}

fn function() -> String {
    "function".to_owned()
}

fn no_arguments() -> Value {
    Value::Object(serde_json::Map::new())
}

fn arguments<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let parsed = value.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    Ok(parsed.filter(Value::is_object).unwrap_or(value))
}
