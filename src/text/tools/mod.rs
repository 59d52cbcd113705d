//! Calls of tools in an answer, in the forms that model families write them in.

mod hermes;
mod kimi;
mod schema;
mod xml;

use std::sync::Arc;

use serde_json::Value;

/// How a family of models writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallForm {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Qwen2.5, Qwen3.
    Hermes,
    /// `<tool_call><function=…><parameter=…>…</parameter></function></tool_call>`: Qwen3-Coder, Qwen3.5 and later.
    Xml,
    /// `<|tool_call_begin|>functions.…:0<|tool_call_argument_begin|>{…}<|tool_call_end|>` in a section: Kimi.
    Kimi,
}

impl CallForm {
    /// The form that a chat template asks for and writes, if it knows tools and the form is one of these.
    pub fn of(template: &str) -> Option<Self> {
        if template.contains(kimi::OPEN) {
            Some(Self::Kimi)
        } else if template.contains(hermes::OPEN) && template.contains(xml::FUNCTION) {
            Some(Self::Xml)
        } else if template.contains(hermes::OPEN) && template.contains("\"arguments\": ") {
            Some(Self::Hermes)
        } else {
            None
        }
    }

    /// What begins calls, and what ends them.
    fn tags(self) -> (&'static str, &'static str) {
        match self {
            Self::Hermes | Self::Xml => (hermes::OPEN, hermes::CLOSE),
            Self::Kimi => (kimi::OPEN, kimi::CLOSE),
        }
    }

    /// Tokens that a call is made of, some of which a vocabulary may count among those that are not shown.
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes | Self::Xml => &hermes::MARKERS,
            Self::Kimi => &kimi::MARKERS,
        }
    }

    fn parse(self, block: &str, functions: &[(String, Value)]) -> Parsed {
        match self {
            Self::Hermes => hermes::parse(block),
            Self::Xml => xml::parse(block, functions),
            Self::Kimi => kimi::parse(block),
        }
    }
}

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What the model calls it, if it does.
    pub id: Option<String>,
    /// The function's name.
    pub name: String,
    /// A JSON object.
    pub arguments: String,
}

/// What is found in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// What is said, never empty.
    Text(String),
    /// What is called.
    Call(Call),
}

/// What the text between two tags is.
enum Parsed {
    Calls(Vec<Call>),
    /// It may go on: the closing tag is part of it.
    Unfinished,
    Malformed,
}

/// Finds calls in a stream of text, wherever the pieces are cut.
///
/// **Invariant:** what is no call is text, whatever it looks like. White space around calls belongs to them.
#[derive(Debug)]
pub struct Calls {
    form: CallForm,
    /// Names and the JSON schemas of arguments.
    functions: Arc<[(String, Value)]>,
    held: String,
    /// Where in `held` an opening tag ends; before it is white space alone.
    inside: Option<usize>,
    /// How much of `held` has no closing tag.
    searched: usize,
    called: bool,
}

impl Calls {
    /// A finder of calls in a form; `functions` are names and the JSON schemas of arguments.
    pub fn new(form: CallForm, functions: impl Into<Arc<[(String, Value)]>>) -> Self {
        Self { form, functions: functions.into(), held: String::new(), inside: None, searched: 0, called: false }
    }

    /// Adds text; returns the pieces that it completes.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces, false) {}
        pieces
    }

    /// Returns what is left, when nothing follows. A call that is whole but not closed is one.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while self.step(&mut pieces, true) {}
        let rest = std::mem::take(&mut self.held);
        if !self.called || !rest.trim().is_empty() {
            say(&mut pieces, &rest);
        }
        pieces
    }

    /// Returns how many characters at the end of what was pushed are held back.
    pub fn held(&self) -> usize {
        self.held.chars().count()
    }

    /// Takes what it can from the text that is held; `false` if it needs more, or there is no more.
    fn step(&mut self, pieces: &mut Vec<Piece>, last: bool) -> bool {
        let (open, close) = self.form.tags();
        let Some(start) = self.inside else { return self.open(pieces, open) };
        let from = self.searched.max(start);
        let found = self.held[from..].find(close).map(|at| from + at);
        let Some(end) = found.or(last.then_some(self.held.len())) else {
            self.searched = floor(&self.held, self.held.len().saturating_sub(close.len()).max(start));
            return false;
        };
        match self.form.parse(&self.held[start..end], &self.functions) {
            Parsed::Calls(calls) => {
                pieces.extend(calls.into_iter().map(Piece::Call));
                self.called = true;
                self.cut(end + if found.is_some() { close.len() } else { 0 });
            }
            Parsed::Unfinished if found.is_some() => self.searched = end + close.len(),
            Parsed::Unfinished | Parsed::Malformed => {
                say(pieces, &self.held[..start]);
                self.called = false;
                self.cut(start);
            }
        }
        true
    }

    /// Says what is surely outside of calls.
    fn open(&mut self, pieces: &mut Vec<Piece>, open: &str) -> bool {
        let found = self.held.find(open);
        let begins = |at: usize| open.starts_with(&self.held[at..]);
        let end = found.or_else(|| self.held.char_indices().map(|(at, _)| at).find(|at| begins(*at)));
        let text = self.held[..end.unwrap_or(self.held.len())].trim_end().len();
        if text > 0 {
            say(pieces, &self.held[..text]);
            self.called = false;
            self.held.drain(..text);
        }
        self.inside = found.map(|at| at - text + open.len());
        self.searched = 0;
        found.is_some()
    }

    fn cut(&mut self, at: usize) {
        self.held.drain(..at);
        (self.inside, self.searched) = (None, 0);
    }
}

fn say(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Text(last)) => last.push_str(text),
        _ => pieces.push(Piece::Text(text.to_owned())),
    }
}

/// The last boundary of a character that is not behind `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}
