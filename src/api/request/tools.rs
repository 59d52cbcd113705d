//! Tools that a model may call, and whether it must.

use serde::Deserialize;
use serde_json::Value;

use super::read;
use crate::api::Refusal;

/// Tools of a request at most.
const MOST: usize = 128;

/// A function on offer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tool {
    #[serde(rename = "type")]
    kind: String,
    function: Function,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Function {
    name: String,
    #[serde(rename = "description")]
    _description: Option<String>,
    parameters: Option<Value>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "type")]
    kind: String,
    function: Option<Name>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Name {
    name: String,
}

/// Whether a tool is called.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::api) enum Choice {
    /// As the model likes.
    Auto,
    /// One or more, whichever.
    Required,
    /// This one.
    Named(String),
}

/// The tools of a request.
#[derive(Debug, Clone)]
pub(in crate::api) struct Offer {
    /// As they were sent, which is what templates are given.
    pub(in crate::api) tools: Value,
    /// Names, and the JSON schemas of the arguments.
    pub(in crate::api) functions: Vec<(String, Value)>,
    pub(in crate::api) choice: Choice,
    /// Whether more than one may be called.
    pub(in crate::api) parallel: bool,
}

impl Offer {
    /// Reads `tools` and `tool_choice`; `None` if no tool can be called.
    pub(super) fn read(tools: Option<Value>, choice: Option<&Value>, parallel: bool) -> Result<Option<Self>, Refusal> {
        let empty = tools.as_ref().is_none_or(|tools| tools.as_array().is_some_and(Vec::is_empty));
        let Some(tools) = tools.filter(|_| !empty) else {
            return match choice.and_then(Value::as_str) {
                _ if choice.is_none() => Ok(None),
                Some("none" | "auto") => Ok(None),
                _ => Err(Refusal::of("tool_choice", "`tool_choice` goes with `tools` alone")),
            };
        };
        let list: Vec<Tool> = read(&tools).map_err(|refusal| within("tools", refusal))?;
        if list.len() > MOST {
            return Err(Refusal::of(
                "tools",
                format_args!("`tools` has {} tools, at most {MOST} are allowed", list.len()),
            ));
        }
        let mut functions: Vec<(String, Value)> = Vec::new();
        for (index, Tool { kind, function }) in list.into_iter().enumerate() {
            let wrong = |key: &str, message: String| {
                Err(Refusal::of(format_args!("tools[{index}].{key}"), format_args!("`tools[{index}].{key}` {message}")))
            };
            if kind != "function" {
                return wrong("type", format!("is `{kind}`: there are functions alone"));
            }
            let name = function.name;
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
                return wrong("function.name", "is not 1 to 64 letters, digits, `_`, `-` or `.`".to_owned());
            }
            if functions.iter().any(|(other, _)| *other == name) {
                return wrong("function.name", format!("is `{name}` like another's"));
            }
            let parameters = function.parameters.unwrap_or_else(|| serde_json::json!({"type": "object"}));
            if !parameters.is_object() {
                return wrong("function.parameters", "is not a JSON schema of an object".to_owned());
            }
            functions.push((name, parameters));
        }
        let Some(choice) = chosen(choice, &functions)? else { return Ok(None) };
        Ok(Some(Self { tools, functions, choice, parallel }))
    }
}

/// Reads `tool_choice`; `None` for none.
fn chosen(value: Option<&Value>, functions: &[(String, Value)]) -> Result<Option<Choice>, Refusal> {
    let wrong =
        || Refusal::of("tool_choice", "`tool_choice` is none, auto, required, or an object that names a function");
    let Some(value) = value else { return Ok(Some(Choice::Auto)) };
    match value.as_str() {
        Some("none") => return Ok(None),
        Some("auto") => return Ok(Some(Choice::Auto)),
        Some("required") => return Ok(Some(Choice::Required)),
        Some(_) => return Err(wrong()),
        None => {}
    }
    let named: Named = read(value).map_err(|refusal| within("tool_choice", refusal))?;
    let Some(Name { name }) = named.function.filter(|_| named.kind == "function") else { return Err(wrong()) };
    if !functions.iter().any(|(known, _)| *known == name) {
        let message = format!("`tool_choice`: `{name}` is not one of the tools");
        return Err(Refusal::of("tool_choice.function.name", message));
    }
    Ok(Some(Choice::Named(name)))
}

/// Puts the key in front of what is inside it.
fn within(key: &str, refusal: Refusal) -> Refusal {
    let param = match refusal.param {
        Some(path) if path.starts_with('[') => format!("{key}{path}"),
        Some(path) => format!("{key}.{path}"),
        None => key.to_owned(),
    };
    Refusal { param: Some(param), message: format!("`{key}`: {}", refusal.message), ..refusal }
}
