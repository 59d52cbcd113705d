//! Ranks that are threads of one process: messages move through memory, for tests and for one machine.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::backoff::{Backoff, Spin, Step, default_spin};
use super::mail::{Lost, Ready};
use super::{Buffer, Endpoint, Kind, LinkError, Polled, check_message, check_peer};
use crate::error::Result;

/// What other ranks have left for one rank.
struct Door {
    inside: Mutex<Inside>,
    bell: Condvar,
    /// Counts what was left, so that a spinning rank need not take the lock to look.
    rings: AtomicU64,
    closed: AtomicBool,
}

struct Inside {
    /// Messages by sender, in the sender's own buffers: `[world_size]` queues.
    come: Vec<VecDeque<Buffer>>,
    /// Buffers that receivers have emptied, with the receiver.
    back: Vec<(usize, Buffer)>,
}

impl Door {
    fn new(world_size: usize) -> Self {
        let inside = Inside { come: (0..world_size).map(|_| VecDeque::new()).collect(), back: Vec::new() };
        Self {
            inside: Mutex::new(inside),
            bell: Condvar::new(),
            rings: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// The queues stay whole even if a thread panicked while it held the lock: each change is a single push or pop.
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, put: impl FnOnce(&mut Inside)) {
        let mut inside = self.lock();
        put(&mut inside);
        self.rings.fetch_add(1, Ordering::Release);
        drop(inside);
        self.bell.notify_one();
    }
}

/// One thread's end of a mesh made by [`mesh`].
pub struct Loopback {
    rank: usize,
    doors: Arc<Vec<Door>>,
    spin: Spin,
    /// Receives by sender, `[world_size]`.
    posted: Vec<VecDeque<Buffer>>,
    /// Sends that have not come back, by receiver, `[world_size]`.
    out: Vec<usize>,
    lost: Vec<Option<Lost>>,
    ready: Ready,
    /// Rings that have been answered.
    seen: u64,
}

/// Returns the ends of a full mesh of `world_size` ranks, by rank.
pub fn mesh(world_size: usize) -> Vec<Loopback> {
    let doors: Arc<Vec<Door>> = Arc::new((0..world_size).map(|_| Door::new(world_size)).collect());
    let end = |rank| Loopback {
        rank,
        doors: Arc::clone(&doors),
        spin: Spin::new(default_spin(world_size)),
        posted: (0..world_size).map(|_| VecDeque::new()).collect(),
        out: vec![0; world_size],
        lost: vec![None; world_size],
        ready: Ready::default(),
        seen: 0,
    };
    (0..world_size).map(end).collect()
}

impl Loopback {
    /// Sets how long a wait spins before it yields.
    #[must_use]
    pub fn with_spin(mut self, spin: Duration) -> Self {
        self.spin = Spin::new(spin);
        self
    }

    /// Takes in what others have left.
    fn collect(&mut self) {
        let doors = Arc::clone(&self.doors);
        let mut emptied = Vec::new();
        {
            let mut inside = doors[self.rank].lock();
            self.seen = doors[self.rank].rings.load(Ordering::Relaxed);
            for (peer, buffer) in inside.back.drain(..) {
                self.out[peer] -= 1;
                self.ready.push(peer, Kind::Sent, buffer);
            }
            for (peer, come) in inside.come.iter_mut().enumerate() {
                let posted = &mut self.posted[peer];
                while self.lost[peer].is_none() && !come.is_empty() && !posted.is_empty() {
                    let (Some(message), Some(mut into)) = (come.pop_front(), posted.pop_front()) else { break };
                    if into.fill(message.bytes()).is_err() {
                        let (length, capacity) = (message.len(), into.capacity());
                        let what = format!("sent a message of {length} bytes into a receive of {capacity}");
                        self.lost[peer] = Some(Lost::garbage(what));
                        posted.push_front(into);
                    } else {
                        self.ready.push(peer, Kind::Received, into);
                    }
                    emptied.push((peer, message));
                }
            }
        }
        for (peer, message) in emptied {
            doors[peer].leave(|inside| inside.back.push((self.rank, message)));
        }
    }

    /// Finds a peer that is gone and still wanted.
    fn check(&mut self) -> std::result::Result<(), LinkError> {
        let wanted = |end: &Self, peer: usize| !end.posted[peer].is_empty() || end.out[peer] > 0;
        for peer in 0..self.posted.len() {
            if !wanted(self, peer) {
                continue;
            }
            if self.lost[peer].is_none() && self.doors[peer].closed.load(Ordering::Acquire) {
                // it may have left something before it closed
                self.collect();
                if self.ready.is_empty() && wanted(self, peer) {
                    self.lost[peer] = Some(Lost::gone("has closed its endpoint"));
                }
            }
            if let Some(lost) = &self.lost[peer] {
                return Err(lost.error(self, peer));
            }
        }
        Ok(())
    }
}

impl Endpoint for Loopback {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world_size(&self) -> usize {
        self.doors.len()
    }
    fn peer(&self, rank: usize) -> String {
        format!("rank {rank} (a thread)")
    }

    fn post_send(&mut self, peer: usize, message: Buffer) -> Result<()> {
        check_peer(self.rank, self.doors.len(), peer)?;
        check_message(&message)?;
        self.out[peer] += 1;
        self.doors[peer].leave(|inside| inside.come[self.rank].push_back(message));
        Ok(())
    }

    fn post_recv(&mut self, peer: usize, into: Buffer) -> Result<()> {
        check_peer(self.rank, self.doors.len(), peer)?;
        self.posted[peer].push_back(into);
        // what has come already was no ring to wait for
        self.seen = u64::MAX;
        Ok(())
    }

    fn poll(&mut self, deadline: Instant) -> Polled {
        let mut backoff = Backoff::new(self.spin, deadline);
        let mut park = None;
        loop {
            if let Some(done) = self.ready.pop() {
                self.spin = backoff.reset();
                return Ok(Some(done));
            }
            let doors = Arc::clone(&self.doors);
            let door = &doors[self.rank];
            if let Some(nap) = park.take() {
                let inside = door.lock();
                if door.rings.load(Ordering::Relaxed) == self.seen {
                    drop(door.bell.wait_timeout(inside, nap));
                }
            }
            if door.rings.load(Ordering::Acquire) != self.seen {
                self.collect();
                backoff.reset();
                continue;
            }
            self.check()?;
            match backoff.step() {
                Step::Again => {}
                Step::Park(nap) => park = Some(nap),
                Step::Over => return Ok(self.ready.pop()),
            }
        }
    }
}

/// Tells the others, who are woken to look.
impl Drop for Loopback {
    fn drop(&mut self) {
        self.doors[self.rank].closed.store(true, Ordering::Release);
        for door in self.doors.iter() {
            door.leave(|_| {});
        }
    }
}
