//! An authenticated, encrypted stream of messages over a blocking TCP connection, for control traffic.
//!
//! A message is its length (4 bytes, little-endian) and its bytes, cut into records; each message begins a record. The
//! two directions share nothing but the socket, so one thread may write while another reads.

use std::fmt::Display;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::handshake::{self, left};
use super::record::{self, Opener, PREFIX, RECORD, Sealer, WIRE};
use crate::error::{Error, Result};
use crate::transport::{Disconnected, End};

/// How long a send may wait for a peer that does not read.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a message may take from its first byte to its last.
const STALL: Duration = Duration::from_secs(10);

/// Bytes of a message's length.
const LENGTH: usize = 4;

/// Both directions of a connection.
pub struct Secure {
    reader: SecureReader,
    writer: SecureWriter,
}

impl Secure {
    /// Performs the handshake as the side that connected. `whom` names the other side in errors.
    ///
    /// # Errors
    /// If the other side has another key, is no tbshard, closes or does not answer by `deadline`.
    pub fn connect(mut stream: TcpStream, key: &[u8; 32], deadline: Instant, whom: &str) -> Result<Self> {
        let (sealer, opener) = record::directions(handshake::initiate(&mut stream, key, deadline, whom)?);
        Self::new(stream, sealer, opener, whom)
    }

    /// Performs the handshake as the side that was connected to. `whom` names the other side in errors.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn accept(mut stream: TcpStream, key: &[u8; 32], deadline: Instant, whom: &str) -> Result<Self> {
        let mut first = [0; handshake::WIRE];
        handshake::read_exact(&mut stream, &mut first, deadline).map_err(|failure| failure.error(whom))?;
        let (answer, cipher) = handshake::respond(key, &first)
            .map_err(|_| Error::msg(format!("{whom} has another key")).hint(handshake::OTHER_KEY))?;
        let (sealer, opener) = record::directions(cipher);
        stream.write_all(&answer).map_err(|error| handshake::Failure::from(error).error(whom))?;
        Self::new(stream, sealer, opener, whom)
    }

    /// Takes over a blocking connection after its handshake.
    pub(super) fn new(stream: TcpStream, sealer: Sealer, opener: Opener, whom: &str) -> Result<Self> {
        let wrong = |error| Error::from_std(error).context(format!("the connection to {whom}"));
        stream.set_nodelay(true).map_err(wrong)?;
        stream.set_write_timeout(Some(Duration::from_millis(500))).map_err(wrong)?;
        let (other, whom) = (stream.try_clone().map_err(wrong)?, whom.to_owned());
        let writer = SecureWriter { stream: other, sealer, wire: vec![0; WIRE], whom: whom.clone(), broken: false };
        let reader = SecureReader {
            stream,
            opener,
            wire: vec![0; WIRE].into_boxed_slice(),
            have: 0,
            message: Vec::new(),
            length: None,
            text: vec![0; WIRE].into_boxed_slice(),
            begun: None,
            ended: None,
            whom,
        };
        Ok(Self { reader, writer })
    }

    /// Sends a message; see [`SecureWriter::send`].
    ///
    /// # Errors
    /// As there.
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        self.writer.send(message)
    }

    /// Receives a message; see [`SecureReader::recv`].
    ///
    /// # Errors
    /// As there.
    pub fn recv(&mut self, max_len: usize, deadline: Instant) -> Received {
        self.reader.recv(max_len, deadline)
    }

    /// Returns the directions, each for a thread of its own.
    pub fn split(self) -> (SecureReader, SecureWriter) {
        (self.reader, self.writer)
    }

    /// Whether the other side still holds the connection, as far as the system knows.
    pub(super) fn is_open(&self) -> bool {
        let stream = &self.reader.stream;
        let look = || {
            stream.set_nonblocking(true)?;
            let seen = stream.peek(&mut [0]);
            stream.set_nonblocking(false)?;
            seen
        };
        match look() {
            Ok(count) => count > 0,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// The sending direction.
pub struct SecureWriter {
    stream: TcpStream,
    sealer: Sealer,
    /// The record under way, `[WIRE]`.
    wire: Vec<u8>,
    whom: String,
    broken: bool,
}

impl SecureWriter {
    /// Sends a message, at most 4 GiB; blocks while the other side does not read, at most [`SEND_TIMEOUT`].
    ///
    /// # Errors
    /// If the connection is lost, or the other side did not read in time; nothing can be sent after that.
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        let whom = self.whom.clone();
        if self.broken {
            return Err(Error::msg(format!("the connection to {whom} is broken")));
        }
        self.broken = true;
        let length = u32::try_from(message.len()).map_err(Error::from_std)?.to_le_bytes();
        let deadline = Instant::now() + SEND_TIMEOUT;
        let (head, rest) = message.split_at(message.len().min(RECORD - LENGTH));
        self.record(&[&length[..], head].concat(), deadline)?;
        for text in rest.chunks(RECORD) {
            self.record(text, deadline)?;
        }
        self.broken = false;
        Ok(())
    }

    fn record(&mut self, text: &[u8], deadline: Instant) -> Result<()> {
        let whom = &self.whom;
        let sealed = self.sealer.seal(text, &mut self.wire);
        let end = sealed.map_err(|error| Error::from_std(error).context(format!("encrypting for {whom}")))?;
        let mut start = 0;
        while start < end {
            match self.stream.write(&self.wire[start..end]) {
                Ok(count) => start += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= deadline {
                        return Err(Error::msg(format!("{whom} has not read for {} s", SEND_TIMEOUT.as_secs())));
                    }
                }
                Err(error) => return Err(Error::from_std(error).context(format!("sending to {whom}"))),
            }
        }
        Ok(())
    }

    /// Tells the other side that nothing more will come. A reader of this side goes on.
    pub fn shutdown(&mut self) {
        self.broken = true;
        // fails only if the connection is gone already
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

/// A message, none by the deadline, or the end of the connection.
pub type Received = std::result::Result<Option<Vec<u8>>, Disconnected>;

/// The receiving direction.
pub struct SecureReader {
    stream: TcpStream,
    opener: Opener,
    /// Bytes of the record under way, `[WIRE]`, of which `have` have come.
    wire: Box<[u8]>,
    have: usize,
    /// The message under way and its length, once known.
    message: Vec<u8>,
    length: Option<usize>,
    text: Box<[u8]>,
    /// When the message under way began.
    begun: Option<Instant>,
    /// How the connection ended, once it has.
    ended: Option<End>,
    whom: String,
}

impl SecureReader {
    /// Returns the next message, or `None` if it has not come whole by `deadline`; what has come is kept for the next
    /// call, but a message that takes more than 10 s from its first byte is an error.
    ///
    /// # Errors
    /// If the connection is closed or lost, a record was tampered with, repeated or dropped, or the message is longer
    /// than `max_len` (which is checked before anything is allocated for it). Nothing can be received after that.
    pub fn recv(&mut self, max_len: usize, deadline: Instant) -> Received {
        if let Some(end) = self.ended {
            return Err(Disconnected::new(end, format_args!("the connection to {} is broken", self.whom)));
        }
        let received = self.receive(max_len, deadline);
        self.ended = received.as_ref().err().map(|disconnected| disconnected.end);
        received
    }

    fn receive(&mut self, max_len: usize, deadline: Instant) -> Received {
        loop {
            // read a record's prefix, then the rest of it, and never a byte of the next
            let body = record::body_len(&self.wire[..self.have]);
            let need = body.map_or(PREFIX, |body| PREFIX + body);
            if body.is_some() && self.have == need {
                self.have = 0;
                if let Some(message) = self.open(need, max_len)? {
                    return Ok(Some(message));
                }
                continue;
            }
            if need > WIRE {
                return Err(self.lost(End::Garbled, "sent a record that is too long"));
            }
            if self.begun.is_some_and(|begun| begun.elapsed() > STALL) {
                return Err(self.lost(End::Broken, "stopped in the middle of a message"));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            let failed = |error| {
                let error = Error::from_std(error).context(format!("receiving from {}", self.whom));
                Disconnected { end: End::Broken, error }
            };
            self.stream.set_read_timeout(Some(left(deadline))).map_err(failed)?;
            match self.stream.read(&mut self.wire[self.have..need]) {
                Ok(0) if self.begun.is_some() => {
                    return Err(self.lost(End::Broken, "closed the connection in the middle of a message"));
                }
                Ok(0) => return Err(self.lost(End::Closed, "closed the connection")),
                Ok(count) => {
                    self.have += count;
                    self.begun.get_or_insert_with(Instant::now);
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    _ => return Err(failed(error)),
                },
            }
        }
    }

    fn lost(&self, end: End, what: impl Display) -> Disconnected {
        Disconnected::new(end, format_args!("{} {what}", self.whom))
    }

    /// Opens the record in `wire[..end]` and returns the message if that was its last.
    fn open(&mut self, end: usize, max_len: usize) -> Received {
        let opened = self.opener.open(&self.wire[PREFIX..end], &mut self.text);
        let count = opened.map_err(|_| {
            let garbled = self.lost(End::Garbled, "sent a record that does not open: tampered with, repeated or lost");
            let hint = "something between the two machines changes what they say";
            Disconnected { error: garbled.error.hint(hint), ..garbled }
        })?;
        let garbled = |what: String| Err(self.lost(End::Garbled, what));
        let mut text = &self.text[..count];
        if self.length.is_none() {
            let Some((length, rest)) = text.split_first_chunk::<LENGTH>() else {
                return garbled(format!("sent a record of {count} bytes where a message begins"));
            };
            let length = u32::from_le_bytes(*length) as usize;
            if length > max_len {
                return garbled(format!("announced a message of {length} bytes, over {max_len}"));
            }
            (self.length, text) = (Some(length), rest);
        }
        self.message.extend_from_slice(text);
        let length = self.length.unwrap_or_default();
        if self.message.len() > length || (text.is_empty() && self.message.len() < length) {
            return Err(self.lost(End::Garbled, "sent records that do not add up to their message"));
        }
        if self.message.len() < length {
            return Ok(None);
        }
        (self.length, self.begun) = (None, None);
        Ok(Some(std::mem::take(&mut self.message)))
    }
}
