//! Splits a streamed reply into the model's reasoning and its answer.

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Which side of `</think>` a piece of text is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The text between `<think>` and `</think>`.
    Reasoning,
    /// The reply proper.
    Answer,
}

/// Follows the tags through a stream of text pieces, wherever the pieces are cut.
///
/// **Invariant:** reasoning comes first and once. `<think>` counts only before any other text and `</think>` only
/// while reasoning, so an answer that speaks about the tags keeps them.
#[derive(Debug)]
pub struct Reasoning {
    state: State,
    held: String,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Nothing but white space so far; without a tag the text belongs to this part.
    Start(Part),
    Inside,
    /// Right after `</think>`.
    BlankLines,
    Answer,
}

impl Reasoning {
    /// Returns a splitter for a reply whose prompt `starts_inside` an open `<think>`, or not.
    pub fn new(starts_inside: bool) -> Self {
        let part = if starts_inside { Part::Reasoning } else { Part::Answer };
        Self { state: State::Start(part), held: String::new() }
    }

    /// Returns a splitter for the reply to a rendered prompt.
    pub fn for_prompt(prompt: &str) -> Self {
        Self::new(Self::is_open_at_end(prompt))
    }

    /// Returns whether a rendered prompt ends inside an open `<think>`, so that the reply starts with reasoning.
    pub fn is_open_at_end(prompt: &str) -> bool {
        // Only the very end counts: a `<think>` further up may be something the user wrote.
        prompt.trim_end().ends_with(OPEN)
    }

    /// Returns the parts that `piece` completes, in order and never empty. Both tags and the blank lines right
    /// after `</think>` are left out; a possible beginning of a tag is held back.
    pub fn push(&mut self, piece: &str) -> Vec<(Part, String)> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        while let Some(next) = self.step(&mut parts) {
            self.state = next;
        }
        parts
    }

    /// Returns what is still held back, now that no tag can complete it, and starts again in the answer.
    pub fn finish(&mut self) -> Vec<(Part, String)> {
        let part = match std::mem::replace(&mut self.state, State::Start(Part::Answer)) {
            State::Start(part) => part,
            State::Inside => Part::Reasoning,
            State::BlankLines | State::Answer => Part::Answer,
        };
        let mut parts = Vec::new();
        emit(&mut parts, part, std::mem::take(&mut self.held));
        parts
    }

    /// Returns how many characters at the end of what was pushed are held back.
    pub fn held(&self) -> usize {
        self.held.chars().count()
    }

    /// Consumes what it can of the held text; returns the state to go on in, or nothing when it needs more text.
    fn step(&mut self, parts: &mut Vec<(Part, String)>) -> Option<State> {
        match self.state {
            State::Start(part) => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(OPEN) {
                    self.held = rest.to_owned();
                    return Some(State::Inside);
                }
                let undecided = OPEN.starts_with(text);
                (!undecided).then_some(if part == Part::Reasoning { State::Inside } else { State::Answer })
            }
            State::Inside => {
                if let Some((reasoning, rest)) = self.held.split_once(CLOSE) {
                    emit(parts, Part::Reasoning, reasoning.to_owned());
                    self.held = rest.to_owned();
                    return Some(State::BlankLines);
                }
                let tail = self.held.split_off(self.held.len() - unfinished(&self.held, CLOSE));
                emit(parts, Part::Reasoning, std::mem::replace(&mut self.held, tail));
                None
            }
            State::BlankLines => {
                self.held = self.held.trim_start_matches(['\n', '\r']).to_owned();
                (!self.held.is_empty()).then_some(State::Answer)
            }
            State::Answer => {
                emit(parts, Part::Answer, std::mem::take(&mut self.held));
                None
            }
        }
    }
}

fn emit(parts: &mut Vec<(Part, String)>, part: Part, text: String) {
    if !text.is_empty() {
        parts.push((part, text));
    }
}

/// Returns how many bytes at the end of `text` could be the beginning of `tag`.
fn unfinished(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&length| tag.get(..length).is_some_and(|start| text.ends_with(start))).unwrap_or(0)
}
