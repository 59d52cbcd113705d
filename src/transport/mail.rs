//! Messages to and from the bytes of one pipe: what the stream fabrics (shared memory, TCP) have in common.

use std::collections::VecDeque;

use super::frame::{self, HEADER};
use super::{Buffer, Completion, Endpoint, Kind, LinkError};
use crate::error::Error;

/// Why a peer can no longer be used. Errors are made from it as often as somebody asks.
#[derive(Debug, Clone)]
pub(super) struct Lost {
    /// What the peer did, to follow its name: `closed its connection`.
    pub(super) what: String,
    /// What to do about it.
    pub(super) hint: &'static str,
}

impl Lost {
    /// The peer broke the protocol.
    pub(super) fn garbage(what: impl Into<String>) -> Self {
        let hint = "all ranks must run the same build and be started together; see what that rank printed";
        Self { what: what.into(), hint }
    }

    /// The peer has gone.
    pub(super) fn gone(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: "see what that rank printed last: it ended first" }
    }

    /// The error of `endpoint` about `peer`.
    pub(super) fn error(&self, endpoint: &dyn Endpoint, peer: usize) -> LinkError {
        let message = format!("rank {}: {} {}", endpoint.rank(), endpoint.peer(peer), self.what);
        LinkError { peer, error: Error::msg(message).hint(self.hint) }
    }
}

/// Who is looked at first for an end: another one each time, so that nobody's end hides another's.
#[derive(Default)]
pub(super) struct Turn(usize);

impl Turn {
    /// The first of `size` peers, from the turn on, for whom `lost` has a reason.
    pub(super) fn find<'a>(
        &mut self,
        size: usize,
        lost: impl Fn(usize) -> Option<&'a Lost>,
    ) -> Option<(usize, &'a Lost)> {
        let found = (self.0..size).chain(0..self.0).find_map(|peer| Some((peer, lost(peer)?)));
        if let Some((peer, _)) = found {
            self.0 = (peer + 1) % size;
        }
        found
    }
}

/// The completions of an endpoint that nobody has polled yet.
#[derive(Default)]
pub(super) struct Ready(VecDeque<Completion>);

impl Ready {
    pub(super) fn push(&mut self, peer: usize, kind: Kind, buffer: Buffer) {
        self.0.push_back(Completion { peer, kind, buffer });
    }
    pub(super) fn pop(&mut self) -> Option<Completion> {
        self.0.pop_front()
    }
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Messages that wait to become bytes.
pub(super) struct Outbox {
    run: u64,
    /// Number of the front message.
    sequence: u64,
    queue: VecDeque<Buffer>,
    header: [u8; HEADER],
    /// Bytes of the front message, header first, that have been taken.
    taken: usize,
}

impl Outbox {
    pub(super) fn new(run: u64) -> Self {
        Self { run, sequence: 0, queue: VecDeque::new(), header: [0; HEADER], taken: 0 }
    }

    pub(super) fn push(&mut self, message: Buffer) {
        self.queue.push_back(message);
        if self.queue.len() == 1 {
            self.encode();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn encode(&mut self) {
        if let Some(front) = self.queue.front() {
            self.header = frame::encode(self.run, self.sequence, front.len());
        }
    }

    /// What is left of the front message: of its header, and of its payload.
    pub(super) fn front(&self) -> Option<(&[u8], &[u8])> {
        let front = self.queue.front()?.bytes();
        let header = self.taken.min(HEADER);
        Some((&self.header[header..], &front[self.taken - header..]))
    }

    /// Notes that `bytes` of the front message have been taken, and returns it once that was all of it.
    pub(super) fn advance(&mut self, bytes: usize) -> Option<Buffer> {
        self.taken += bytes;
        if self.taken < HEADER + self.queue.front()?.len() {
            return None;
        }
        self.taken = 0;
        self.sequence += 1;
        let sent = self.queue.pop_front();
        self.encode();
        sent
    }
}

/// Buffers that wait for bytes to become messages.
pub(super) struct Inbox {
    run: u64,
    /// Number of the message that is due.
    sequence: u64,
    posted: VecDeque<Buffer>,
    header: [u8; HEADER],
    /// Bytes of the message that is due, header first, that have come.
    come: usize,
    /// Length of its payload, known once the header is whole.
    length: usize,
}

impl Inbox {
    pub(super) fn new(run: u64) -> Self {
        Self { run, sequence: 0, posted: VecDeque::new(), header: [0; HEADER], come: 0, length: 0 }
    }

    pub(super) fn post(&mut self, into: Buffer) {
        self.posted.push_back(into);
    }

    /// Whether nothing is expected: then no byte may be read, and the peer is held back.
    pub(super) fn is_empty(&self) -> bool {
        self.posted.is_empty()
    }

    /// Whether a message has begun and is not whole.
    pub(super) fn is_amid(&self) -> bool {
        self.come > 0
    }

    /// Where the next bytes go: the rest of the header, or of the payload. Empty if no receive is posted.
    pub(super) fn space(&mut self) -> &mut [u8] {
        match self.posted.front_mut() {
            None => &mut [],
            Some(_) if self.come < HEADER => &mut self.header[self.come..],
            Some(front) => &mut front.bytes_mut()[self.come - HEADER..],
        }
    }

    /// Notes that `bytes` of the space have been written, and returns the message once it is whole.
    ///
    /// # Errors
    /// What is wrong with the header, once that is whole.
    pub(super) fn advance(&mut self, bytes: usize) -> Result<Option<Buffer>, Lost> {
        let before = self.come;
        self.come += bytes;
        let Some(front) = self.posted.front_mut() else { return Ok(None) };
        if before < HEADER && self.come >= HEADER {
            self.length = frame::decode(&self.header, self.run, self.sequence).map_err(Lost::garbage)?;
            let capacity = front.capacity();
            front.set_len(self.length).map_err(|_| {
                let (length, sequence) = (self.length, self.sequence);
                Lost::garbage(format!("sent message {sequence} of {length} bytes into a receive of {capacity}"))
            })?;
        }
        if self.come < HEADER + self.length || self.come < HEADER {
            return Ok(None);
        }
        (self.come, self.length) = (0, 0);
        self.sequence += 1;
        Ok(self.posted.pop_front())
    }
}
