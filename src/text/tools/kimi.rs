//! Kimi's form: a section of calls, each with an id that holds the name, and JSON.

use serde::de::IgnoredAny;

use super::{Call, Parsed};

pub(super) const OPEN: &str = "<|tool_calls_section_begin|>";
pub(super) const CLOSE: &str = "<|tool_calls_section_end|>";
const BEGIN: &str = "<|tool_call_begin|>";
const ARGUMENTS: &str = "<|tool_call_argument_begin|>";
const END: &str = "<|tool_call_end|>";
pub(super) const MARKERS: [&str; 5] = [OPEN, CLOSE, BEGIN, ARGUMENTS, END];

pub(super) fn parse(block: &str) -> Parsed {
    let mut rest = block.trim();
    let mut calls = Vec::new();
    while !rest.is_empty() {
        let Some((id, after)) = rest.strip_prefix(BEGIN).and_then(|rest| rest.split_once(ARGUMENTS)) else {
            let begins = BEGIN.starts_with(rest) || rest.starts_with(BEGIN) && !rest.contains(ARGUMENTS);
            return if begins { Parsed::Unfinished } else { Parsed::Malformed };
        };
        let mut values = serde_json::Deserializer::from_str(after).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => {}
            Some(Err(error)) if !error.is_eof() => return Parsed::Malformed,
            _ => return Parsed::Unfinished,
        }
        let (arguments, after) = after.split_at(values.byte_offset());
        let (arguments, after) = (arguments.trim(), after.trim_start());
        let Some(after) = after.strip_prefix(END) else {
            return if END.starts_with(after) { Parsed::Unfinished } else { Parsed::Malformed };
        };
        let name = name(id.trim());
        if name.is_empty() || !is_object(arguments) {
            return Parsed::Malformed;
        }
        calls.push(Call { id: Some(id.trim().to_owned()), name: name.to_owned(), arguments: arguments.to_owned() });
        rest = after.trim_start();
    }
    if calls.is_empty() { Parsed::Malformed } else { Parsed::Calls(calls) }
}

/// `functions.name:0`.
fn name(id: &str) -> &str {
    let name = id.strip_prefix("functions.").unwrap_or(id);
    match name.rsplit_once(':') {
        Some((name, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => name,
    }
}

/// Whether a text is one JSON object.
pub(super) fn is_object(text: &str) -> bool {
    text.starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok()
}
