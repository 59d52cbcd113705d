//! A lane: one queue pair to a peer, with the credits that keep every send meeting a posted receive.
//!
//! An unreliable queue pair drops what finds no receive, and one on a Mac waits without a word. So each end has posted
//! `window + RESERVE` receives before the other may send; a sender has at most `window` pieces under way that the other
//! end has not taken, and signs, which carry nothing but counts, may use the reserve. Every chunk says how many chunks
//! of the other direction have been taken; where nothing else says it, a sign does, once half a window has piled up. A
//! sign that answers half a window is answered in its turn by half a window of signs at the earliest, so the reserve is
//! never used up by signs that answer each other.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::chunk::{Chunk, HEADER, Kind};
use crate::error::Error;
use crate::transport::mail::Lost;
use crate::transport::verbs::{QueuePair, Slab, Wc, status_text};

/// Chunks beyond the window that signs may use.
pub(super) const RESERVE: usize = 6;

/// After so long a lane on which something is under way says so: the other end notices what was lost on the way.
const PROBE: Duration = Duration::from_millis(200);

/// After so long a send that has not left never will: every send meets a receive that is posted, whatever its peer does.
const STUCK: Duration = Duration::from_secs(5);

/// After so long a lane says something in any case, because idle Thunderbolt ports are said to go bad (gojaccl: 23 minutes,
/// exo #1973).
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// What a completion was of, packed into the number that verbs hand back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) peer: usize,
    pub(super) lane: usize,
    pub(super) is_send: bool,
    pub(super) slot: usize,
}

impl Id {
    pub(super) fn pack(self) -> u64 {
        (self.peer as u64) << 40 | (self.lane as u64) << 32 | u64::from(self.is_send) << 31 | self.slot as u64
    }

    pub(super) fn unpack(id: u64) -> Self {
        let part = |shift: u32, bits: u32| ((id >> shift) & ((1 << bits) - 1)) as usize;
        Self { peer: part(40, 24), lane: part(32, 8), is_send: part(31, 1) == 1, slot: part(0, 31) }
    }
}

/// What both ends of a lane have agreed on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) run: u64,
    /// Bytes of a receive.
    pub(super) size: usize,
    /// Whether every send must have as many bytes.
    pub(super) fixed: bool,
    /// Pieces that may be under way.
    pub(super) window: u32,
}

/// Slots of a lane: for its receives, and for its sends, of which signs may use some when pieces have used theirs.
pub(super) fn slots(window: usize) -> usize {
    window + RESERVE + sends(window)
}

/// Slots of a lane for sends.
pub(super) fn sends(window: usize) -> usize {
    window + 2 * RESERVE
}

/// One queue pair and its counts.
pub(super) struct Lane {
    pair: QueuePair,
    /// The device's place among the opened ones.
    pub(super) device: usize,
    /// What it connects, for people: `rdma_en3 to rdma_en4`.
    pub(super) name: String,
    peer: usize,
    number: usize,
    terms: Terms,
    /// Slots for sends that are free.
    free: Vec<usize>,
    /// Slots that are being sent and since when, in order.
    sending: VecDeque<(usize, Instant)>,
    /// Chunks sent, and how many of them the other end has taken.
    sent: u32,
    acknowledged: u32,
    /// Chunks that came, that were taken, and what the other end was told of that.
    came: u32,
    taken: u32,
    told: u32,
    last_sent: Instant,
    probed: bool,
}

impl Lane {
    /// A lane over a connected `pair`, with slots of the slab of the device with place `device`. Its receives are posted.
    ///
    /// # Errors
    /// If the device refuses a receive.
    pub(super) fn new(
        pair: QueuePair,
        slab: &mut Slab,
        device: usize,
        name: String,
        (peer, number): (usize, usize),
        terms: Terms,
        first_slot: usize,
    ) -> Result<Self, Error> {
        let window = terms.window as usize;
        let sends = first_slot + window + RESERVE;
        let mut lane = Self {
            pair,
            device,
            name,
            peer,
            number,
            terms,
            free: (sends..first_slot + slots(window)).rev().collect(),
            sending: VecDeque::new(),
            sent: 0,
            acknowledged: 0,
            came: 0,
            taken: 0,
            told: 0,
            last_sent: Instant::now(),
            probed: true,
        };
        (first_slot..sends).try_for_each(|slot| lane.receive(slab, slot))?;
        Ok(lane)
    }

    /// Bytes of a message that a chunk carries at most.
    pub(super) fn piece(&self) -> usize {
        self.terms.size - HEADER
    }

    fn id(&self, is_send: bool, slot: usize) -> u64 {
        Id { peer: self.peer, lane: self.number, is_send, slot }.pack()
    }

    fn under_way(&self) -> u32 {
        self.sent.wrapping_sub(self.acknowledged)
    }

    /// How many pieces may be sent.
    pub(super) fn room(&self) -> usize {
        let window = self.terms.window.saturating_sub(self.under_way()) as usize;
        window.min(self.free.len().saturating_sub(RESERVE))
    }

    /// Whether a piece may be sent.
    pub(super) fn is_open(&self) -> bool {
        self.room() > 0
    }

    /// Whether what has left may still be on its way: Apple's devices say no more (TN3205).
    pub(super) fn may_linger(&self) -> bool {
        self.terms.fixed
    }

    /// Whether everything sent has left for good.
    pub(super) fn is_flushed(&self) -> bool {
        self.sending.is_empty()
    }

    /// Chunks sent so far, and chunks that came.
    pub(super) fn counts(&self) -> (u32, u32) {
        (self.sent, self.came)
    }

    /// Sends a piece of a message. To be called while the lane is open.
    pub(super) fn send(&mut self, slab: &mut Slab, chunk: Chunk, piece: &[u8]) -> Result<(), Lost> {
        let broken = |error: Error| Lost::gone(format!("cannot be sent to: {error}"));
        let Some(slot) = self.free.pop() else { return Err(Lost::gone("has no slot left to be sent to")) };
        let chunk = Chunk { sequence: self.sent, taken: self.taken, ..chunk };
        let length = chunk.write(self.terms.run, piece, slab.write(slot).map_err(broken)?);
        let id = self.id(true, slot);
        slab.post_send(&mut self.pair, id, slot, if self.terms.fixed { self.terms.size } else { length })
            .map_err(broken)?;
        (self.last_sent, self.probed) = (Instant::now(), false);
        self.sending.push_back((slot, self.last_sent));
        self.sent = self.sent.wrapping_add(1);
        self.told = self.taken;
        Ok(())
    }

    /// Sends a chunk of counts alone, if there is room. Returns whether there was.
    pub(super) fn sign(&mut self, slab: &mut Slab) -> Result<bool, Lost> {
        if self.free.is_empty() || self.under_way() >= self.terms.window + RESERVE as u32 {
            return Ok(false);
        }
        let chunk = Chunk { sequence: 0, taken: 0, kind: Kind::Sign, message: 0, total: 0, offset: 0, piece: 0 };
        self.send(slab, chunk, &[]).map(|()| true)
    }

    /// Tells the other end what was taken, if it is much.
    pub(super) fn credit(&mut self, slab: &mut Slab) -> Result<bool, Lost> {
        if self.taken.wrapping_sub(self.told) < self.terms.window.div_ceil(2) {
            return Ok(false);
        }
        self.sign(slab)
    }

    /// Says that this end lives, if it has said nothing for long; finds a cable that takes nothing any more.
    pub(super) fn keep_alive(&mut self, slab: &mut Slab, now: Instant) -> Result<(), Lost> {
        let silent = now.saturating_duration_since(self.last_sent);
        let probe = !self.probed && silent >= PROBE && self.under_way() > 0;
        // what the other end takes only when it looks must leave room for pieces
        if self.sending.front().is_some_and(|(_, since)| now.saturating_duration_since(*since) >= STUCK) {
            return Err(Lost::gone(format!("is lost to RDMA: nothing leaves over {} any more", self.name)));
        }
        if probe || (silent >= KEEP_ALIVE && self.under_way() < self.terms.window / 2) {
            // one is enough: it shows everything before it
            self.probed = self.sign(slab)?;
        }
        Ok(())
    }

    fn receive(&mut self, slab: &mut Slab, slot: usize) -> Result<(), Error> {
        let id = self.id(false, slot);
        slab.post_recv(&mut self.pair, id, slot, self.terms.size)
    }

    /// Gives the slot of a chunk that came back to the device.
    pub(super) fn take(&mut self, slab: &mut Slab, slot: usize) -> Result<(), Lost> {
        self.receive(slab, slot).map_err(|error| Lost::gone(format!("cannot be received from: {error}")))?;
        self.taken = self.taken.wrapping_add(1);
        Ok(())
    }

    /// Notes that a send is done, and with it all before.
    pub(super) fn sent(&mut self, slab: &mut Slab, slot: usize, done: &Wc) {
        if self.sending.iter().all(|(sending, _)| *sending != slot) {
            return;
        }
        while let Some((front, _)) = self.sending.pop_front() {
            slab.take_back(front, done);
            self.free.push(front);
            if front == slot {
                break;
            }
        }
    }

    /// What is wrong with a request that has not succeeded.
    pub(super) fn failed(&self, done: &Wc) -> Lost {
        Lost::gone(format!("is lost to RDMA: {}: {}", self.name, status_text(done.status())))
    }

    /// Checks a chunk that came as the first `length` bytes of a slot, and learns what the other end has taken.
    pub(super) fn arrived<'a>(&mut self, slot: &'a [u8], length: usize) -> Result<(Chunk, &'a [u8]), Lost> {
        let wrong = |what: String| Lost::garbage(format!("{what} ({})", self.name));
        // where all have the same length it need not be known
        let length = if self.terms.fixed { self.terms.size } else { length };
        let (chunk, piece) = Chunk::read(self.terms.run, &slot[..length.min(slot.len())]).map_err(wrong)?;
        if chunk.sequence != self.came {
            let missing = chunk.sequence.wrapping_sub(self.came);
            return Err(wrong(if missing < 1 << 31 {
                format!("sent {missing} chunks that were lost on the way, number {} came", chunk.sequence)
            } else {
                format!("sent chunk {} twice", chunk.sequence)
            }));
        }
        let news = chunk.taken.wrapping_sub(self.acknowledged);
        if news > self.under_way() {
            return Err(wrong(format!("says it took {} chunks of {}", chunk.taken, self.sent)));
        }
        self.came = self.came.wrapping_add(1);
        self.acknowledged = chunk.taken;
        Ok((chunk, piece))
    }
}
