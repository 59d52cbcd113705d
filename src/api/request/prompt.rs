//! What a completion continues: a text, its tokens, or a list of either.

use serde_json::Value;

use crate::api::Refusal;

/// Prompts of a request at most, and answers to all of them together.
pub(in crate::api) const MOST: usize = 2048;

/// One prompt.
#[derive(Debug, PartialEq)]
pub(in crate::api) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    /// Reads the value of `prompt`.
    pub(super) fn read(value: Option<&Value>) -> Result<Vec<Self>, Refusal> {
        let wrong = || Refusal::of("prompt", "`prompt` is a string, a list of token ids, or a list of one of these");
        let prompts = match value {
            None => return Err(Refusal::of("prompt", "`prompt` is missing").code("missing_required_parameter")),
            Some(Value::String(text)) => vec![Self::Text(text.clone())],
            Some(Value::Array(list)) if !list.is_empty() && list.iter().all(Value::is_number) => vec![tokens(list)?],
            Some(Value::Array(list)) => list
                .iter()
                .map(|item| match item {
                    Value::String(text) => Ok(Self::Text(text.clone())),
                    Value::Array(list) => tokens(list),
                    _ => Err(wrong()),
                })
                .collect::<Result<_, _>>()?,
            Some(_) => return Err(wrong()),
        };
        match prompts.len() {
            0 => Err(wrong()),
            1..=MOST => Ok(prompts),
            many => Err(Refusal::of("prompt", format_args!("`prompt` has {many} prompts, at most {MOST} are allowed"))),
        }
    }
}

fn tokens(list: &[Value]) -> Result<Prompt, Refusal> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| Refusal::of("prompt", format_args!("`prompt`: {value} is not a token id")))
    };
    list.iter().map(id).collect::<Result<_, _>>().map(Prompt::Tokens)
}
