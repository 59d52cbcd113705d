//! Line breaks between words for a terminal; text that goes anywhere else is left as it is.

use unicode_width::UnicodeWidthStr;

/// Moves a word that would cross the edge of the terminal to the next line, while the text is still coming.
///
/// The word at the end is held back until it is known to be whole, so nothing is ever taken back.
pub(super) struct Wrap {
    width: usize,
    column: usize,
    // blanks, then the part of a word that came so far
    blanks: String,
    word: String,
}

impl Wrap {
    /// For lines of `width` columns.
    pub(super) fn new(width: usize) -> Self {
        Self { width: width.max(1), column: 0, blanks: String::new(), word: String::new() }
    }

    /// What can be shown now that `text` came.
    pub(super) fn push(&mut self, text: &str) -> String {
        let mut out = String::new();
        for c in text.chars() {
            match c {
                '\n' => {
                    self.flush(&mut out);
                    out += &std::mem::take(&mut self.blanks);
                    out.push(c);
                    self.column = 0;
                }
                ' ' => {
                    self.flush(&mut out);
                    self.blanks.push(c);
                }
                c => {
                    self.word.push(c);
                    // a word that is too long for any line is not kept waiting
                    if self.word.width() >= self.width {
                        self.flush(&mut out);
                    }
                }
            }
        }
        out
    }

    /// What was held back.
    pub(super) fn finish(&mut self) -> String {
        let mut out = String::new();
        self.flush(&mut out);
        out + &std::mem::take(&mut self.blanks)
    }

    fn flush(&mut self, out: &mut String) {
        if self.word.is_empty() {
            return;
        }
        let word = std::mem::take(&mut self.word);
        let blanks = std::mem::take(&mut self.blanks);
        let (between, width) = (blanks.len(), word.width());
        // indentation at the start of a line stays; a blank at which a line breaks goes
        if self.column > 0 && between > 0 && self.column + between + width > self.width {
            out.push('\n');
            self.column = 0;
        } else {
            *out += &blanks;
            self.column += between;
        }
        *out += &word;
        // a word longer than a line is broken by the terminal
        self.column = (self.column + width - 1) % self.width + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(width: usize, pieces: &[&str]) -> String {
        let mut wrap = Wrap::new(width);
        let mut out: String = pieces.iter().map(|piece| wrap.push(piece)).collect();
        out += &wrap.finish();
        out
    }

    #[test]
    fn words_move_to_the_next_line_however_they_come() {
        assert_eq!(wrapped(10, &["one two three four"]), "one two\nthree four");
        assert_eq!(wrapped(10, &["one tw", "o th", "ree", " four"]), "one two\nthree four");
        assert_eq!(wrapped(10, &["a\n  b c", "\n\nd "]), "a\n  b c\n\nd ");
    }

    #[test]
    fn wide_and_overlong_words_are_shown() {
        assert_eq!(wrapped(4, &["abcdefgh ij"]), "abcdefgh\nij");
        assert_eq!(wrapped(6, &["灯塔 灯塔"]), "灯塔\n灯塔");
    }
}
