//! What a server says on stderr: that it listens, a line a request, and what goes wrong.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::cli::{report, ui};
use crate::error::Error;
use crate::serve::{Entry, Log};

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Form {
    /// For people.
    Text,
    /// For programs: an object a line.
    Json,
}

/// Writes the lines.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    form: Form,
    quiet: bool,
}

impl Lines {
    pub(super) fn new(form: Form, quiet: bool) -> Self {
        Self { form, quiet }
    }

    /// Where clients find the server: also if little is to be said, because the port may have been the system's choice.
    pub(super) fn listening(&self, address: SocketAddr) {
        match self.form {
            Form::Text => ui::say(format_args!("listening on http://{address}")),
            Form::Json => self.object("listening", json!({"address": format!("http://{address}")})),
        }
    }

    pub(super) fn say(&self, what: &str) {
        match self.form {
            _ if self.quiet => {}
            Form::Text => ui::whisper(what),
            Form::Json => self.object("note", json!({"message": what})),
        }
    }

    pub(super) fn warning(&self, what: &str) {
        match self.form {
            Form::Text => ui::say(format_args!("{} {what}", ui::paint_err("warning:", "33"))),
            Form::Json => self.object("warning", json!({"message": what})),
        }
    }

    /// A run of the engine that failed, while the server lives on.
    pub(super) fn lost(&self, error: &Error) {
        match self.form {
            Form::Text => drop(report(error)),
            Form::Json => self.object("lost", json!({"message": error.to_string()})),
        }
    }

    /// What is told of every request.
    pub(super) fn requests(&self) -> Log {
        let own = self.clone();
        Arc::new(move |entry| {
            if !own.quiet {
                own.request(entry);
            }
        })
    }

    fn request(&self, entry: &Entry) {
        let Entry { method, path, status, prompt_tokens, answer_tokens, .. } = entry;
        let millis = |time: std::time::Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
        if self.form == Form::Json {
            let about = json!({
                "method": method, "path": path, "status": status,
                "prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens,
                "first_token_ms": entry.first_token.map(millis), "total_ms": millis(entry.total),
                "error": entry.error,
            });
            return self.object("request", about);
        }
        let mut line = format!("{method} {path} {status}");
        if *prompt_tokens > 0 {
            line += &format!(" · prompt {prompt_tokens} tok · answer {answer_tokens} tok");
        }
        if let Some(first) = entry.first_token {
            line += &format!(" · first token {:.0} ms", millis(first));
        }
        line += &format!(" · {:.0} ms", millis(entry.total));
        if let Some(error) = &entry.error {
            line += &format!(" · {error}");
        }
        ui::say(line);
    }

    fn object(&self, event: &str, about: Value) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let mut object = json!({"time": (now * 1e3).round() / 1e3, "event": event});
        if let (Value::Object(object), Value::Object(about)) = (&mut object, about) {
            object.extend(about);
        }
        ui::say(object);
    }
}
