//! A group of ranks and its simplest operations; the collectives are beside it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::control::Operation;
use super::tree;
use super::wire::{Place, Stats, Watch, Wire};
use crate::error::{Error, Result};
use crate::partition::{Fold, Leaves};
use crate::transport::Endpoint;

/// How a sum travels. Both ways give the same bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Direct for small vectors, scattered for large ones.
    #[default]
    Auto,
    /// Everyone to everyone: one hop.
    Direct,
    /// reduce_scatter, then all_gather: two hops, less on every link.
    Scatter,
}

/// A group of ranks that compute together. Clones and groups split from it share one endpoint, in one thread at a time.
///
/// **Invariant:** `world_size == 1` is not special to callers: collectives are no-ops there and nobody tests for it.
#[derive(Clone)]
pub struct Communicator {
    // nothing to say to anybody in a world of one
    wire: Option<Arc<Mutex<Wire>>>,
    // the world's ranks that are in this group, ascending
    pub(super) members: Arc<[usize]>,
    pub(super) index: usize,
    pub(super) algorithm: Algorithm,
    // the tree over whole ranks
    pub(super) fold: Arc<Fold>,
}

impl Communicator {
    /// The group of one rank.
    pub fn solo() -> Self {
        Self { wire: None, members: [0].into(), index: 0, algorithm: Algorithm::Auto, fold: over_ranks(1, 0) }
    }

    /// The group of all ranks that `endpoint` connects. `watch` knows whether they live; without one, only what the
    /// endpoint itself notices ends a wait.
    pub fn new(endpoint: Box<dyn Endpoint>, watch: Option<Arc<dyn Watch>>) -> Self {
        let (index, size) = (endpoint.rank(), endpoint.world_size());
        let wire = Some(Arc::new(Mutex::new(Wire::new(endpoint, watch))));
        let fold = over_ranks(size, index);
        Self { wire, members: (0..size).collect(), index, algorithm: Algorithm::Auto, fold }
    }

    /// Lets a thread look after the connections whenever no operation has for `interval`, until the last group is gone. For
    /// fabrics whose idle connections go bad, as RDMA over Thunderbolt is said to: between two commands of a user nothing
    /// else moves.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn tend(&self, interval: Duration) -> Result<()> {
        let Some(wire) = self.wire.as_ref().map(Arc::downgrade) else { return Ok(()) };
        let tend = move || loop {
            std::thread::sleep(interval);
            let Some(wire) = wire.upgrade() else { return };
            // an operation looks after them itself
            if let Ok(mut wire) = wire.try_lock() {
                wire.tend();
            }
        };
        let thread = std::thread::Builder::new().name("tbshard-tend".to_owned()).spawn(tend);
        thread.map(drop).map_err(|error| Error::from_std(error).context("cannot start a thread"))
    }

    /// This rank's number in the group.
    pub fn rank(&self) -> usize {
        self.index
    }

    /// Ranks in the group.
    pub fn world_size(&self) -> usize {
        self.members.len()
    }

    /// The group of the given ranks of this one, of which this rank must be one. All of them call it.
    ///
    /// # Errors
    /// If a rank is not in this group, or this rank is not among them.
    pub fn split(&self, ranks: &[usize]) -> Result<Self> {
        let mut members: Vec<usize> = Vec::new();
        for rank in ranks {
            let outside = || Error::msg(format!("rank {rank} is not in a group of {}", self.world_size()));
            members.push(*self.members.get(*rank).ok_or_else(outside)?);
        }
        members.sort_unstable();
        members.dedup();
        let own = self.members[self.index];
        let outside = || Error::msg(format!("rank {own} splits off a group that it is not in"));
        let index = members.iter().position(|member| *member == own).ok_or_else(outside)?;
        let fold = over_ranks(members.len(), index);
        Ok(Self { members: members.into(), index, fold, ..self.clone() })
    }

    /// The same group with another way to sum.
    #[must_use]
    pub fn with_algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Sends values to rank `to`, which receives as many. Returns when few enough messages are under way.
    ///
    /// # Errors
    /// If there is no such rank, or a rank is lost.
    pub fn send(&self, to: usize, values: &[f32]) -> Result<()> {
        self.send_joined(to, &[values])
    }

    /// As [`Communicator::send`], of several runs of values as one message.
    ///
    /// # Errors
    /// As [`Communicator::send`].
    pub fn send_joined(&self, to: usize, runs: &[&[f32]]) -> Result<()> {
        self.run(Operation::Send, |wire| wire.send_values(self.peer(to)?, runs))
    }

    /// Receives `count` values from rank `from`.
    ///
    /// # Errors
    /// If there is no such rank, a rank is lost, or it sent another number of values.
    pub fn recv(&self, from: usize, count: usize) -> Result<Vec<f32>> {
        self.run(Operation::Recv, |wire| {
            let messages = wire.receive(&[(self.peer(from)?, count * 4)])?;
            let mut values = vec![0.0; count];
            for message in messages {
                tree::read(message.bytes(), &mut values);
                wire.recycle(message);
            }
            Ok(values)
        })
    }

    /// Sends bytes from rank 0 to all; returns them on every rank.
    ///
    /// # Errors
    /// If a rank is lost, or there are more than `most` bytes.
    pub fn broadcast_bytes(&self, bytes: Vec<u8>, most: usize) -> Result<Vec<u8>> {
        if self.world_size() == 1 {
            return Ok(bytes);
        }
        if bytes.len() > most {
            return Err(Error::msg(format!("{} bytes are too many to broadcast, {most} are allowed", bytes.len())));
        }
        self.run(Operation::Broadcast, |wire| {
            if self.index > 0 {
                let message = wire.receive_any(self.members[0], most)?;
                let bytes = message.bytes().to_vec();
                wire.recycle(message);
                return Ok(bytes);
            }
            for peer in &self.members[1..] {
                let mut message = wire.buffer(bytes.len());
                message.bytes_mut().copy_from_slice(&bytes);
                wire.send(*peer, message)?;
            }
            Ok(bytes)
        })
    }

    /// Brings every rank's bytes to rank 0, in the order of the ranks; nothing is returned elsewhere.
    ///
    /// # Errors
    /// If a rank is lost, or there are more than `most` bytes on one.
    pub fn gather_bytes(&self, bytes: &[u8], most: usize) -> Result<Vec<Vec<u8>>> {
        let mut all = vec![bytes.to_vec()];
        if self.world_size() == 1 {
            return Ok(all);
        }
        self.run(Operation::Gather, |wire| {
            if self.index > 0 {
                let mut message = wire.buffer(bytes.len());
                message.bytes_mut().copy_from_slice(bytes);
                wire.send(self.members[0], message)?;
                return Ok(Vec::new());
            }
            for peer in &self.members[1..] {
                let message = wire.receive_any(*peer, most)?;
                all.push(message.bytes().to_vec());
                wire.recycle(message);
            }
            Ok(all)
        })
    }

    /// Waits until everything that was sent is out of this rank's hands.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn flush(&self) -> Result<()> {
        self.run(Operation::Flush, Wire::flush)
    }

    /// Says where in the model this rank is, for errors.
    pub fn at(&self, place: Place) {
        if let Some(mut wire) = self.lock() {
            wire.place = place;
        }
    }

    /// Says whether this rank has work, apart from what it waits for: one without is never called stuck.
    ///
    /// # Errors
    /// If the run has ended.
    pub fn busy(&self, busy: bool) -> Result<()> {
        self.lock().map_or(Ok(()), |mut wire| wire.busy(busy))
    }

    /// Says that the part `part` of the start-up begins, or gets on.
    ///
    /// # Errors
    /// If the run has ended.
    pub fn starting(&self, part: &'static str) -> Result<()> {
        self.lock().map_or(Ok(()), |mut wire| wire.starting(part))
    }

    /// Lets `watch` be told and asked from now on, instead of the one before.
    pub fn watch(&self, watch: Arc<dyn Watch>) {
        if let Some(mut wire) = self.lock() {
            wire.watch(watch);
        }
    }

    /// What this rank did on the wire so far.
    pub fn stats(&self) -> Stats {
        self.lock().map_or_else(Stats::default, |wire| wire.stats)
    }

    fn lock(&self) -> Option<MutexGuard<'_, Wire>> {
        self.wire.as_ref().map(|wire| wire.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The world's number of a rank of this group that is not this one.
    pub(super) fn peer(&self, rank: usize) -> Result<usize> {
        match self.members.get(rank) {
            Some(peer) if rank != self.index => Ok(*peer),
            _ => Err(Error::msg(format!("rank {} of {} has no peer {rank}", self.index, self.world_size()))),
        }
    }

    /// Runs one operation on the wire; in a world of one there is none, and nobody to talk with.
    pub(super) fn run<T>(&self, operation: Operation, work: impl FnOnce(&mut Wire) -> Result<T>) -> Result<T> {
        let Some(mut wire) = self.lock() else {
            return Err(Error::msg(format!("{operation} needs a second rank")));
        };
        let (start, waited) = (Instant::now(), wire.stats.waited);
        wire.begin(operation)?;
        let result = work(&mut wire);
        if result.is_ok() {
            wire.end();
        }
        let spent = start.elapsed().saturating_sub(wire.stats.waited - waited);
        wire.stats.worked += spent;
        result
    }
}

/// The tree whose leaves are the ranks themselves.
fn over_ranks(size: usize, rank: usize) -> Arc<Fold> {
    Arc::new(Fold::shared(Leaves::into_parts(size, 1, size), (0..=size).collect(), rank))
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Communicator(rank {} of {:?})", self.index, self.members)
    }
}
