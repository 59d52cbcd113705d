//! The one endpoint that all groups of a rank share: messages out, messages in, and what to do when they do not come.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::Operation;
use super::tree::write;
use crate::error::{Error, Result};
use crate::transport::{Buffer, Endpoint, Kind, LinkError};

/// How long a wait goes on before it is asked whether the run was ended elsewhere.
const SLICE: Duration = Duration::from_millis(20);

/// Messages to one peer that may be under way; a pipeline's stage gets this far ahead of the next.
pub const AHEAD: usize = 4;

/// Where in the model a rank is, for errors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// The layer.
    pub layer: usize,
    /// The part of it; empty is nowhere.
    pub part: &'static str,
}

impl Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "layer {} {}", self.layer, self.part)
    }
}

/// Who knows whether the other ranks live.
pub trait Watch: Send + Sync {
    /// Told of everything that begins: an operation, or a part of the start-up, which has a name.
    ///
    /// # Errors
    /// If it is not to begin, because the run has ended.
    fn begins(&self, operation: Operation, part: &'static str) -> Result<()>;

    /// Told when a wait becomes long: the operation, its number and place, and the rank that has not answered.
    fn waiting(&self, operation: Operation, number: u64, place: Place, peer: usize);

    /// Told what this rank does apart from waiting: it starts up (in a part that has a name), computes, or is idle.
    fn working(&self, operation: Operation, part: &'static str);

    /// Why the run has ended, if it has.
    fn ended(&self) -> Option<Error>;

    /// Tells of trouble with a peer on the data path; returns what was decided.
    fn report(&self, peer: usize, error: Error) -> Error;
}

/// What a rank did on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Collectives, sends and receives.
    pub operations: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Time spent waiting for other ranks.
    pub waited: Duration,
    /// Time spent in this room, waiting not counted.
    pub worked: Duration,
}

/// An endpoint with its spare buffers.
pub(super) struct Wire {
    endpoint: Box<dyn Endpoint>,
    watch: Option<Arc<dyn Watch>>,
    spare: Vec<Buffer>,
    // of unfinished subtrees
    pub(super) scratch: Vec<f32>,
    // messages under way to every peer
    ahead: Vec<usize>,
    pub(super) place: Place,
    pub(super) stats: Stats,
    operation: Operation,
    // the watch was told of a long wait, or that this rank works
    told: bool,
    // what it does apart from waiting
    state: (Operation, &'static str),
}

impl Wire {
    pub(super) fn new(endpoint: Box<dyn Endpoint>, watch: Option<Arc<dyn Watch>>) -> Self {
        let ahead = vec![0; endpoint.world_size()];
        let (place, stats) = (Place::default(), Stats::default());
        Self {
            endpoint,
            watch,
            spare: Vec::new(),
            scratch: Vec::new(),
            ahead,
            place,
            stats,
            operation: Operation::Idle,
            told: false,
            state: (Operation::Idle, ""),
        }
    }

    /// Moves what can be moved while no operation runs: connections that are idle must say something now and then.
    pub(super) fn tend(&mut self) {
        // once for what has come, once more for what is to be said
        for _ in 0..2 {
            while let Ok(Some(done)) = self.endpoint.poll(Instant::now()) {
                if done.kind == Kind::Sent {
                    self.ahead[done.peer] -= 1;
                    self.recycle(done.buffer);
                }
            }
            // what is wrong with a peer is found again by the operation that needs it
        }
    }

    /// Starts the next operation.
    pub(super) fn begin(&mut self, operation: Operation) -> Result<()> {
        self.operation = operation;
        self.stats.operations += 1;
        let Some(watch) = &self.watch else { return Ok(()) };
        watch.begins(operation, "")
    }

    /// Ends an operation that went well: a wait that was told of is over.
    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.told)
            && let Some(watch) = &self.watch
        {
            watch.working(self.state.0, self.state.1);
        }
    }

    /// Says whether this rank has work, apart from what it waits for.
    pub(super) fn busy(&mut self, busy: bool) -> Result<()> {
        self.turn_to(if busy { Operation::Compute } else { Operation::Idle }, "")
    }

    /// Says that a part of the start-up begins, or gets on.
    pub(super) fn starting(&mut self, part: &'static str) -> Result<()> {
        self.turn_to(Operation::Start, part)
    }

    fn turn_to(&mut self, operation: Operation, part: &'static str) -> Result<()> {
        self.state = (operation, part);
        let Some(watch) = &self.watch else { return Ok(()) };
        watch.working(operation, part);
        watch.begins(operation, part)
    }

    /// Lets `watch` be told and asked from now on.
    pub(super) fn watch(&mut self, watch: Arc<dyn Watch>) {
        self.watch = Some(watch);
    }

    /// A spare buffer of at least `bytes` bytes, with that length.
    pub(super) fn buffer(&mut self, bytes: usize) -> Buffer {
        let fits = |buffer: &Buffer| buffer.capacity() >= bytes && buffer.capacity() <= (4 * bytes).max(1 << 16);
        let mut buffer = match self.spare.iter().position(fits) {
            Some(at) => self.spare.swap_remove(at),
            None => Buffer::with_capacity(bytes.next_multiple_of(4096).max(4096)),
        };
        // it has that capacity
        let _ = buffer.set_len(bytes);
        buffer
    }

    /// Takes a buffer back.
    pub(super) fn recycle(&mut self, buffer: Buffer) {
        // the largest ones are not kept for good
        if self.spare.len() < 64 && buffer.capacity() <= 1 << 24 {
            self.spare.push(buffer);
        }
    }

    /// Sends a message; returns as soon as few enough are under way.
    pub(super) fn send(&mut self, peer: usize, message: Buffer) -> Result<()> {
        self.stats.sent += message.len() as u64;
        let posted = self.endpoint.post_send(peer, message);
        posted.map_err(|error| self.trouble(peer, error))?;
        self.ahead[peer] += 1;
        while self.ahead[peer] > AHEAD {
            self.wait(peer)?;
        }
        Ok(())
    }

    /// Sends a message of values, one run after the other: a run alone from where it lies, if the fabric takes it so.
    pub(super) fn send_values(&mut self, peer: usize, runs: &[&[f32]]) -> Result<()> {
        if let ([run], true) = (runs, cfg!(target_endian = "little")) {
            let sent = self.endpoint.send_now(peer, bytemuck::cast_slice(run));
            if sent.map_err(|error| self.trouble(peer, error))? {
                self.stats.sent += size_of_val(*run) as u64;
                return Ok(());
            }
        }
        let mut message = self.buffer(runs.iter().map(|run| run.len() * 4).sum());
        let mut rest = message.bytes_mut();
        for run in runs {
            let (to, after) = rest.split_at_mut(run.len() * 4);
            write(run, to);
            rest = after;
        }
        self.send(peer, message)
    }

    /// Waits until all sends are done.
    pub(super) fn flush(&mut self) -> Result<()> {
        while let Some(peer) = self.ahead.iter().position(|ahead| *ahead > 0) {
            self.wait(peer)?;
        }
        Ok(())
    }

    /// Receives one message of exactly so many bytes from each of `from`, in their order.
    pub(super) fn receive(&mut self, from: &[(usize, usize)]) -> Result<Vec<Buffer>> {
        for (peer, bytes) in from {
            let buffer = self.buffer(*bytes);
            let posted = self.endpoint.post_recv(*peer, buffer);
            posted.map_err(|error| self.trouble(*peer, error))?;
        }
        let mut messages: Vec<Option<Buffer>> = from.iter().map(|_| None).collect();
        while let Some(missing) = messages.iter().position(Option::is_none) {
            let Some((peer, message)) = self.wait(from[missing].0)? else { continue };
            let at = from.iter().zip(&messages).position(|((sender, _), slot)| *sender == peer && slot.is_none());
            let Some(at) = at else {
                let error = Error::msg(format!("{} sent a message nobody waits for", self.endpoint.peer(peer)));
                return Err(self.trouble(peer, error));
            };
            if message.len() != from[at].1 {
                let (peer_name, got, want) = (self.endpoint.peer(peer), message.len(), from[at].1);
                let error = format!("{peer_name} sent {got} bytes in {} where {want} belong", self.describe());
                let error = Error::msg(error).hint("the ranks do not run the same program; update all of them");
                return Err(self.trouble(peer, error));
            }
            messages[at] = Some(message);
        }
        Ok(messages.into_iter().flatten().collect())
    }

    /// Receives one message of at most `most` bytes.
    pub(super) fn receive_any(&mut self, peer: usize, most: usize) -> Result<Buffer> {
        let buffer = self.buffer(most);
        let posted = self.endpoint.post_recv(peer, buffer);
        posted.map_err(|error| self.trouble(peer, error))?;
        loop {
            if let Some((_, message)) = self.wait(peer)? {
                return Ok(message);
            }
        }
    }

    /// Waits for the next completion: a message that came, or nothing when one was sent.
    fn wait(&mut self, peer: usize) -> Result<Option<(usize, Buffer)>> {
        let start = Instant::now();
        loop {
            let polled = self.endpoint.poll(Instant::now() + SLICE);
            match polled {
                Ok(Some(completion)) => {
                    self.stats.waited += start.elapsed();
                    return Ok(match completion.kind {
                        Kind::Sent => {
                            self.ahead[completion.peer] -= 1;
                            self.recycle(completion.buffer);
                            None
                        }
                        Kind::Received => Some((completion.peer, completion.buffer)),
                    });
                }
                Ok(None) => {
                    if let Some(watch) = &self.watch {
                        // waiting for a command is having nothing to do
                        let idle = (self.state.0, self.operation) == (Operation::Idle, Operation::Broadcast);
                        if !idle && !std::mem::replace(&mut self.told, true) {
                            watch.waiting(self.operation, self.stats.operations, self.place, peer);
                        }
                        if let Some(cause) = watch.ended() {
                            return Err(cause);
                        }
                    }
                }
                // not always the one that is waited for
                Err(LinkError { peer, error }) => return Err(self.trouble(peer, error)),
            }
        }
    }

    /// `all_reduce #8841 (layer 17 mlp)`.
    fn describe(&self) -> String {
        let place = if self.place.part.is_empty() { String::new() } else { format!(" ({})", self.place) };
        format!("{} #{}{place}", self.operation, self.stats.operations)
    }

    fn trouble(&self, peer: usize, error: Error) -> Error {
        match &self.watch {
            Some(watch) => {
                // where it happened, to the very operation
                watch.waiting(self.operation, self.stats.operations, self.place, peer);
                watch.report(peer, error)
            }
            None => error.context(self.describe()),
        }
    }
}
