//! What a pass gives, and what a token is chosen from.

use super::Wanted;
use crate::backend::Tensor;

/// What a pass gives, run after run.
#[derive(Debug)]
pub(super) struct Output {
    /// The logits that are wanted: `[rows, vocab]`.
    pub(super) logits: Tensor,
    /// The tokens of the largest logits, of the runs that want no more.
    pub(super) tokens: Vec<u32>,
}

/// What the next token of a sequence is chosen from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Basis<'a> {
    /// A row of logits.
    Logits(&'a [f32]),
    /// It is chosen already: the token of the largest logit, the lowest among equals.
    Token(u32),
}

impl Output {
    /// Room for `rows` rows of what is `wanted` of every run.
    pub(super) fn zeros(rows: usize, vocab: usize, wanted: Wanted) -> Self {
        let (logits, tokens) = if wanted == Wanted::Token { (0, rows) } else { (rows, 0) };
        Self { logits: Tensor::zeros(logits, vocab), tokens: vec![0; tokens] }
    }

    /// Copies what row `from` of `other` is, of a pass of which the same was wanted.
    pub(super) fn copy_row(&mut self, row: usize, other: &Self, from: usize) {
        match self.tokens.get_mut(row) {
            Some(token) => *token = other.tokens[from],
            None => self.logits.row_mut(row).copy_from_slice(other.logits.row(from)),
        }
    }

    /// What the only run chooses from, of which more than nothing was wanted.
    pub(super) fn basis(&self) -> Basis<'_> {
        match self.tokens.first() {
            Some(token) => Basis::Token(*token),
            None => Basis::Logits(self.logits.row(0)),
        }
    }

    /// What runs choose from, in their order.
    pub(super) fn bases(&self) -> Bases<'_> {
        Bases { output: self, logits: 0, tokens: 0 }
    }
}

/// Hands out what was wanted of the last row of each run.
pub(super) struct Bases<'a> {
    output: &'a Output,
    logits: usize,
    tokens: usize,
}

impl<'a> Bases<'a> {
    /// Of the next run, of which this was wanted: nothing, its last row or its token.
    pub(super) fn next(&mut self, wanted: Wanted) -> Option<Basis<'a>> {
        match wanted {
            Wanted::Nothing | Wanted::All => None,
            Wanted::Last => {
                self.logits += 1;
                Some(Basis::Logits(self.output.logits.row(self.logits - 1)))
            }
            Wanted::Token => {
                self.tokens += 1;
                Some(Basis::Token(self.output.tokens[self.tokens - 1]))
            }
        }
    }
}
