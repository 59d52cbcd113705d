//! Qwen's JSON form: a name and arguments between two tags.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Call, Parsed};

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";
pub(super) const MARKERS: [&str; 2] = [OPEN, CLOSE];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    name: String,
    // as it is written: numbers keep their digits
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

pub(super) fn parse(block: &str) -> Parsed {
    match serde_json::from_str::<Written<'_>>(block.trim()) {
        Ok(Written { name, arguments }) if !name.is_empty() => match arguments.map_or(Some("{}".to_owned()), object) {
            Some(arguments) => Parsed::Calls(vec![Call { id: None, name, arguments }]),
            None => Parsed::Malformed,
        },
        Err(error) if error.is_eof() => Parsed::Unfinished,
        _ => Parsed::Malformed,
    }
}

/// The text of an object, or of one that was written as a string.
fn object(arguments: &RawValue) -> Option<String> {
    let text = match serde_json::from_str::<String>(arguments.get()) {
        Ok(text) => text,
        Err(_) => arguments.get().to_owned(),
    };
    super::kimi::is_object(&text).then_some(text)
}
