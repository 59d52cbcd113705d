//! The streaming detokeniser: one id in, the text it completes out.

use std::ops::Deref;
use std::sync::Arc;

use super::{Tokenizer, alphabet};
use crate::error::Result;

/// Most tokens a window holds back: no UTF-8 character has more bytes.
const HELD: usize = 4;

/// Decodes ids one at a time. A character spread over several tokens comes out whole, with its last token;
/// at most 3 bytes (or 3 tokens) are ever held back, and a push takes the same time however long the text is.
pub struct Stream<T = Arc<Tokenizer>> {
    tokenizer: T,
    skip_special: bool,
    state: State,
}

enum State {
    /// Byte-level vocabularies: the bytes of a character that is not complete yet.
    Bytes(Vec<u8>),
    /// All others, whose decoder looks at neighbours: the last ids shown and the ids held back since.
    Window { shown: Vec<u32>, held: Vec<u32> },
}

impl<T: Deref<Target = Tokenizer>> Stream<T> {
    /// Returns a detokeniser that holds on to `tokenizer`, borrowed or shared.
    pub fn new(tokenizer: T, skip_special: bool) -> Self {
        let state = if tokenizer.is_byte_level() {
            State::Bytes(Vec::new())
        } else {
            State::Window { shown: Vec::new(), held: Vec::new() }
        };
        Self { tokenizer, skip_special, state }
    }

    /// Returns the text that `id` completes, often empty. Skipped tokens and ids outside the vocabulary give
    /// nothing; bytes that cannot become a character give U+FFFD.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let Some(token) = self.tokenizer.visible(id, self.skip_special) else { return Ok(String::new()) };
        match &mut self.state {
            State::Bytes(bytes) => {
                bytes.extend(alphabet::bytes(&token));
                Ok(take_characters(bytes))
            }
            State::Window { shown, held } => {
                held.push(id);
                let mut text = beyond(&self.tokenizer, shown, held)?;
                if text.ends_with(char::REPLACEMENT_CHARACTER) {
                    // A run of bytes is decoded as a whole: damage already shown must not spoil what follows.
                    text = self.tokenizer.decode(held, false)?;
                    if text.ends_with(char::REPLACEMENT_CHARACTER) && held.len() < HELD {
                        return Ok(String::new());
                    }
                }
                *shown = std::mem::take(held);
                Ok(text)
            }
        }
    }

    /// Returns what is still held back, with U+FFFD for what never became a character. The stream can then
    /// start on another text.
    pub fn finish(&mut self) -> Result<String> {
        match &mut self.state {
            State::Bytes(bytes) => Ok(String::from_utf8_lossy(&std::mem::take(bytes)).into_owned()),
            State::Window { shown, held } => {
                let text = beyond(&self.tokenizer, shown, held)?;
                shown.clear();
                held.clear();
                Ok(text)
            }
        }
    }
}

/// Returns what `held` adds to the text of `shown`.
fn beyond(tokenizer: &Tokenizer, shown: &[u32], held: &[u32]) -> Result<String> {
    let before = tokenizer.decode(shown, false)?;
    let all = tokenizer.decode(&[shown, held].concat(), false)?;
    match all.strip_prefix(&before) {
        Some(new) => Ok(new.to_owned()),
        None => tokenizer.decode(held, false),
    }
}

/// Takes everything out of `bytes` but the start of a character that more bytes could complete.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = Vec::new();
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        let Err(error) = std::str::from_utf8(chunk.invalid()) else { continue };
        if error.error_len().is_none() && chunks.peek().is_none() {
            rest.extend_from_slice(chunk.invalid());
        } else {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    *bytes = rest;
    text
}
