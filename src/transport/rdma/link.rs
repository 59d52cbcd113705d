//! All lanes to one peer: messages to pieces and back.

use std::collections::VecDeque;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::chunk::{Chunk, HEADER, Kind as ChunkKind};
use super::lane::Lane;
use crate::transport::mail::{Lost, Ready};
use crate::transport::pieces::{At, Pieces};
use crate::transport::verbs::{Slab, Wc};
use crate::transport::{Buffer, Kind};

/// Messages from here on go over all lanes; a shorter one is there before a second lane had begun.
const STRIPED: usize = 256 << 10;

/// How a peer ended, as it said itself over TCP.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Ended {
    /// Chunks that it sent on every lane.
    pub(super) sent: Vec<u32>,
    /// Whether a message of it is not whole.
    pub(super) amid: bool,
}

/// A message that is being sent.
struct Outgoing {
    buffer: Buffer,
    taken: usize,
}

/// A chunk that came before its receive was posted; its slot is not given back.
#[derive(Clone, Copy)]
struct Held {
    lane: usize,
    slot: usize,
    chunk: Chunk,
}

/// Where the next piece goes.
#[derive(Default)]
struct Way {
    /// The number of the message that is next.
    message: u32,
    /// The lane whose turn it is.
    turn: usize,
}

impl Way {
    /// Sends the piece of a message that comes after its first `taken` bytes; returns its length, or none if no lane is open.
    fn piece(
        &mut self,
        lanes: &mut [Lane],
        slabs: &mut [Slab],
        message: &[u8],
        taken: usize,
    ) -> Result<Option<usize>, Lost> {
        let (total, usable) = (message.len(), usable(lanes, message.len()));
        let open = (0..usable).map(|step| (self.turn + step) % usable).find(|lane| lanes[*lane].is_open());
        let Some(number) = open else { return Ok(None) };
        let lane = &mut lanes[number];
        let piece = (total - taken).min(lane.piece());
        // the lane knows the first two
        let chunk =
            Chunk { sequence: 0, taken: 0, kind: ChunkKind::Piece, message: self.message, total, offset: taken, piece };
        lane.send(&mut slabs[lane.device], chunk, &message[taken..taken + piece])?;
        self.turn = (number + 1) % lanes.len();
        Ok(Some(piece))
    }

    /// The message has left.
    fn next(&mut self) {
        self.message = self.message.wrapping_add(1);
    }
}

/// How many lanes a message of `total` bytes goes over.
fn usable(lanes: &[Lane], total: usize) -> usize {
    if total >= STRIPED { lanes.len() } else { 1 }
}

/// The lanes to one peer.
pub(super) struct Link {
    peer: usize,
    pub(super) lanes: Vec<Lane>,
    /// What the peer's host and devices are called.
    pub(super) name: String,
    pub(super) lost: Option<Lost>,
    /// What the peer said when it ended, and since when that is known.
    pub(super) ended: Option<(Ended, Instant)>,
    /// How its TCP connection ended without that.
    pub(super) last_words: Option<Lost>,
    outbox: VecDeque<Outgoing>,
    way: Way,
    inbox: Pieces,
    held: Vec<Held>,
}

impl Link {
    pub(super) fn new(peer: usize, name: String, lanes: Vec<Lane>) -> Self {
        Self {
            peer,
            lanes,
            name,
            lost: None,
            ended: None,
            last_words: None,
            outbox: VecDeque::new(),
            way: Way::default(),
            inbox: Pieces::default(),
            held: Vec::new(),
        }
    }

    /// Whether a message waits to be sent.
    pub(super) fn is_sending(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether a message is expected.
    pub(super) fn is_receiving(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Whether all that was sent has left for good.
    pub(super) fn is_flushed(&self) -> bool {
        self.outbox.is_empty() && self.lanes.iter().all(Lane::is_flushed)
    }

    pub(super) fn push(&mut self, message: Buffer) {
        self.outbox.push_back(Outgoing { buffer: message, taken: 0 });
    }

    /// Sends a message from where it lies, if the peer has room for all of it and none waits. Returns whether it was sent.
    pub(super) fn send_now(&mut self, message: &[u8], slabs: &mut [Slab]) -> Result<bool, Lost> {
        let lanes = &self.lanes[..usable(&self.lanes, message.len())];
        let room: usize = lanes.iter().map(|lane| lane.room() * lane.piece()).sum();
        if self.is_sending() || message.is_empty() || room < message.len() {
            return Ok(false);
        }
        let mut taken = 0;
        while taken < message.len() {
            let Some(piece) = self.way.piece(&mut self.lanes, slabs, message, taken)? else {
                return Err(Lost::gone("has less room than it had"));
            };
            taken += piece;
        }
        self.way.next();
        Ok(true)
    }

    /// Sends as much as the peer has room for. Returns whether anything was.
    pub(super) fn send(&mut self, slabs: &mut [Slab], ready: &mut Ready) -> Result<bool, Lost> {
        let mut moved = false;
        while let Some(front) = self.outbox.front_mut() {
            let (message, taken) = (front.buffer.bytes(), front.taken);
            let next = self.way.piece(&mut self.lanes, slabs, message, taken)?;
            let Some(piece) = next else { break };
            front.taken += piece;
            moved = true;
            if front.taken == front.buffer.len() {
                self.way.next();
                if let Some(sent) = self.outbox.pop_front() {
                    ready.push(self.peer, Kind::Sent, sent.buffer);
                }
            }
        }
        for lane in &mut self.lanes {
            moved |= lane.credit(&mut slabs[lane.device])?;
        }
        Ok(moved)
    }

    /// Posts a receive, and gives it what has come already.
    pub(super) fn post(&mut self, into: Buffer, slabs: &mut [Slab], ready: &mut Ready) -> Result<(), Lost> {
        self.inbox.post(into);
        let mut at = 0;
        while at < self.held.len() {
            let Held { lane, slot, chunk } = self.held[at];
            let device = self.lanes[lane].device;
            let broken = |error| Lost::gone(format!("has a slot that cannot be read: {error}"));
            let bytes = slabs[device].read(slot).map_err(broken)?;
            if !self.place(&chunk, &bytes[HEADER..HEADER + chunk.piece])? {
                at += 1;
                continue;
            }
            self.held.remove(at);
            self.deliver(ready);
            // nothing more comes from who has ended, and its queue pair may be gone
            if self.lost.is_none() && self.ended.is_none() {
                self.lanes[lane].take(&mut slabs[device], slot)?;
            }
        }
        self.deliver(ready);
        Ok(())
    }

    /// Takes in a completion of one of this link's lanes.
    pub(super) fn completed(
        &mut self,
        (lane, slot, is_send): (usize, usize, bool),
        done: &Wc,
        slabs: &mut [Slab],
        ready: &mut Ready,
    ) -> Result<(), Lost> {
        let Some(own) = self.lanes.get_mut(lane) else { return Ok(()) };
        let slab = &mut slabs[own.device];
        if done.status() != 0 {
            return Err(own.failed(done));
        }
        if is_send {
            own.sent(slab, slot, done);
            return Ok(());
        }
        slab.take_back(slot, done);
        let broken = |error| Lost::gone(format!("has a slot that cannot be read: {error}"));
        let bytes = slab.read(slot).map_err(broken)?;
        let (chunk, piece) = own.arrived(bytes, done.length())?;
        if chunk.kind == ChunkKind::Piece && !self.place(&chunk, piece)? {
            self.held.push(Held { lane, slot, chunk });
            return Ok(());
        }
        self.lanes[lane].take(slab, slot)?;
        self.deliver(ready);
        Ok(())
    }

    fn place(&mut self, chunk: &Chunk, piece: &[u8]) -> Result<bool, Lost> {
        self.inbox.place(At { message: chunk.message, total: chunk.total, offset: chunk.offset }, piece)
    }

    /// Hands out the messages that are whole, in order.
    fn deliver(&mut self, ready: &mut Ready) {
        while let Some(message) = self.inbox.whole() {
            ready.push(self.peer, Kind::Received, message);
        }
    }

    /// Says on silent lanes that this end lives.
    pub(super) fn keep_alive(&mut self, slabs: &mut [Slab], now: Instant) -> Result<(), Lost> {
        self.lanes.iter_mut().try_for_each(|lane| lane.keep_alive(&mut slabs[lane.device], now))
    }

    /// What this end says when it ends.
    pub(super) fn farewell(&self) -> Ended {
        let amid = self.outbox.front().is_some_and(|front| front.taken > 0);
        Ended { sent: self.lanes.iter().map(|lane| lane.counts().0).collect(), amid }
    }

    /// Whether everything that the peer says it sent has come.
    pub(super) fn has_all(&self, ended: &Ended) -> bool {
        self.lanes.iter().zip(&ended.sent).all(|(lane, sent)| lane.counts().1 == *sent)
    }
}
