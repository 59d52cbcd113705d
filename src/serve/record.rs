//! One request from its first line to its last byte: what is counted and logged of it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};

use super::desk::Desk;
use crate::api::Refusal;

/// The status of a request whose client left before there was an answer.
const LEFT: u16 = 499;

/// Characters of what somebody else may have written, in a log.
const LONGEST: usize = 200;

/// What is known of a request once it is over. Of what was said there is nothing in it.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// GET, POST, …
    pub method: String,
    /// Without a query.
    pub path: String,
    /// The status that was sent; 499 if the client left before.
    pub status: u16,
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Tokens of the answers.
    pub answer_tokens: usize,
    /// From the request to the first token.
    pub first_token: Option<Duration>,
    /// From the request to the last byte.
    pub total: Duration,
    /// What went wrong after the status was sent, or why it is what it is.
    pub error: Option<String>,
}

/// Told of every request that is over.
pub type Log = Arc<dyn Fn(&Entry) + Send + Sync>;

/// A request under way; whoever works on it holds it, and when the last lets go it is logged.
pub(super) struct Record {
    entry: Mutex<Entry>,
    begun: Instant,
    desk: Arc<Desk>,
    log: Log,
}

impl Record {
    pub(super) fn begin(method: &str, path: &str, desk: Arc<Desk>, log: Log) -> Arc<Self> {
        let (method, path) = (short(method), short(path));
        let entry = Entry { method, path, status: LEFT, ..Entry::default() };
        Arc::new(Self { entry: Mutex::new(entry), begun: Instant::now(), desk, log })
    }

    pub(super) fn note(&self) -> MutexGuard<'_, Entry> {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn token(&self) {
        let mut entry = self.note();
        entry.answer_tokens += 1;
        entry.first_token.get_or_insert_with(|| self.begun.elapsed());
    }

    pub(super) fn failed(&self, why: &str) {
        self.note().error.get_or_insert_with(|| short(why));
    }

    /// Of a client's own mistake only the kind is noted: the message may repeat what was said.
    pub(super) fn refused(&self, refusal: &Refusal) {
        let Refusal { status: 400..500, code, param, .. } = refusal else { return self.failed(&refusal.message) };
        let parts = [code.as_deref(), param.as_deref()];
        let kind = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
        if !kind.is_empty() {
            self.failed(&kind);
        }
    }

    pub(super) fn begun(&self) -> Instant {
        self.begun
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let mut entry = std::mem::take(&mut *self.note());
        entry.total = self.begun.elapsed();
        self.desk.metrics.request(&entry.path, entry.status);
        (self.log)(&entry);
    }
}

/// A text of somebody else as a log has it: one line, and not a long one.
fn short(text: &str) -> String {
    let mut characters = text.chars();
    let mut short = String::new();
    for character in characters.by_ref().take(LONGEST) {
        match character {
            '\'' | '"' => short.push(character),
            _ => short.extend(character.escape_debug()),
        }
    }
    if characters.next().is_some() {
        short.push('…');
    }
    short
}

/// A body whose request is not over before it is.
pub(super) struct Recorded {
    pub(super) body: Body,
    pub(super) _record: Arc<Record>,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_writes_a_line_of_their_own() {
        assert_eq!(short("key \"é\"\nPOST / 200\u{1b}[2J\u{2028}"), "key \"é\"\\nPOST / 200\\u{1b}[2J\\u{2028}");
        assert_eq!(short(&"x".repeat(1 << 20)), "x".repeat(LONGEST) + "…");
    }
}
