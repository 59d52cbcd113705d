//! Ranks of one machine: a lock-free ring of bytes in shared memory for each ordered pair of them.
//!
//! While both sides are awake a message costs two copies and no system call: the receiver sees the producer's position
//! move. A rank that has waited long enough arms its bell and sleeps; only then does a peer pay for waking it.

mod map;
#[cfg(test)]
mod model;
mod park;
mod ring;
mod segment;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::backoff::{Spin, default_spin};
use super::mail::{Inbox, Lost, Outbox, Ready};
use super::pump::{self, Pump};
use super::{Buffer, Endpoint, Kind, LinkError, Polled, check_message, check_peer};
use crate::error::Result;
use map::{Lane, Map};
use ring::{Consumer, Corrupt, Producer};

pub use segment::{RING_BYTES, Segment};

/// State of a rank whose end has been taken.
const TAKEN: u32 = 1;
/// State of a rank whose end was dropped.
const CLOSED: u32 = 2;

/// Bytes between two publications of a long message, so that the receiver copies out while the sender copies in.
const CHUNK: usize = 32 << 10;

/// The two rings between this rank and a peer.
struct Pair {
    outbox: Outbox,
    inbox: Inbox,
    to: Producer<Lane>,
    from: Consumer<Lane>,
    lost: Option<Lost>,
}

/// One rank's end of the rings in a [`Segment`].
pub struct Shm {
    rank: usize,
    map: Arc<Map>,
    spin: Spin,
    /// By rank; this rank's own is there and unused.
    pairs: Vec<Pair>,
    ready: Ready,
}

impl Shm {
    fn new(map: &Arc<Map>, rank: usize) -> Self {
        let pair = |peer| Pair {
            outbox: Outbox::new(map.run()),
            inbox: Inbox::new(map.run()),
            to: Producer::new(Lane::new(map, rank, peer)),
            from: Consumer::new(Lane::new(map, peer, rank)),
            lost: None,
        };
        let pairs = (0..map.world_size()).map(pair).collect();
        let spin = Spin::new(default_spin(map.world_size()));
        Self { rank, map: Arc::clone(map), spin, pairs, ready: Ready::default() }
    }

    /// Sets how long a wait spins before it yields.
    #[must_use]
    pub fn with_spin(mut self, spin: Duration) -> Self {
        self.spin = Spin::new(spin);
        self
    }
}

fn corrupt(_: Corrupt) -> Lost {
    Lost::garbage("wrote a position into shared memory that cannot be")
}

fn wake(map: &Map, peer: usize) {
    if ring::ring(map.bell(peer)) {
        park::wake(map.bell(peer));
    }
}

/// Copies messages into the ring to `peer` while they fit.
fn push(peer: usize, pair: &mut Pair, map: &Map, ready: &mut Ready) -> std::result::Result<bool, Lost> {
    let mut moved = false;
    while let Some((header, payload)) = pair.outbox.front() {
        let mut count = pair.to.write(header).map_err(corrupt)?;
        if count == header.len() {
            count += pair.to.write(&payload[..payload.len().min(CHUNK)]).map_err(corrupt)?;
        }
        if count == 0 {
            break;
        }
        if let Some(sent) = pair.outbox.advance(count) {
            ready.push(peer, Kind::Sent, sent);
        }
        pair.to.publish();
        wake(map, peer);
        moved = true;
    }
    Ok(moved)
}

/// Copies messages out of the ring from `peer` while there are receives for them.
fn pull(peer: usize, pair: &mut Pair, map: &Map, ready: &mut Ready) -> std::result::Result<bool, Lost> {
    let mut moved = false;
    let mut held = 0;
    while !pair.inbox.is_empty() {
        let space = pair.inbox.space();
        let chunk = space.len().min(CHUNK);
        let count = pair.from.read(&mut space[..chunk]).map_err(corrupt)?;
        if count == 0 {
            break;
        }
        moved = true;
        held += count;
        if let Some(message) = pair.inbox.advance(count)? {
            ready.push(peer, Kind::Received, message);
        }
        if held >= CHUNK {
            held = 0;
            pair.from.release();
            wake(map, peer);
        }
    }
    if pair.from.release() {
        wake(map, peer);
    }
    Ok(moved)
}

impl Pump for Shm {
    fn ready(&mut self) -> &mut Ready {
        &mut self.ready
    }
    fn spin(&mut self) -> &mut Spin {
        &mut self.spin
    }

    fn progress(&mut self) -> bool {
        let mut moved = false;
        for (peer, pair) in self.pairs.iter_mut().enumerate() {
            if pair.lost.is_some() {
                continue;
            }
            let result = push(peer, pair, &self.map, &mut self.ready).and_then(|pushed| {
                let pulled = pull(peer, pair, &self.map, &mut self.ready)?;
                Ok(pushed || pulled)
            });
            match result {
                Ok(news) => moved |= news,
                Err(lost) => pair.lost = Some(lost),
            }
        }
        moved
    }

    fn check(&mut self) -> std::result::Result<(), LinkError> {
        for peer in 0..self.pairs.len() {
            let wanted = |pair: &Pair| !pair.outbox.is_empty() || !pair.inbox.is_empty();
            if !wanted(&self.pairs[peer]) {
                continue;
            }
            if self.pairs[peer].lost.is_none() && self.map.state(peer).load(Ordering::Acquire) == CLOSED {
                // what it sent before it closed is visible now, and comes first
                if self.progress() || !self.ready.is_empty() {
                    return Ok(());
                }
                self.pairs[peer].lost.get_or_insert_with(|| Lost::gone("has closed its end of shared memory"));
            }
            if let Some(lost) = &self.pairs[peer].lost {
                return Err(lost.error(self, peer));
            }
        }
        Ok(())
    }

    fn park(&mut self, nap: Duration) -> bool {
        ring::arm(self.map.bell(self.rank));
        let moved = self.progress();
        if !moved {
            park::sleep(self.map.bell(self.rank), nap);
        }
        ring::disarm(self.map.bell(self.rank));
        moved
    }
}

impl Endpoint for Shm {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world_size(&self) -> usize {
        self.pairs.len()
    }
    fn peer(&self, rank: usize) -> String {
        format!("rank {rank} (shared memory)")
    }

    fn post_send(&mut self, peer: usize, message: Buffer) -> Result<()> {
        check_peer(self.rank, self.pairs.len(), peer)?;
        check_message(&message)?;
        let pair = &mut self.pairs[peer];
        pair.outbox.push(message);
        if pair.lost.is_none() {
            pair.lost = push(peer, pair, &self.map, &mut self.ready).err();
        }
        Ok(())
    }

    fn post_recv(&mut self, peer: usize, into: Buffer) -> Result<()> {
        check_peer(self.rank, self.pairs.len(), peer)?;
        self.pairs[peer].inbox.post(into);
        Ok(())
    }

    fn poll(&mut self, deadline: Instant) -> Polled {
        pump::poll(self, deadline)
    }
}

/// Tells the others, who are woken to look. What was sent stays in the rings for them.
impl Drop for Shm {
    fn drop(&mut self) {
        self.map.state(self.rank).store(CLOSED, Ordering::Release);
        (0..self.pairs.len()).filter(|peer| *peer != self.rank).for_each(|peer| wake(&self.map, peer));
    }
}
