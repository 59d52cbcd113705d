//! Byte pipes between ranks: one contract, [`Endpoint`], and a module for each fabric that keeps it.
//!
//! A fabric moves whole messages between every two ranks, in order and once, and knows nothing of what is in them.
//! Each frame carries the run, a sequence number and its length, so that a lost, replayed or foreign frame is an error
//! at once and never a wrong number. Memory is bounded by what the caller posts plus a fixed ring or socket buffer a
//! peer: a message whose receive was not posted yet waits where it is, and its sender waits behind it.

mod backoff;
mod frame;
mod inherit;
pub mod loopback;
mod lost;
mod mail;
mod pieces;
mod pump;
pub mod rdma;
pub mod relay;
pub mod shm;
pub mod tcp;
pub mod verbs;

use std::time::Instant;

use crate::error::{Error, Result};

pub use backoff::default_spin;
pub use inherit::{ignores, inherit, inherited};
pub use lost::{Disconnected, End, LinkError, Polled};

/// The longest message, in bytes. Lengths off the wire are held to it before anything is allocated.
pub const MAX_MESSAGE: usize = 256 << 20;

/// A message's memory: allocated once with a fixed capacity, moved into a transport and back in the completion.
pub struct Buffer {
    /// All of the capacity, `[capacity]`.
    data: Box<[u8]>,
    len: usize,
}

impl Buffer {
    /// Allocates `bytes` of capacity, zeroed; the message in it is empty.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { data: vec![0; bytes].into_boxed_slice(), len: 0 }
    }

    /// The longest message it holds, in bytes.
    pub fn capacity(&self) -> usize {
        self.data.len()
    }

    /// The length of the message in it, in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the message in it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes the message `len` bytes long; bytes beyond the old length are whatever was written there last.
    ///
    /// # Errors
    /// If `len` is more than the capacity.
    pub fn set_len(&mut self, len: usize) -> Result<()> {
        if len > self.capacity() {
            return Err(Error::msg(format!("a message of {len} bytes in a buffer of {}", self.capacity())));
        }
        self.len = len;
        Ok(())
    }

    /// The message, `[len]`.
    pub fn bytes(&self) -> &[u8] {
        &self.data[..self.len]
    }

    /// The message, to be written, `[len]`.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.data[..self.len]
    }

    /// Makes the message a copy of `message`.
    ///
    /// # Errors
    /// If it is longer than the capacity.
    pub fn fill(&mut self, message: &[u8]) -> Result<()> {
        self.set_len(message.len())?;
        self.bytes_mut().copy_from_slice(message);
        Ok(())
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.len, self.capacity())
    }
}

/// What has completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The fabric has taken the whole message: the buffer may be used again. It does not say that the peer has it.
    Sent,
    /// A message has arrived whole and is in the buffer.
    Received,
}

/// A posted operation that is done, with its buffer.
#[derive(Debug)]
pub struct Completion {
    /// The rank that the message went to or came from.
    pub peer: usize,
    /// Which of the two it was.
    pub kind: Kind,
    /// The buffer that was posted. A received message sets its length.
    pub buffer: Buffer,
}

/// One rank's end of a full mesh of ordered, reliable message pipes.
///
/// - Operations of one direction to one peer complete in the order in which they were posted: the k-th receive posted
///   for a peer gets its k-th message. Completions of different peers or directions come in any order.
/// - Work moves while a method of the endpoint runs: a caller with operations outstanding keeps polling.
/// - A peer that is gone is an error for whoever has an operation outstanding with it, after everything that it sent
///   before has been delivered; a rank that wants nothing of it does not notice, so ranks may finish one by one.
/// - A fabric may hold a send back until its receive is posted: waiting for `Sent` before posting the receives that the
///   peer's own sends wait for is a deadlock (that ends at the deadline).
/// - Dropping an endpoint closes it: what completed as `Sent` still reaches its peer.
pub trait Endpoint: Send {
    /// This rank.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn world_size(&self) -> usize;

    /// The name of a rank for people: `rank 2 (127.0.0.1:50913)`.
    fn peer(&self, rank: usize) -> String;

    /// Queues a message for a peer and sends what fits at once; never blocks.
    ///
    /// # Errors
    /// If the peer is this rank or no rank, or the message is longer than [`MAX_MESSAGE`].
    fn post_send(&mut self, peer: usize, message: Buffer) -> Result<()>;

    /// Queues a buffer for the peer's next message that has none yet; never blocks.
    ///
    /// # Errors
    /// If the peer is this rank or no rank.
    fn post_recv(&mut self, peer: usize, into: Buffer) -> Result<()>;

    /// Sends a message from where it lies, if the fabric takes the whole of it at once: as if it had been posted and was
    /// `Sent`, but nothing completes. Otherwise nothing is sent, and it is to be posted.
    ///
    /// # Errors
    /// As [`Endpoint::post_send`].
    fn send_now(&mut self, _peer: usize, _message: &[u8]) -> Result<bool> {
        Ok(false)
    }

    /// Returns the next completion, or `None` once `deadline` has passed. Moves what it can even if it already has.
    ///
    /// # Errors
    /// If a peer with an operation outstanding is gone, sent a frame of another run or out of sequence, sent more than
    /// the posted buffer holds, or sent what is no frame. The error names the peer, and comes again at the next call.
    fn poll(&mut self, deadline: Instant) -> Polled;
}

/// Refuses a peer that is this rank or none at all.
fn check_peer(rank: usize, world_size: usize, peer: usize) -> Result<()> {
    if peer == rank {
        return Err(Error::msg(format!("rank {rank} exchanges no message with itself")));
    }
    if peer >= world_size {
        return Err(Error::msg(format!(
            "there is no rank {peer}: the ranks are 0 to {}",
            world_size.saturating_sub(1)
        )));
    }
    Ok(())
}

/// Refuses a message that no receiver would accept.
fn check_message(message: &Buffer) -> Result<()> {
    if message.len() > MAX_MESSAGE {
        return Err(Error::msg(format!("a message of {} bytes is over the limit of {MAX_MESSAGE}", message.len())));
    }
    Ok(())
}
