//! A connection that is of no more use: how it ended and with whom, as types that others decide by, and the error for people.

use std::fmt::{self, Display};

use super::Completion;
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

/// The error of a link between two ranks.
#[derive(Debug)]
pub struct LinkError {
    /// The rank at its other end.
    pub peer: usize,
    /// In words, with its name.
    pub error: Error,
}

impl Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for LinkError {}

impl From<LinkError> for Error {
    fn from(link: LinkError) -> Self {
        link.error
    }
}

/// A completion, none by the deadline, or a link that is of no more use.
pub type Polled = std::result::Result<Option<Completion>, LinkError>;
