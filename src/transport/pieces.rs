//! Messages that come in pieces, in any order: each piece goes where the receive that was posted for its message has it.

use std::collections::VecDeque;

use super::mail::Lost;
use super::{Buffer, MAX_MESSAGE};

/// A receive, and what has come of its message.
struct Incoming {
    buffer: Buffer,
    come: usize,
    total: Option<usize>,
}

/// The receives that are posted for one peer.
#[derive(Default)]
pub(super) struct Pieces {
    posted: VecDeque<Incoming>,
    /// Number of the front message, modulo 2^32.
    next: u32,
}

/// Where a piece belongs.
pub(super) struct At {
    /// The number of its message.
    pub(super) message: u32,
    /// Bytes of the message.
    pub(super) total: usize,
    /// Where in it the piece begins, and with it ends no later than the message.
    pub(super) offset: usize,
}

impl Pieces {
    /// Whether no receive is posted.
    pub(super) fn is_empty(&self) -> bool {
        self.posted.is_empty()
    }

    /// Whether a part of the front message has come.
    pub(super) fn is_amid(&self) -> bool {
        self.posted.front().is_some_and(|front| front.total.is_some_and(|total| front.come < total))
    }

    pub(super) fn post(&mut self, into: Buffer) {
        self.posted.push_back(Incoming { buffer: into, come: 0, total: None });
    }

    /// Copies a piece to where it belongs. Returns whether a receive for it is posted.
    pub(super) fn place(&mut self, At { message, total, offset }: At, piece: &[u8]) -> Result<bool, Lost> {
        let at = message.wrapping_sub(self.next) as usize;
        let Some(incoming) = self.posted.get_mut(at) else { return Ok(false) };
        if total > MAX_MESSAGE {
            return Err(Lost::garbage(format!(
                "announced a message of {total} bytes, over the limit of {MAX_MESSAGE}"
            )));
        }
        if *incoming.total.get_or_insert(total) != total {
            return Err(Lost::garbage(format!("sent message {message} with two lengths")));
        }
        if incoming.come == 0 {
            let capacity = incoming.buffer.capacity();
            incoming.buffer.set_len(total).map_err(|_| {
                Lost::garbage(format!("sent message {message} of {total} bytes into a receive of {capacity}"))
            })?;
        }
        incoming.buffer.bytes_mut()[offset..offset + piece.len()].copy_from_slice(piece);
        incoming.come += piece.len();
        if incoming.come > total {
            return Err(Lost::garbage(format!("sent parts of message {message} twice")));
        }
        Ok(true)
    }

    /// The next message that is whole.
    pub(super) fn whole(&mut self) -> Option<Buffer> {
        self.posted.front().filter(|front| front.total == Some(front.come))?;
        self.next = self.next.wrapping_add(1);
        self.posted.pop_front().map(|front| front.buffer)
    }
}
