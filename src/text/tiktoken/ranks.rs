//! The lines of a `tiktoken.model`: the bytes of a token in base64, and its rank.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokenizers::models::bpe::Vocab;

use crate::error::{Context, Error, Result};
use crate::text::alphabet::symbol_of;

/// Bytes of the longest token that is believed; the longest of Kimi are 256 spaces.
const LONGEST: usize = 1024;

/// A vocabulary in the byte-level alphabet. A token's rank is its id.
pub(super) struct Ranks {
    /// The tokens by rank.
    pub(super) tokens: Vec<String>,
    /// The ranks by token.
    pub(super) ids: Vocab,
}

impl Ranks {
    /// Reads the text of a `tiktoken.model`. Ranks have to count up from 0, line by line, and every byte has to be a
    /// token: what has none would be lost from texts.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut ranks = Self { tokens: Vec::new(), ids: Vocab::new() };
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if !line.is_empty() {
                ranks.add(line).with_context(|| format!("line {}", index + 1))?;
            }
        }
        let absent = (0..=255).find(|byte| !ranks.ids.contains_key(symbol_of(*byte).encode_utf8(&mut [0; 4])));
        match absent {
            Some(byte) => Err(Error::msg(format_args!("no token is the byte {byte:#04x} alone"))),
            None => Ok(ranks),
        }
    }

    fn add(&mut self, line: &[u8]) -> Result<()> {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let (Some(token), Some(rank), None) = (words.next(), words.next(), words.next()) else {
            return Err(Error::msg(format_args!("`{}` is not a token and its rank", excerpt(line))));
        };
        let expected = self.tokens.len();
        let number = std::str::from_utf8(rank).ok().and_then(|rank| rank.parse::<u32>().ok());
        let Some(rank) = number.filter(|rank| *rank as usize == expected) else {
            return Err(Error::msg(format_args!("the rank is `{}`, where {expected} follows", excerpt(rank))));
        };
        let bytes = STANDARD
            .decode(token)
            .ok()
            .filter(|bytes| !bytes.is_empty())
            .ok_or_else(|| Error::msg(format_args!("`{}` is not base64", excerpt(token))))?;
        if bytes.len() > LONGEST {
            return Err(Error::msg(format_args!("the token has {} bytes, more than {LONGEST}", bytes.len())));
        }
        let token: String = bytes.into_iter().map(symbol_of).collect();
        if let Some(before) = self.ids.insert(token.clone(), rank) {
            return Err(Error::msg(format_args!("the token has the rank {before} already")));
        }
        self.tokens.push(token);
        Ok(())
    }
}

/// The start of a damaged line, fit for a message.
fn excerpt(line: &[u8]) -> String {
    const SHOWN: usize = 40;
    let text: String = String::from_utf8_lossy(line).escape_debug().take(SHOWN + 1).collect();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_cannot_be_shown_is_cut_and_escaped() {
        assert_eq!(excerpt(b"a\x1b\xff"), "a\\u{1b}\u{fffd}");
        assert_eq!(excerpt("é".repeat(50).as_bytes()), format!("{}…", "é".repeat(40)));
    }
}
