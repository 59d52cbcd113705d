//! What the main thread of a rank is doing, as its control thread tells it to the others.

use std::fmt::{self, Display};

/// The longest text in a control frame, in bytes of UTF-8.
pub const MAX_TEXT: usize = 512;

/// What kind of work a main thread is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Waiting for work: rank 0 for the next prompt, for however long, the others for rank 0's next command.
    Idle,
    /// Working by itself.
    Compute,
    /// In the collective of this name.
    AllReduce,
    /// In the collective of this name.
    AllGather,
    /// In the collective of this name.
    ReduceScatter,
    /// In the collective of this name.
    Broadcast,
    /// In the collective of this name.
    Barrier,
    /// Sending to one peer.
    Send,
    /// Receiving from one peer.
    Recv,
    /// Bringing bytes to rank 0.
    Gather,
    /// Waiting until everything that was sent is gone.
    Flush,
    /// In a part of the start-up, which the place names.
    Start,
}

impl Operation {
    /// All of them; the position is the number on the wire.
    pub const ALL: [Self; 12] = [
        Self::Idle,
        Self::Compute,
        Self::AllReduce,
        Self::AllGather,
        Self::ReduceScatter,
        Self::Broadcast,
        Self::Barrier,
        Self::Send,
        Self::Recv,
        Self::Gather,
        Self::Flush,
        Self::Start,
    ];
}

impl Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Compute => "compute",
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
            Self::Send => "send",
            Self::Recv => "recv",
            Self::Gather => "gather",
            Self::Flush => "flush",
            Self::Start => "start-up",
        })
    }
}

/// Where a main thread is. Prints as `all_reduce #8841 (layer 17 mlp)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    /// What it does.
    pub operation: Operation,
    /// The how manieth of its kind since the start.
    pub number: u64,
    /// The place in the model, e.g. `layer 17 mlp`; empty if there is none.
    pub place: String,
    /// The rank it cannot go on without, if it waits for a single one.
    pub waiting_for: Option<usize>,
}

impl Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.operation)?;
        if self.operation != Operation::Start {
            write!(f, " #{}", self.number)?;
        }
        if self.place.is_empty() { Ok(()) } else { write!(f, " ({})", self.place) }
    }
}

/// Returns `text` as one line of at most [`MAX_TEXT`] bytes, without anything that a terminal would obey.
pub(super) fn one_line(text: &str) -> String {
    let mut line: String = text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    while line.len() > MAX_TEXT {
        line.pop();
    }
    line
}
