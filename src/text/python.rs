//! Writes template values the way Python does: `str()`, `repr()` and `json.dumps()`.

use std::fmt::Write;

use minijinja::value::{Kwargs, Serde, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value, escape_formatter};

type Result<T> = std::result::Result<T, Error>;

/// Prints a `{{ value }}`; what the engine prints as Python does is left to it.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<()> {
    match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            let mut text = String::new();
            repr(&mut text, value)?;
            out.write_str(&text).map_err(Error::from)
        }
        _ => escape_formatter(out, state, value),
    }
}

/// The `string` filter: `str(value)`.
pub(super) fn string(value: &Value) -> Result<Value> {
    match value.kind() {
        ValueKind::String => Ok(value.clone()),
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            let mut text = String::new();
            repr(&mut text, value)?;
            Ok(Value::from(text))
        }
        _ => Ok(Value::from(value.to_string())),
    }
}

/// The `tojson` filter with the arguments and defaults that transformers gives it.
pub(super) fn tojson(
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    separators: Option<Value>,
    named: Kwargs,
) -> Result<Value> {
    let pick = |position: Option<Value>, name: &str| match position {
        Some(value) => Ok(Some(value)),
        None => named.get::<Option<Value>>(name),
    };
    let ensure_ascii = pick(ensure_ascii, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let sort_keys = pick(None, "sort_keys")?.is_some_and(|value| value.is_true());
    let indent = pick(indent, "indent")?.map(indentation).transpose()?;
    let (item, key) = match pick(separators, "separators")? {
        Some(pair) => (separator(&pair, 0)?, separator(&pair, 1)?),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    named.assert_all_used()?;
    let mut json = Json { out: String::new(), ensure_ascii, sort_keys, indent, item, key };
    json.value(value, 0)?;
    Ok(Value::from_safe_string(json.out))
}

/// `str(value)` of JSON.
pub(super) fn str_of(value: &serde_json::Value) -> Result<String> {
    string(&Value::from(Serde(value))).map(|text| text.to_string())
}

/// `json.dumps(value, ensure_ascii=False)` of JSON.
pub(super) fn dumps(value: &serde_json::Value) -> Result<String> {
    let (item, key) = (", ".to_owned(), ": ".to_owned());
    let mut json = Json { out: String::new(), ensure_ascii: false, sort_keys: false, indent: None, item, key };
    json.value(&Value::from(Serde(value)), 0)?;
    Ok(json.out)
}

struct Json {
    out: String,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<()> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => number(&mut self.out, value, ["NaN", "Infinity", "-Infinity"]),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list("[]", &items, depth, |json, item| json.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list("{}", &keys, depth, |json, key| {
                    json.name(key)?;
                    json.out.push_str(&json.key.clone());
                    json.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("`tojson` cannot write a value of type {kind}"))),
        }
        Ok(())
    }

    fn list(
        &mut self,
        brackets: &str,
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<()>,
    ) -> Result<()> {
        let (open, close) = brackets.split_at(1);
        self.out.push_str(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push_str(&self.item);
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.out.push_str(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn name(&mut self, key: &Value) -> Result<()> {
        if let Some(text) = key.as_str() {
            self.string(text);
            return Ok(());
        }
        if !matches!(key.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number) {
            return Err(invalid(format!("`tojson` cannot write a key of type {}", key.kind())));
        }
        self.out.push('"');
        self.value(key, 0)?;
        self.out.push('"');
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                ' '..='~' => self.out.push(character),
                _ if character < ' ' || self.ensure_ascii => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }
}

/// Appends `repr(value)`.
fn repr(out: &mut String, value: &Value) -> Result<()> {
    match value.kind() {
        ValueKind::Number => number(out, value, ["nan", "inf", "-inf"]),
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            let items: Vec<Value> = value.try_iter()?.collect();
            let tuple = value.downcast_object_ref::<Tuple>().is_some();
            out.push(if tuple { '(' } else { '[' });
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(out, item)?;
            }
            out.push_str(if tuple && items.len() == 1 { "," } else { "" });
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(out, &key)?;
                out.push_str(": ");
                repr(out, &value.get_item(&key)?)?;
            }
            out.push('}');
        }
        ValueKind::Undefined => out.push_str("Undefined"),
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// Appends a string literal with the quotes Python would choose.
fn quote(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == mark => out.extend(['\\', mark]),
            _ if is_printable(character) => out.push(character),
            _ => {
                let _ = match u32::from(character) {
                    code @ ..=0xff => write!(out, "\\x{code:02x}"),
                    code @ ..=0xffff => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(mark);
}

/// Returns whether `str.isprintable` holds. Rust's escaping knows the same classes, but also escapes a combining
/// mark that opens a string, hence the letter in front.
fn is_printable(character: char) -> bool {
    matches!(character, ' '..='~') || (!character.is_ascii() && format!("a{character}").escape_debug().count() == 2)
}

/// Appends an integer, or a float with the shortest digits that read back, the exponent signed and two digits wide.
fn number(out: &mut String, value: &Value, [nan, infinite, negative]: [&str; 3]) {
    let float = match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float,
        _ => return out.push_str(&value.to_string()),
    };
    if float.is_nan() {
        return out.push_str(nan);
    }
    if float.is_infinite() {
        return out.push_str(if float > 0.0 { infinite } else { negative });
    }
    let digits = format!("{float:?}");
    let Some((mantissa, exponent)) = digits.split_once('e') else { return out.push_str(&digits) };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    let _ = write!(out, "{mantissa}e{sign}{exponent:0>2}");
}

fn indentation(value: Value) -> Result<String> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Ok(" ".repeat(u8::try_from(value)?.into())),
    }
}

fn separator(pair: &Value, index: usize) -> Result<String> {
    let part = pair.get_item_by_index(index)?;
    part.as_str().map(str::to_owned).ok_or_else(|| invalid("`separators` must be a pair of strings".to_owned()))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
