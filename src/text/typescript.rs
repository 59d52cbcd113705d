//! Tools as TypeScript declarations: what the tokenizer code of Kimi K2.5 and later gives its chat template.

use serde_json::{Map, Value};

use super::python;

const STEP: &str = "  ";

/// The namespace of functions that `tools` declares, whose keys are in alphabetical order. None if there is no function, or
/// one has a schema that Kimi's own code refuses: its template takes JSON then.
pub(super) fn declare(tools: &Value) -> Option<String> {
    let mut functions = String::new();
    for tool in tools.as_array()? {
        if tool.get("type")? == "function" {
            match tool.get("function")?.as_object()? {
                empty if empty.is_empty() => {}
                declared => functions += &function(declared)?,
            }
        }
    }
    (!functions.is_empty()).then(|| format!("# Tools\n\n## functions\nnamespace functions {{\n{functions}}}\n"))
}

fn function(declared: &Map<String, Value>) -> Option<String> {
    let (none, mut names) = (Map::new(), Names::default());
    let parameters = match declared.get("parameters").filter(|parameters| !is_empty(parameters)) {
        Some(parameters) => parameters.as_object()?,
        None => &none,
    };
    let object = Object::read(parameters, "", &mut names)?;
    let mut lines = Vec::new();
    let argument = if names.refers_to_itself {
        // in the order of the schema, and nothing but its fields
        let fields: Vec<_> = object.fields.iter().map(|field| field.text.as_str()).collect();
        lines.push(format!("interface parameters {}", braced(&fields, "")));
        "parameters".to_owned()
    } else {
        object.text("")
    };
    for (name, definition) in names.definitions.clone() {
        let text = schema(definition, "", &mut names)?;
        lines.extend(comment(definition.as_object()?.get("description"), "")?);
        lines.push(format!("interface {name} {text}"));
    }
    lines.extend(comment(declared.get("description"), "")?);
    let name = declared.get("name").map_or(Some("function"), Value::as_str)?;
    lines.push(format!("type {name} = (_: {argument}) => any;\n"));
    Some(lines.join("\n"))
}

/// What schemas call each other.
#[derive(Default)]
struct Names<'a> {
    definitions: Vec<(&'a str, &'a Value)>,
    refers_to_itself: bool,
}

impl<'a> Names<'a> {
    fn define(&mut self, definitions: &'a Value) -> Option<()> {
        for (name, definition) in definitions.as_object()? {
            match self.definitions.iter_mut().find(|(known, _)| known == name) {
                Some(known) => known.1 = definition,
                None => self.definitions.push((name, definition)),
            }
        }
        Some(())
    }

    fn resolve(&mut self, reference: &'a str) -> Option<String> {
        if reference == "#" {
            self.refers_to_itself = true;
            return Some("parameters".to_owned());
        }
        let name = reference.strip_prefix("#/$defs/")?.rsplit('/').next()?;
        let (_, definition) = self.definitions.iter().find(|(known, _)| *known == name)?;
        definition.is_object().then(|| name.to_owned())
    }
}

/// An object's fields in the order of its schema, and the type of all others.
struct Object {
    fields: Vec<Field>,
    others: Option<String>,
}

struct Field {
    optional: bool,
    text: String,
}

impl Object {
    /// Reads an object that is written at `indent`.
    fn read<'a>(object: &'a Map<String, Value>, indent: &str, names: &mut Names<'a>) -> Option<Self> {
        let inner = format!("{indent}{STEP}");
        match object.get("$defs") {
            Some(definitions) if !is_empty(definitions) => names.define(definitions)?,
            _ => {}
        }
        let others = match object.get("additionalProperties") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(false)) => Some("never".to_owned()),
            Some(others @ (Value::Bool(true) | Value::Object(_))) => Some(schema(others, &inner, names)?),
            Some(_) => return None,
        };
        let mut fields = Vec::new();
        if let Some(properties) = object.get("properties") {
            let none = Vec::new();
            let required = object.get("required").map_or(Some(&none), Value::as_array)?;
            for (name, property) in properties.as_object()? {
                let optional = !required.iter().any(|required| required == name);
                let mut text = documentation(property, &inner)?;
                if let Some(default) = property.get("default").filter(|default| !default.is_null()) {
                    let written = match default {
                        Value::Bool(_) | Value::Number(_) => python::str_of(default),
                        _ => python::dumps(default),
                    };
                    text += &format!("{inner}// Default: {}\n", written.ok()?);
                }
                let mark = if optional { "?" } else { "" };
                text += &format!("{inner}{name}{mark}: {}", schema(property, &inner, names)?);
                fields.push(Field { optional, text });
            }
        }
        Some(Self { fields, others })
    }

    /// Those that are required first.
    fn text(&self, indent: &str) -> String {
        let others = self.others.as_ref().map(|others| format!("{indent}{STEP}[k: string]: {others}"));
        let of = |optional: bool| self.fields.iter().filter(move |field| field.optional == optional);
        let mut lines: Vec<&str> = of(false).chain(of(true)).map(|field| field.text.as_str()).collect();
        lines.extend(others.as_deref());
        braced(&lines, indent)
    }
}

fn braced(lines: &[&str], indent: &str) -> String {
    if lines.is_empty() { "{}".to_owned() } else { format!("{{\n{}\n{indent}}}", lines.join(",\n")) }
}

/// The type that `schema` describes, written at `indent`.
fn schema<'a>(schema: &'a Value, indent: &str, names: &mut Names<'a>) -> Option<String> {
    let object = match schema {
        Value::Bool(anything) => return Some(if *anything { "any" } else { "null" }.to_owned()),
        Value::Object(object) => object,
        _ => return None,
    };
    if let Some(reference) = object.get("$ref") {
        return names.resolve(reference.as_str()?);
    }
    if let Some(types) = object.get("anyOf") {
        let types = types.as_array()?.iter().map(|one| self::schema(one, indent, names));
        return Some(types.collect::<Option<Vec<_>>>()?.join(" | "));
    }
    if let Some(values) = object.get("enum") {
        return choice(values.as_array()?, object.get("type"));
    }
    match object.get("type") {
        Some(Value::Array(types)) => union(types),
        Some(Value::String(kind)) => match kind.as_str() {
            "object" => Object::read(object, indent, names).map(|object| object.text(indent)),
            "array" => array(object, indent, names),
            "integer" => Some("number".to_owned()),
            _ => Some(kind.clone()),
        },
        Some(_) => None,
        None => object.is_empty().then(|| "any".to_owned()),
    }
}

fn array<'a>(object: &'a Map<String, Value>, indent: &str, names: &mut Names<'a>) -> Option<String> {
    let Some(items) = object.get("items").filter(|items| !is_empty(items)) else {
        return Some("Array<any>".to_owned());
    };
    let inner = format!("{indent}{STEP}");
    let documentation = documentation(items, &inner)?;
    if documentation.is_empty() {
        return Some(format!("Array<{}>", schema(items, indent, names)?));
    }
    Some(format!("Array<\n{documentation}{inner}{}\n{indent}>", schema(items, &inner, names)?))
}

/// The values of an `enum`, which have to be of its type.
fn choice(values: &[Value], kind: Option<&Value>) -> Option<String> {
    let kind = match kind {
        Some(Value::Array(kinds)) => match &kinds[..] {
            [kind] => Some(kind),
            [null, kind] | [kind, null] if null == "null" => Some(kind),
            _ => return None,
        },
        kind => kind,
    };
    let fits = |value: &Value| match kind.and_then(Value::as_str) {
        Some("string") => value.is_string(),
        // Python's booleans are integers
        Some("number") => value.is_number() || value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64() || value.is_boolean(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    let text = |value: &Value| match value {
        Value::String(text) => Some(format!("\"{text}\"")),
        value => python::str_of(value).ok(),
    };
    let all = values.iter().map(|value| text(value).filter(|_| value.is_null() || fits(value)));
    Some(all.collect::<Option<Vec<_>>>()?.join(" | "))
}

fn union(types: &[Value]) -> Option<String> {
    let name = |kind: &Value| match kind.as_str()? {
        "integer" => Some("number"),
        "object" => Some("{}"),
        "array" => Some("Array<any>"),
        kind => ["string", "number", "boolean", "null"].into_iter().find(|known| *known == kind),
    };
    Some(types.iter().map(name).collect::<Option<Vec<_>>>()?.join(" | "))
}

/// The comments before what `schema` describes: its description, and the bounds that a type does not say.
fn documentation(schema: &Value, indent: &str) -> Option<String> {
    let Some(object) = schema.as_object() else { return Some(String::new()) };
    let mut lines: Vec<String> = comment(object.get("description"), indent)?.into_iter().collect();
    let is_plain = !["$ref", "anyOf", "enum"].iter().any(|key| object.contains_key(*key));
    let bounds: &[&str] = match object.get("type").and_then(Value::as_str).filter(|_| is_plain) {
        Some("string") => &["maxLength", "minLength", "pattern"],
        Some("number" | "integer") => &["maximum", "minimum"],
        Some("array") => &["maxItems", "minItems"],
        _ => &[],
    };
    let said = bounds.iter().filter_map(|key| Some((key, object.get(*key)?)));
    let said = said.map(|(key, value)| Some(format!("{key}: {}", python::str_of(value).ok()?)));
    let said = said.collect::<Option<Vec<_>>>()?;
    if !said.is_empty() {
        lines.push(format!("{indent}// {}", said.join(", ")));
    }
    Some(lines.into_iter().map(|line| line + "\n").collect())
}

/// A description as a comment, if there is one; empty lines stay empty.
fn comment(description: Option<&Value>, indent: &str) -> Option<Option<String>> {
    let Some(description) = description.filter(|description| !is_empty(description)) else { return Some(None) };
    let line = |line: &str| if line.is_empty() { String::new() } else { format!("{indent}// {line}") };
    Some(Some(description.as_str()?.split('\n').map(line).collect::<Vec<_>>().join("\n")))
}

/// What is false for Python.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
    }
}
