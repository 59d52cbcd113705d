//! One answer's tokens as they become text: stop strings, reasoning and calls found in it wherever tokens are cut.

use std::sync::Arc;

use serde_json::Value;

use crate::api::request::Offer;
use crate::error::Result;
use crate::text::{Call, CallForm, Calls, Part, Piece, Reasoning, StopStrings, Stream, Tokenizer};

/// What the answers of a request have in common.
#[derive(Debug)]
pub(in crate::api) struct Voice {
    stop: Vec<String>,
    /// Whether reasoning is told apart, and whether the prompt began it.
    reasoning: Option<bool>,
    tools: Option<Tools>,
}

/// Calls that are looked for.
#[derive(Debug)]
struct Tools {
    form: CallForm,
    functions: Arc<[(String, Value)]>,
    /// Whether more than one call is wanted.
    parallel: bool,
    /// Tokens that calls are made of.
    markers: Vec<u32>,
}

impl Voice {
    /// Text, all of it.
    pub(in crate::api) fn plain(stop: &[String]) -> Self {
        Self { stop: stop.to_vec(), reasoning: None, tools: None }
    }

    /// The answer to a rendered conversation.
    pub(in crate::api) fn chat(
        rendered: &str,
        stop: &[String],
        calls: Option<(CallForm, &Offer)>,
        tokenizer: &Tokenizer,
    ) -> Self {
        let tools = calls.map(|(form, offer)| Tools {
            form,
            functions: offer.functions.as_slice().into(),
            parallel: offer.parallel,
            markers: form.markers().iter().filter_map(|marker| tokenizer.token_id(marker)).collect(),
        });
        Self { stop: stop.to_vec(), reasoning: Some(Reasoning::is_open_at_end(rendered)), tools }
    }
}

/// A piece of an answer.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    Reasoning(String),
    Content(String),
    Call(Call),
}

/// Follows one answer.
pub(super) struct Speech {
    stream: Stream,
    stops: StopStrings,
    reasoning: Option<Reasoning>,
    calls: Option<Calls>,
    parallel: bool,
    /// Tokens that are shown even if the vocabulary hides them, with their texts.
    markers: Vec<(u32, String)>,
    /// Characters of text that the tokens made.
    decoded: usize,
    /// Of them, those that are in front of any stop string.
    released: usize,
    /// Where reasoning is over.
    answer_at: Option<usize>,
    said: Vec<Said>,
}

impl std::fmt::Debug for Speech {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Speech").field("decoded", &self.decoded).finish_non_exhaustive()
    }
}

impl Speech {
    pub(super) fn new(tokenizer: &Arc<Tokenizer>, voice: &Voice) -> Self {
        Self {
            stream: Stream::new(tokenizer.clone(), true),
            stops: StopStrings::new(&voice.stop),
            reasoning: voice.reasoning.map(Reasoning::new),
            calls: voice.tools.as_ref().map(|tools| Calls::new(tools.form, tools.functions.clone())),
            parallel: voice.tools.as_ref().is_none_or(|tools| tools.parallel),
            markers: hidden(tokenizer, voice),
            decoded: 0,
            released: 0,
            answer_at: voice.reasoning.is_none().then_some(0),
            said: Vec::new(),
        }
    }

    /// Adds a token: tells whether a stop string is complete, after which there is no more to add.
    pub(super) fn push(&mut self, token: u32) -> Result<bool> {
        let piece = match self.markers.iter().find(|(marker, _)| *marker == token) {
            Some((_, text)) => format!("{}{text}", self.stream.finish()?),
            None => self.stream.push(token)?,
        };
        Ok(self.text(&piece))
    }

    /// Whether the only call that is wanted was made.
    pub(super) fn is_complete(&self) -> bool {
        !self.parallel && self.said.iter().any(|said| matches!(said, Said::Call(_)))
    }

    /// There are no more tokens.
    pub(super) fn finish(&mut self, stopped: bool) -> Result<()> {
        if !stopped {
            let rest = self.stream.finish()?;
            if !self.text(&rest) {
                let held = self.stops.finish();
                self.release(&held);
            }
        }
        let parts = self.reasoning.as_mut().map(Reasoning::finish).unwrap_or_default();
        self.parts(parts);
        let pieces = self.calls.as_mut().map(Calls::finish).unwrap_or_default();
        self.pieces(pieces);
        Ok(())
    }

    /// What came of it since the last time.
    pub(super) fn take(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.said)
    }

    /// Characters of text so far.
    pub(super) fn decoded(&self) -> usize {
        self.decoded
    }

    /// Those of them that are sure to be said or left out.
    pub(super) fn settled(&self) -> usize {
        let held = self.reasoning.as_ref().map_or(0, Reasoning::held) + self.calls.as_ref().map_or(0, Calls::held);
        self.released - held
    }

    /// Where the answer proper begins, once it does.
    pub(super) fn answer_at(&self) -> Option<usize> {
        self.answer_at
    }

    fn text(&mut self, piece: &str) -> bool {
        self.decoded += piece.chars().count();
        let (shown, stopped) = self.stops.push(piece);
        self.release(&shown);
        stopped
    }

    fn release(&mut self, text: &str) {
        self.released += text.chars().count();
        match &mut self.reasoning {
            None => self.say(Said::Content(text.to_owned())),
            Some(reasoning) => {
                let parts = reasoning.push(text);
                self.parts(parts);
            }
        }
    }

    fn parts(&mut self, parts: Vec<(Part, String)>) {
        for (part, text) in parts {
            match part {
                Part::Reasoning => self.say(Said::Reasoning(text)),
                Part::Answer => {
                    // an answer that begins is all that is left of the text
                    self.answer_at.get_or_insert(self.released - text.chars().count());
                    match &mut self.calls {
                        None => self.say(Said::Content(text)),
                        Some(calls) => {
                            let pieces = calls.push(&text);
                            self.pieces(pieces);
                        }
                    }
                }
            }
        }
    }

    fn pieces(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                // what follows the only call that is wanted is not wanted
                _ if self.is_complete() => {}
                Piece::Text(text) => self.say(Said::Content(text)),
                Piece::Call(call) => self.said.push(Said::Call(call)),
            }
        }
    }

    /// Adds to what was said, which is never empty and never twice the same kind in a row.
    fn say(&mut self, said: Said) {
        match (self.said.last_mut(), said) {
            (_, Said::Content(text) | Said::Reasoning(text)) if text.is_empty() => {}
            (Some(Said::Content(last)), Said::Content(text)) => last.push_str(&text),
            (Some(Said::Reasoning(last)), Said::Reasoning(text)) => last.push_str(&text),
            (_, said) => self.said.push(said),
        }
    }
}

/// The tokens of calls that a vocabulary does not show.
fn hidden(tokenizer: &Tokenizer, voice: &Voice) -> Vec<(u32, String)> {
    let markers = voice.tools.iter().flat_map(|tools| &tools.markers).filter(|id| tokenizer.is_special(**id));
    markers.filter_map(|id| Some((*id, tokenizer.token(*id)?))).collect()
}
