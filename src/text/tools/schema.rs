//! What a value that is written as plain text is, by the JSON schema of a tool's arguments.

use std::collections::HashSet;

use serde_json::Value;

/// Reads the text of parameter `key`; what cannot be of its type stays text.
pub(super) fn value(parameters: &Value, key: &str, text: &str) -> Value {
    let schema = parameters.get("properties").and_then(|properties| properties.get(key));
    let types = schema.map(|schema| types(schema, parameters)).unwrap_or_default();
    let plain = || Value::from(text);
    let parsed = serde_json::from_str::<Value>(text.trim()).ok();
    match parsed {
        // nothing is said of it: lists and objects are what nobody writes by chance
        Some(value) if types.is_empty() && (value.is_object() || value.is_array()) => value,
        Some(value) if types.contains(kind(&value)) && !value.is_string() => {
            // `5` where a text or a number may stand is a text, because texts are written without quotes
            if types.contains("string") && !value.is_null() { plain() } else { value }
        }
        Some(Value::Number(number)) if types.contains("number") && !types.contains("string") => number.into(),
        None if types.contains("boolean") && !types.contains("string") => match text.trim() {
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
fn types<'a>(schema: &'a Value, root: &'a Value) -> HashSet<&'a str> {
    // schemas may refer to themselves, and to one another in more ways than can be gone through
    let (mut types, mut seen, mut open) = (HashSet::new(), HashSet::new(), vec![schema]);
    while let Some(schema) = open.pop() {
        if !seen.insert(std::ptr::from_ref(schema)) {
            continue;
        }
        match schema.get("type") {
            Some(Value::Array(list)) => types.extend(list.iter().filter_map(Value::as_str)),
            Some(word) => types.extend(word.as_str()),
            None => {
                let values = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
                types.extend(values.chain(schema.get("const")).map(|value| -> &'a str { kind(value) }));
            }
        }
        let place = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix('#'));
        open.extend(place.and_then(|place| root.pointer(place)));
        for key in ["anyOf", "oneOf", "allOf"] {
            open.extend(schema.get(key).and_then(Value::as_array).into_iter().flatten());
        }
    }
    types
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_that_refers_to_itself_many_times_is_read_once() {
        let itself = json!({"$ref": "#/properties/x"});
        let mut options = vec![itself; 60];
        options.push(json!({"type": ["integer", "null"]}));
        let parameters = json!({"properties": {"x": {"anyOf": options}}});
        assert_eq!(value(&parameters, "x", "5"), json!(5));
        assert_eq!(value(&parameters, "x", "five"), json!("five"));
    }

    #[test]
    fn a_long_chain_of_references_is_followed_to_its_end() {
        let link = |at: usize| (at.to_string(), json!({"$ref": format!("#/properties/{}", at + 1)}));
        let mut properties: serde_json::Map<String, Value> = (0..20_000).map(link).collect();
        properties.insert("20000".to_owned(), json!({"enum": [1, 2]}));
        assert_eq!(value(&json!({"properties": properties}), "0", "2"), json!(2));
    }
}
