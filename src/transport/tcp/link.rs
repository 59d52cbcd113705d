//! The data connection to one peer: messages to records to bytes and back, never blocking.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use super::record::{self, Opener, PREFIX, RECORD, Sealer, WIRE};
use crate::transport::frame::HEADER;
use crate::transport::mail::{Inbox, Lost, Outbox, Ready};
use crate::transport::{Buffer, Kind};

/// Bytes that are encrypted before they are handed to the system at once.
const BATCH: usize = 4 * WIRE;

/// Bytes that one peer may have read at a turn, so that it does not starve the others.
const TURN: usize = 1 << 20;

/// One peer's connection.
pub(super) struct Link {
    stream: TcpStream,
    pub(super) address: String,
    peer: usize,
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
    pub(super) lost: Option<Lost>,
    sealer: Sealer,
    opener: Opener,
    /// Records on their way to the system: `out[out_start..out_end]`.
    out: Box<[u8]>,
    out_start: usize,
    out_end: usize,
    /// A header with the beginning of its payload, which share a record: `[RECORD]`.
    first: Box<[u8]>,
    /// Messages whose last byte is in `out`.
    sealed: VecDeque<Buffer>,
    /// Bytes as they came: `raw[raw_start..raw_end]`.
    raw: Box<[u8]>,
    raw_start: usize,
    raw_end: usize,
    /// Text that no receive has taken yet: `text[text_start..text_end]`.
    text: Box<[u8]>,
    text_start: usize,
    text_end: usize,
}

impl Link {
    /// Takes over a connection after its handshake.
    pub(super) fn new(
        stream: TcpStream,
        address: String,
        peer: usize,
        run: u64,
        sealer: Sealer,
        opener: Opener,
    ) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let bytes = |count: usize| vec![0; count].into_boxed_slice();
        Ok(Self {
            stream,
            address,
            peer,
            outbox: Outbox::new(run),
            inbox: Inbox::new(run),
            lost: None,
            sealer,
            opener,
            out: bytes(BATCH),
            out_start: 0,
            out_end: 0,
            first: bytes(RECORD),
            sealed: VecDeque::new(),
            raw: bytes(BATCH),
            raw_start: 0,
            raw_end: 0,
            text: bytes(WIRE),
            text_start: 0,
            text_end: 0,
        })
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether a message has not been handed to the system whole.
    pub(super) fn is_sending(&self) -> bool {
        self.out_start < self.out_end || !self.outbox.is_empty()
    }

    /// Whether a message is expected.
    pub(super) fn is_receiving(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Moves what can be moved both ways. Returns whether anything was.
    pub(super) fn progress(&mut self, ready: &mut Ready) -> bool {
        if self.lost.is_some() {
            return false;
        }
        let pulled = self.pull(ready);
        let pushed = self.push(ready);
        let moved = matches!(pulled, Ok(true)) || matches!(pushed, Ok(true));
        if let Err(lost) = pulled {
            self.lost = Some(lost);
        } else if let Err(lost) = pushed {
            // a connection that takes nothing may still hold what the peer sent before
            while self.lost.is_none() {
                match self.pull(ready) {
                    Ok(true) => {}
                    Ok(false) => self.lost = Some(lost.clone()),
                    Err(lost) => self.lost = Some(lost),
                }
            }
        }
        moved
    }

    /// Encrypts and writes while the system takes it.
    pub(super) fn push(&mut self, ready: &mut Ready) -> Result<bool, Lost> {
        let mut moved = false;
        loop {
            if self.out_start == self.out_end {
                self.sealed.drain(..).for_each(|sent| ready.push(self.peer, Kind::Sent, sent));
                self.seal()?;
                if self.out_end == 0 {
                    return Ok(moved);
                }
            }
            match self.stream.write(&self.out[self.out_start..self.out_end]) {
                Ok(count) => self.out_start += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(moved),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Lost::gone(format!("lost its connection: {error}"))),
            }
            moved = true;
        }
    }

    /// Fills the empty batch with records.
    fn seal(&mut self) -> Result<(), Lost> {
        (self.out_start, self.out_end) = (0, 0);
        while self.out_end + WIRE <= self.out.len() {
            let Some((header, payload)) = self.outbox.front() else { break };
            let (count, sealed);
            if header.is_empty() {
                count = payload.len().min(RECORD);
                sealed = self.sealer.seal(&payload[..count], &mut self.out[self.out_end..]);
            } else {
                // a record always has room for a whole header
                let beginning = payload.len().min(RECORD - HEADER);
                count = header.len() + beginning;
                self.first[..header.len()].copy_from_slice(header);
                self.first[header.len()..count].copy_from_slice(&payload[..beginning]);
                sealed = self.sealer.seal(&self.first[..count], &mut self.out[self.out_end..]);
            }
            self.out_end += sealed.map_err(|error| Lost::garbage(format!("cannot be encrypted for: {error}")))?;
            self.sealed.extend(self.outbox.advance(count));
        }
        Ok(())
    }

    /// Reads and decrypts while there are receives for it.
    fn pull(&mut self, ready: &mut Ready) -> Result<bool, Lost> {
        let mut moved = false;
        let mut read = 0;
        while !self.inbox.is_empty() {
            if self.text_start < self.text_end {
                let space = self.inbox.space();
                let count = space.len().min(self.text_end - self.text_start);
                space[..count].copy_from_slice(&self.text[self.text_start..self.text_start + count]);
                self.text_start += count;
                self.take(count, ready)?;
                moved = true;
            } else if let Some(end) = self.record() {
                self.open(end, ready)?;
                moved = true;
            } else if read >= TURN {
                break;
            } else {
                match self.fill()? {
                    0 => break,
                    count => read += count,
                }
                moved = true;
            }
        }
        Ok(moved)
    }

    fn take(&mut self, count: usize, ready: &mut Ready) -> Result<(), Lost> {
        if let Some(message) = self.inbox.advance(count)? {
            ready.push(self.peer, Kind::Received, message);
        }
        Ok(())
    }

    /// Where the first record in `raw` ends, if it is whole.
    fn record(&self) -> Option<usize> {
        let have = &self.raw[self.raw_start..self.raw_end];
        let end = PREFIX + record::body_len(have)?;
        (end <= have.len()).then_some(self.raw_start + end)
    }

    /// Opens the record that ends at `end`: into the message itself if all of it belongs there.
    fn open(&mut self, end: usize, ready: &mut Ready) -> Result<(), Lost> {
        let body = &self.raw[self.raw_start + PREFIX..end];
        let bad = |_| Lost::garbage("sent a record that does not open: tampered with, repeated or lost on the way");
        self.raw_start = end;
        let space = self.inbox.space();
        // room for the tag too, which is opened in place
        if body.len() <= space.len() {
            let count = self.opener.open(body, space).map_err(bad)?;
            return self.take(count, ready);
        }
        (self.text_start, self.text_end) = (0, self.opener.open(body, &mut self.text).map_err(bad)?);
        Ok(())
    }

    /// Reads what has come, as far as there is room. Returns 0 if nothing has.
    fn fill(&mut self) -> Result<usize, Lost> {
        self.raw.copy_within(self.raw_start..self.raw_end, 0);
        (self.raw_start, self.raw_end) = (0, self.raw_end - self.raw_start);
        match self.stream.read(&mut self.raw[self.raw_end..]) {
            Ok(0) if self.raw_end > 0 || self.inbox.is_amid() => {
                Err(Lost::gone("closed its connection in the middle of a message"))
            }
            Ok(0) => Err(Lost::gone("closed its connection")),
            Ok(count) => {
                self.raw_end += count;
                Ok(count)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(error) => Err(Lost::gone(format!("lost its connection: {error}"))),
        }
    }

    /// Says that nothing more will come, and takes in what nobody wanted: to close with bytes unread would reset the
    /// connection, and the peer might lose what it was sent.
    pub(super) fn close(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        // bounded, because a peer may go on sending
        for _ in 0..256 {
            if !matches!(self.stream.read(&mut self.raw), Ok(1..)) {
                break;
            }
        }
    }
}
