//! Where Kimi's own tokenizer cuts long texts before it looks for words in them.
//!
//! The cuts are there because tiktoken cannot encode texts of any length. They change what comes out (a word that is cut is encoded
//! as two), so the ids of a long text are only right with them; and they keep what a regular expression has to look back on short.

/// Characters of the longest slice, from the start of the text.
const SLICE: usize = 400_000;

/// Characters in a row that are all white space, or all not, within a slice.
const RUN: usize = 25_000;

/// Returns the pieces of `text`, which make it when joined; none is empty.
pub(super) fn chunks(text: &str) -> Vec<&str> {
    let (mut pieces, mut start) = (Vec::new(), 0);
    let (mut run, mut white) = (0, false);
    for (count, (at, character)) in text.char_indices().enumerate() {
        let (slice_ends, is_white) = (count > 0 && count.is_multiple_of(SLICE), is_white(character));
        run = if slice_ends || white != is_white { 1 } else { run + 1 };
        white = is_white;
        if slice_ends || run > RUN {
            pieces.push(&text[start..at]);
            (start, run) = (at, 1);
        }
    }
    if start < text.len() {
        pieces.push(&text[start..]);
    }
    pieces
}

/// Python's `str.isspace`: the separators of ASCII are white there.
fn is_white(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

/// Whether every text of so many bytes is one piece.
pub(super) fn is_short(bytes: usize) -> bool {
    bytes <= RUN
}
