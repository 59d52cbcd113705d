//! A line of the input: who it is, what it asks for, and a digest of that.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::api::Endpoint;

/// SHA-256, as far as two lines or settings need to be told apart.
pub(super) type Hash = [u8; 16];

/// How a file says what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Form {
    /// JSON objects: OpenAI's batch lines, or the body alone
    Jsonl,
    /// A prompt a line
    Text,
}

/// What a line asks for, as it says it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ask {
    /// `/v1/chat/completions`
    Chat(Map<String, Value>),
    /// `/v1/completions`
    Completions(Map<String, Value>),
    /// A prompt, and what else a body may have: the model decides what becomes of it.
    Simple(Map<String, Value>),
}

/// A line that has something on it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) number: u64,
    /// The line's own name, or `line-N`.
    pub(super) custom_id: String,
    /// Of what it asks for, but not of its name.
    pub(super) hash: Hash,
    /// Or what is wrong with it.
    pub(super) ask: Result<Ask, String>,
}

impl Form {
    /// The form of a file that begins with this line.
    pub(super) fn of(first: &[u8]) -> Self {
        let begins = first.iter().find(|byte| !byte.is_ascii_whitespace());
        if begins == Some(&b'{') { Self::Jsonl } else { Self::Text }
    }
}

impl Line {
    /// Reads a line.
    pub(super) fn parse(number: u64, bytes: &[u8], form: Form) -> Self {
        let named = |id: Option<String>| id.unwrap_or_else(|| format!("line-{number}"));
        let bad = |id, problem: String| {
            let hash = digest(&[b"bad", bytes]);
            Self { number, custom_id: named(id), hash, ask: Err(problem) }
        };
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => return bad(None, format!("it is not UTF-8 at byte {}", error.valid_up_to())),
        };
        if form == Form::Text {
            let body = Map::from_iter([("prompt".to_owned(), Value::from(text))]);
            return Self::asking(number, named(None), Ask::Simple(body));
        }
        let mut object = match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return bad(None, "it is no JSON object".to_owned()),
            Err(error) => return bad(None, format!("it is no JSON: {error}")),
        };
        let id = match object.remove("custom_id") {
            None => None,
            Some(Value::String(id)) if !id.is_empty() => Some(id),
            Some(other) => return bad(None, format!("custom_id is {other}, not a name")),
        };
        match ask(object) {
            Ok(ask) => Self::asking(number, named(id), ask),
            Err(problem) => bad(id, problem),
        }
    }

    fn asking(number: u64, custom_id: String, ask: Ask) -> Self {
        let mut text = Vec::new();
        canonical(&Value::Object(ask.body().clone()), &mut text);
        let hash = digest(&[ask.url().as_bytes(), &text]);
        Self { number, custom_id, hash, ask: Ok(ask) }
    }

    /// The same as one JSON line, under its name.
    pub(super) fn written(&self) -> Option<String> {
        let ask = self.ask.as_ref().ok()?;
        let mut line = Map::from_iter([("custom_id".to_owned(), Value::from(self.custom_id.as_str()))]);
        match ask {
            Ask::Simple(body) => line.extend(body.clone()),
            Ask::Chat(body) | Ask::Completions(body) => line.extend([
                ("method".to_owned(), "POST".into()),
                ("url".to_owned(), ask.url().into()),
                ("body".to_owned(), body.clone().into()),
            ]),
        }
        Some(format!("{}\n", Value::Object(line)))
    }
}

impl Ask {
    fn body(&self) -> &Map<String, Value> {
        match self {
            Self::Chat(body) | Self::Completions(body) | Self::Simple(body) => body,
        }
    }

    fn url(&self) -> &'static str {
        match self {
            Self::Chat(_) => Endpoint::Chat.path(),
            Self::Completions(_) => Endpoint::Completions.path(),
            Self::Simple(_) => "",
        }
    }
}

fn ask(mut object: Map<String, Value>) -> Result<Ask, String> {
    if !object.contains_key("body") && !object.contains_key("url") {
        return match (object.contains_key("prompt"), object.contains_key("messages")) {
            (true, false) => Ok(Ask::Simple(object)),
            (false, true) => Ok(Ask::Chat(object)),
            (true, true) => Err("it has a prompt and messages: one of them is enough".to_owned()),
            (false, false) => Err("it has neither `body` and `url` nor `prompt`".to_owned()),
        };
    }
    let body = match object.remove("body") {
        Some(Value::Object(body)) => body,
        Some(other) => return Err(format!("body is {}, not an object", kind(&other))),
        None => return Err("it has no `body`".to_owned()),
    };
    let url = match object.remove("url") {
        Some(Value::String(url)) => url,
        Some(other) => return Err(format!("url is {}, not a text", kind(&other))),
        None => return Err("it has no `url`".to_owned()),
    };
    if let Some(method) = object.remove("method").filter(|method| method != "POST") {
        return Err(format!("method is {method}, not \"POST\""));
    }
    if let Some(key) = object.keys().next() {
        return Err(format!("nobody knows the key `{key}`"));
    }
    match Endpoint::of(&url) {
        Some(Endpoint::Chat) => Ok(Ask::Chat(body)),
        Some(Endpoint::Completions) => Ok(Ask::Completions(body)),
        None => {
            let [chat, completions] = Endpoint::ALL.map(Endpoint::path);
            Err(format!("url is `{url}`, which is neither `{chat}` nor `{completions}`"))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// JSON without spaces, its keys sorted.
pub(super) fn canonical(value: &Value, into: &mut Vec<u8>) {
    match value {
        Value::Object(object) => {
            let mut keys: Vec<&String> = object.keys().collect();
            keys.sort();
            into.push(b'{');
            for key in keys {
                into.extend(Value::from(key.as_str()).to_string().bytes());
                into.push(b':');
                canonical(&object[key], into);
                into.push(b',');
            }
            into.push(b'}');
        }
        Value::Array(values) => {
            into.push(b'[');
            for value in values {
                canonical(value, into);
                into.push(b',');
            }
            into.push(b']');
        }
        other => into.extend(other.to_string().bytes()),
    }
}

/// A digest of several things, however they are cut.
pub(super) fn digest(parts: &[&[u8]]) -> Hash {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut short = Hash::default();
    short.copy_from_slice(&hash.finalize()[..16]);
    short
}

/// Two digits a byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Line {
        Line::parse(7, text.as_bytes(), Form::of(text.as_bytes()))
    }

    #[test]
    fn the_digest_is_of_what_is_asked_for_and_not_of_how_it_is_written() {
        let one = read(r#"{"custom_id":"a","url":"/v1/completions","body":{"prompt":"x","n":1}}"#);
        let other = read(r#"{ "body": {"n":1, "prompt":"x"}, "method":"POST", "url":"/v1/completions" }"#);
        assert_eq!((one.hash, &one.ask), (other.hash, &other.ask));
        assert_eq!((one.custom_id.as_str(), other.custom_id.as_str()), ("a", "line-7"));
        let changed = read(r#"{"custom_id":"a","url":"/v1/completions","body":{"prompt":"x","n":2}}"#);
        assert_ne!(one.hash, changed.hash);
        let chat = read(r#"{"url":"/v1/chat/completions","body":{"prompt":"x","n":1}}"#);
        assert_ne!(one.hash, chat.hash);
        assert_eq!(read("x").hash, read(r#"{"prompt":"x"}"#).hash);
    }

    #[test]
    fn a_line_that_is_written_again_asks_for_the_same() {
        for text in [
            r#"{"url":"/v1/completions","body":{"prompt":"x"}}"#,
            r#"{"custom_id":"é","messages":[{"role":"user","content":"x"}]}"#,
            r#"{"prompt":"x","max_tokens":3}"#,
            "plain \"text\"",
        ] {
            let line = read(text);
            let again = read(line.written().unwrap().trim_end());
            assert_eq!(again, line, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_and_the_name_is_kept() {
        for (text, word) in
            [(r#"{"custom_id":"a","prompt":"#, "no JSON"), (r#"{"custom_id":7,"prompt":"x"}"#, "custom_id is 7")]
        {
            let line = read(text);
            assert!(line.ask.clone().unwrap_err().contains(word), "{text}: {line:?}");
            assert_eq!(line.custom_id, "line-7");
        }
        for (text, word) in [
            (r#"{"custom_id":"a","body":[],"url":"/v1/completions"}"#, "body is a list"),
            (r#"{"custom_id":"a","body":{},"url":"/v1/embeddings"}"#, "/v1/embeddings"),
            (r#"{"custom_id":"a","body":{}}"#, "no `url`"),
            (r#"{"custom_id":"a","body":{},"url":"/v1/completions","method":"GET"}"#, "GET"),
            (r#"{"custom_id":"a","body":{},"url":"/v1/completions","extra":1}"#, "`extra`"),
            (r#"{"custom_id":"a"}"#, "neither"),
        ] {
            let line = read(text);
            assert!(line.ask.clone().unwrap_err().contains(word), "{text}: {line:?}");
            assert_eq!(line.custom_id, "a");
        }
        let line = Line::parse(3, b"caf\xe9", Form::Text);
        assert_eq!((line.custom_id.as_str(), line.ask.unwrap_err().as_str()), ("line-3", "it is not UTF-8 at byte 3"));
    }
}
