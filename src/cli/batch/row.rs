//! A row of the output: OpenAI's, with a mark that says what it answers.
//!
//! ```text
//! {"id":"batch_req_…","custom_id":"a","response":{"status_code":200,"request_id":"…","body":{…}},"error":null,
//!  "tbshard":{"line":"…","run":"…"}}
//! ```
//!
//! The mark is what a rerun goes by: a digest of what the line asks for, and one of the model and the settings. It is in the
//! row and not in a journal beside it, because an answer and the note that it is there then reach the disk in one write:
//! there is no moment at which one of two files knows more than the other, and the output alone, copied to another
//! machine or renamed, is enough to go on.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::line::{Hash, Line, digest, hex};
use crate::api::Refusal;
use crate::error::{Error, Result};

/// What every row of ours begins with.
pub(super) const BEGINNING: &str = r#"{"id":"batch_req_"#;

/// A row as far as a rerun reads it.
#[derive(Debug, Deserialize)]
pub(super) struct Written {
    pub(super) custom_id: String,
    response: Option<Response>,
    error: Option<IgnoredAny>,
    pub(super) tbshard: Mark,
}

#[derive(Debug, Deserialize)]
struct Response {
    status_code: u16,
    body: Body,
}

#[derive(Debug, Deserialize)]
struct Body {
    usage: Option<Usage>,
}

/// The tokens of a row, as its body says.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    pub(super) prompt_tokens: u64,
    #[serde(default)]
    pub(super) completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: u64,
}

/// What a row answers.
#[derive(Debug, Deserialize)]
pub(super) struct Mark {
    pub(super) line: String,
    /// Absent where the line itself is broken, whatever the model.
    pub(super) run: Option<String>,
}

impl Written {
    /// Reads a line of an output.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        line.starts_with(BEGINNING.as_bytes()).then(|| serde_json::from_slice(line).ok()).flatten()
    }

    pub(super) fn failed(&self) -> bool {
        self.error.is_some() || self.response.as_ref().is_none_or(|response| response.status_code >= 400)
    }

    pub(super) fn usage(&self) -> Usage {
        self.response.as_ref().and_then(|response| response.body.usage).unwrap_or_default()
    }
}

impl Usage {
    /// Tokens of the prompt that were there from another.
    pub(super) fn shared(&self) -> u64 {
        self.prompt_tokens_details.map_or(0, |details| details.cached_tokens)
    }
}

/// A row that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// One line, its end included.
    pub(super) text: String,
    pub(super) failed: bool,
}

/// Whose row it is.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) custom_id: String,
    pub(super) line: Hash,
}

impl From<&Line> for Head {
    fn from(line: &Line) -> Self {
        Self { custom_id: line.custom_id.clone(), line: line.hash }
    }
}

/// Makes rows, and the names in them.
#[derive(Debug, Clone)]
pub(super) struct Maker {
    /// Names and times follow from what is asked for.
    pub(super) deterministic: bool,
    /// The digest of model and settings.
    pub(super) run: String,
}

impl Maker {
    /// The row of a line that says nothing that could be asked. It needs no model.
    pub(super) fn broken(deterministic: bool, line: &Line, problem: &str) -> Result<Row> {
        let maker = Self { deterministic, run: String::new() };
        let message = format!("line {}: {problem}", line.number);
        let error = json!({"code": "invalid_line", "message": message, "line": line.number});
        maker.row(&line.into(), Value::Null, error)
    }

    /// The row of a request that was refused, or failed.
    pub(super) fn failed(&self, head: &Head, status: u16, body: Value) -> Result<Row> {
        self.response(head, status, body)
    }

    /// The row of an answer.
    pub(super) fn answered(&self, head: &Head, mut body: Value) -> Result<Row> {
        if self.deterministic {
            settle(&mut body);
        }
        self.response(head, 200, body)
    }

    fn response(&self, head: &Head, status: u16, body: Value) -> Result<Row> {
        let response = json!({"status_code": status, "request_id": self.name(head, "request")?, "body": body});
        self.row(head, response, Value::Null)
    }

    fn row(&self, head: &Head, response: Value, error: Value) -> Result<Row> {
        let failed = response["status_code"] != 200;
        let mut mark = Map::from_iter([("line".to_owned(), Value::from(hex(&head.line)))]);
        if !self.run.is_empty() {
            mark.insert("run".to_owned(), self.run.as_str().into());
        }
        let id = format!("batch_req_{}", self.name(head, "row")?);
        let row = json!({
            "id": id, "custom_id": head.custom_id, "response": response, "error": error, "tbshard": mark,
        });
        Ok(Row { text: format!("{row}\n"), failed })
    }

    /// 24 digits that nothing else is called by.
    pub(super) fn name(&self, head: &Head, what: &str) -> Result<String> {
        let mut bytes = digest(&[what.as_bytes(), head.custom_id.as_bytes(), &head.line, self.run.as_bytes()]);
        if !self.deterministic {
            getrandom::fill(&mut bytes).map_err(|error| Error::msg(error).context("no random numbers"))?;
        }
        Ok(hex(&bytes[..12]))
    }
}

/// What a row says of an error.
pub(super) fn refusal(status: u16, error: &Error) -> Refusal {
    let hint = error.hint_text().map(|hint| format!(" ({hint})")).unwrap_or_default();
    Refusal::new(status, format_args!("{error}{hint}"))
}

/// Takes out of an answer what depends on the moment: times, and what other prompts left behind.
fn settle(body: &mut Value) {
    if let Some(body) = body.as_object_mut() {
        body.shift_remove("timings");
        if let Some(Value::Object(usage)) = body.get_mut("usage") {
            usage.shift_remove("prompt_tokens_details");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::batch::line::Form;

    fn line() -> Line {
        Line::parse(3, br#"{"custom_id":"a","prompt":"x"}"#, Form::Jsonl)
    }

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let maker = Maker { deterministic: true, run: "0123".to_owned() };
        let usage = json!({"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}});
        let row = maker.answered(&(&line()).into(), json!({"usage": usage, "timings": {"seconds": 1.5}})).unwrap();
        assert!(row.text.starts_with(BEGINNING) && row.text.ends_with("}\n") && !row.failed);
        assert!(!row.text.contains("timings") && !row.text.contains("cached"), "{}", row.text);
        let read = Written::parse(row.text.as_bytes()).unwrap();
        assert_eq!((read.custom_id.as_str(), read.failed(), read.usage().completion_tokens), ("a", false, 5));
        assert_eq!((read.tbshard.line.as_str(), read.tbshard.run.as_deref()), (&*hex(&line().hash), Some("0123")));
        assert_eq!(maker.answered(&(&line()).into(), json!({"usage": usage})).unwrap(), row);

        let row = maker.failed(&(&line()).into(), 400, json!({"error": {"message": "no"}})).unwrap();
        assert!(row.failed && Written::parse(row.text.as_bytes()).unwrap().failed());
        let row = Maker::broken(false, &line(), "it is odd").unwrap();
        let read = Written::parse(row.text.as_bytes()).unwrap();
        assert!(row.failed && read.failed() && read.tbshard.run.is_none());
        assert_ne!(Maker::broken(false, &line(), "it is odd").unwrap(), row, "names are random");
    }

    #[test]
    fn other_lines_are_no_rows() {
        for text in
            ["", "{}", r#"{"id":"batch_req_1"}"#, r#"{"id":"batch_req_1","custom_id":"a","response":null}"#, "x"]
        {
            assert!(Written::parse(text.as_bytes()).is_none(), "{text}");
        }
    }
}
