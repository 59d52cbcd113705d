//! What a value that is written as plain text is, by the JSON schema of a tool's arguments.

use serde_json::Value;

/// References followed at most: schemas may refer to themselves.
const DEPTH: usize = 16;

/// Reads the text of parameter `key`; what cannot be of its type stays text.
pub(super) fn value(parameters: &Value, key: &str, text: &str) -> Value {
    let mut types = Vec::new();
    if let Some(schema) = parameters.get("properties").and_then(|properties| properties.get(key)) {
        gather(schema, parameters, DEPTH, &mut types);
    }
    let plain = || Value::from(text);
    let parsed = serde_json::from_str::<Value>(text.trim()).ok();
    match parsed {
        // nothing is said of it: lists and objects are what nobody writes by chance
        Some(value) if types.is_empty() && (value.is_object() || value.is_array()) => value,
        Some(value) if types.contains(&kind(&value)) && !value.is_string() => {
            // `5` where a text or a number may stand is a text, because texts are written without quotes
            if types.contains(&"string") && !value.is_null() { plain() } else { value }
        }
        Some(Value::Number(number)) if types.contains(&"number") && !types.contains(&"string") => number.into(),
        None if types.contains(&"boolean") && !types.contains(&"string") => match text.trim() {
            "True" => true.into(),
            "False" => false.into(),
            _ => plain(),
        },
        _ => plain(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The types that a schema allows, as far as it says.
fn gather<'a>(schema: &'a Value, root: &'a Value, depth: usize, types: &mut Vec<&'a str>) {
    if depth == 0 {
        return;
    }
    let words = |value: &'a Value| -> Vec<&'a str> {
        let list = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
        list.iter().filter_map(Value::as_str).collect()
    };
    types.extend(schema.get("type").into_iter().flat_map(words));
    let values = schema.get("enum").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if schema.get("type").is_none() {
        values.iter().chain(schema.get("const")).for_each(|value| types.push(kind(value)));
    }
    let place = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix('#'));
    if let Some(target) = place.and_then(|place| root.pointer(place)) {
        gather(target, root, depth - 1, types);
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        for option in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
            gather(option, root, depth - 1, types);
        }
    }
}
