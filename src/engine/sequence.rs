//! A sequence: what there is room for, what it holds, and what it begins with.

use crate::backend::PAGE;
use crate::error::Result;

/// What there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Positions of a sequence.
    pub context: usize,
    /// Sequences at once.
    pub sequences: usize,
    /// Recurrent states that are kept beside theirs, for sequences to come.
    pub kept_states: usize,
    /// Pages of the KV cache.
    pub pages: usize,
}

impl Room {
    /// For so many sequences of any length.
    ///
    /// # Errors
    /// If their pages cannot be counted in 32 bits.
    pub fn of(context: usize, sequences: usize) -> Result<Self> {
        Ok(Self { context, sequences, kept_states: 0, pages: super::pages(context, sequences)? })
    }

    /// Recurrent states.
    pub fn states(&self) -> usize {
        self.sequences + self.kept_states
    }
}

/// One sequence: how many positions it has, and where they are kept.
#[derive(Debug)]
pub struct Sequence {
    pub(super) slot: usize,
    pub(super) len: usize,
    pub(super) pages: Vec<u32>,
}

impl Sequence {
    /// Positions that were run.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was run yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pages that it lacks for `more` positions more.
    pub(super) fn lacks(&self, more: usize) -> usize {
        (self.len + more).div_ceil(PAGE).saturating_sub(self.pages.len())
    }
}

/// What a sequence begins with that others have computed.
#[derive(Debug, Default)]
pub(super) struct Beginning {
    /// Whole pages.
    pub(super) pages: Vec<u32>,
    /// A page of which so many positions are the same; it is copied.
    pub(super) part: Option<(u32, usize)>,
    /// The slot that holds the recurrent state after the whole pages.
    pub(super) state: Option<usize>,
}

impl Beginning {
    /// Positions.
    pub(super) fn len(&self) -> usize {
        self.pages.len() * PAGE + self.part.map_or(0, |(_, len)| len)
    }
}
