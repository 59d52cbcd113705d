//! A connection that is of no more use: how it ended, as a type that others decide by, and the error for people.

use std::fmt::{self, Display};

use crate::error::Error;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The other side closed it, after a whole message.
    Closed,
    /// It ended in the middle of a message, or the system reports it lost.
    Broken,
    /// What came is not what any rank sends: damaged, repeated, dropped in part, or too long.
    Garbled,
}

/// The error of a connection that has ended.
#[derive(Debug)]
pub struct Disconnected {
    /// How.
    pub end: End,
    /// In words, with the name of the other side.
    pub error: Error,
}

impl Disconnected {
    pub(super) fn new(end: End, error: impl Display) -> Self {
        Self { end, error: Error::msg(error) }
    }
}

impl Display for Disconnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Disconnected {}

impl From<Disconnected> for Error {
    fn from(disconnected: Disconnected) -> Self {
        disconnected.error
    }
}
