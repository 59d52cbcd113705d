//! Calls of tools as a grammar, in the forms that models write them in.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::literal;
use crate::api::request::{Choice, Offer};
use crate::text::CallForm;

/// The rule `calls` and what it needs: one call or more of the tools that may be chosen.
pub(super) fn rules(form: CallForm, offer: &Offer) -> String {
    let mut rules = String::new();
    let mut names = Vec::new();
    for (index, (name, parameters)) in offer.functions.iter().enumerate() {
        if matches!(&offer.choice, Choice::Named(chosen) if chosen != name) {
            continue;
        }
        let call = format!("call_{index}");
        rules += &match form {
            CallForm::Hermes => hermes(&call, name, parameters),
            CallForm::Xml => xml(&call, name, parameters),
            CallForm::Kimi => kimi(&call, name, parameters),
        };
        names.push(call);
    }
    let single = !offer.parallel || matches!(offer.choice, Choice::Named(_));
    let calls = match (form, single) {
        (CallForm::Kimi, true) => "\"<|tool_calls_section_begin|>\" call \"<|tool_calls_section_end|>\"",
        (CallForm::Kimi, false) => "\"<|tool_calls_section_begin|>\" call+ \"<|tool_calls_section_end|>\"",
        (_, true) => "call",
        (_, false) => "call (\"\\n\" call)*",
    };
    format!("calls: {calls}\ncall: {}\n{rules}", names.join(" | "))
}

fn hermes(rule: &str, name: &str, parameters: &Value) -> String {
    let before = literal(&format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": "));
    format!("{rule}: {before} {rule}_json {}\n{rule}_json: %json {parameters}\n", literal("}\n</tool_call>"))
}

fn kimi(rule: &str, name: &str, parameters: &Value) -> String {
    let before = literal(&format!("<|tool_call_begin|>functions.{name}:"));
    format!(
        "{rule}: {before} /[0-9]{{1,3}}/ \"<|tool_call_argument_begin|>\" {rule}_json \"<|tool_call_end|>\"\n\
         {rule}_json: %json {parameters}\n"
    )
}

/// Parameters in the order of the schema; those that are not required may be left out.
fn xml(rule: &str, name: &str, parameters: &Value) -> String {
    let empty = Map::new();
    let properties = parameters.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let required = parameters.get("required").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut call = format!("{rule}: {}", literal(&format!("<tool_call>\n<function={name}>\n")));
    let mut rules = String::new();
    for (index, (key, schema)) in properties.iter().enumerate() {
        let parameter = format!("{rule}_{index}");
        let optional = if required.iter().any(|required| required == key) { "" } else { "?" };
        let _ = write!(call, " {parameter}{optional}");
        let before = literal(&format!("<parameter={key}>\n"));
        let after = literal("\n</parameter>\n");
        rules += &match words(schema) {
            Some(words) => format!("{parameter}: {before} ({}) {after}\n", words.join(" | ")),
            None if is_text(schema) => {
                format!("{parameter}: {before} {parameter}_text\n{parameter}_text[suffix={after}]: /(?s:.*)/\n")
            }
            None => {
                let mut schema = schema.clone();
                // what the schema refers to is beside it
                for key in ["$defs", "definitions"] {
                    if let (Some(schema), Some(defined)) = (schema.as_object_mut(), parameters.get(key)) {
                        schema.insert(key.to_owned(), defined.clone());
                    }
                }
                format!("{parameter}: {before} {parameter}_json {after}\n{parameter}_json: %json {schema}\n")
            }
        };
    }
    format!("{call} {}\n{rules}", literal("</function>\n</tool_call>"))
}

/// The texts that a schema allows, if it names them all.
fn words(schema: &Value) -> Option<Vec<String>> {
    let list = schema.get("enum")?.as_array()?;
    list.iter().map(|value| value.as_str().map(literal)).collect()
}

/// Whether a value may be a text, which is written without quotes.
fn is_text(schema: &Value) -> bool {
    let says = ["type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"];
    match schema.get("type") {
        Some(kind) => *kind == "string" || kind.as_array().is_some_and(|kinds| kinds.contains(&json!("string"))),
        None => !says.iter().any(|key| schema.get(key).is_some()),
    }
}
