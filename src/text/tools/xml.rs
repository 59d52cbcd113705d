//! The form of Qwen3-Coder and Qwen3.5: tags for the function and its parameters, values as plain text.

use serde_json::{Map, Value};

use super::{Call, Parsed, schema};

pub(super) const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

pub(super) fn parse(block: &str, functions: &[(String, Value)]) -> Parsed {
    let block = block.trim();
    let Some(rest) = block.strip_prefix(FUNCTION) else {
        return if FUNCTION.starts_with(block) { Parsed::Unfinished } else { Parsed::Malformed };
    };
    // a closing tag may be part of a value
    let Some(body) = rest.strip_suffix(FUNCTION_END) else { return Parsed::Unfinished };
    let Some((name, mut rest)) = body.split_once('>') else { return Parsed::Malformed };
    if name.is_empty() || name.contains(['<', '\n']) {
        return Parsed::Malformed;
    }
    let schema = functions.iter().find(|(known, _)| known == name).map(|(_, schema)| schema);
    let mut arguments = Map::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            break;
        }
        let Some((key, after)) = rest.strip_prefix(PARAMETER).and_then(|rest| rest.split_once('>')) else {
            return Parsed::Malformed;
        };
        let Some(end) = end_of_value(after) else { return Parsed::Malformed };
        let value = &after[..end];
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        let value = schema.map_or_else(|| value.into(), |schema| schema::value(schema, key, value));
        if key.is_empty() || arguments.insert(key.to_owned(), value).is_some() {
            return Parsed::Malformed;
        }
        rest = &after[end + PARAMETER_END.len()..];
    }
    Parsed::Calls(vec![Call { id: None, name: name.to_owned(), arguments: Value::Object(arguments).to_string() }])
}

/// Where the tag stands that ends a value: another parameter follows it, or nothing.
fn end_of_value(text: &str) -> Option<usize> {
    let follows = |at: &usize| {
        let after = text[at + PARAMETER_END.len()..].trim_start();
        after.is_empty() || after.starts_with(PARAMETER)
    };
    text.match_indices(PARAMETER_END).map(|(at, _)| at).find(follows)
}
