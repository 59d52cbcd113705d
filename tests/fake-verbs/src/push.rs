//! The sending half of a queue pair: what waits goes into the peer's file, what is there completes.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::abi::{RC, state, status};
use crate::board::Kind;
use crate::home;
use crate::request::{FRAME, Parts, Place, Send};
use crate::ring::{Head, Ring};
use crate::rules;
use crate::wire::{Inner, Pair, Peer};

/// How often a peer is looked for where that takes system calls.
const LOOK: Duration = Duration::from_millis(10);

impl Pair {
    /// Whether the peer is there and connected to this queue pair.
    fn meet(&self, inner: &mut Inner) -> bool {
        if inner.peer.is_none() {
            if inner.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
                return false;
            }
            inner.looked = Some(Instant::now());
            let path = self.home.dir.join("qps").join(inner.attr.dest_qp_num.to_string());
            let Ok(ring) = Ring::open(&path) else { return false };
            if ring.device.load(Ordering::Relaxed) as usize != inner.target {
                return false;
            }
            inner.peer = Some(Peer { ring, met: 0, looked: Instant::now(), alive: true, numbers: None });
        }
        let (number, psn) = (self.number, inner.attr.sq_psn);
        let Some(peer) = &mut inner.peer else { return false };
        peer.met = peer.met.wrapping_add(1);
        if peer.met.is_multiple_of(64) && peer.looked.elapsed() > LOOK {
            peer.looked = Instant::now();
            peer.alive = home::alive(&self.home.dir, &peer.ring.owner());
        }
        let there = peer.ring.dest.load(Ordering::Acquire) == number
            && matches!(peer.ring.state.load(Ordering::Acquire), state::RTR | state::RTS)
            && peer.ring.gone.load(Ordering::Acquire) == 0
            && peer.alive
            && self.up(self.index)
            && self.up(inner.target);
        if there && peer.numbers.is_none() {
            let awaited = peer.ring.rq_psn.load(Ordering::Relaxed);
            peer.numbers = Some(awaited == psn);
            if awaited != psn {
                self.violation(rules::PSN, &format!("sq_psn {psn}, but {awaited} is awaited"));
            }
        }
        // a UC queue pair takes up whatever number a message begins with
        there && (self.kind != RC || peer.numbers == Some(true))
    }

    /// Whether an RC queue pair has tried for long enough.
    fn given_up(&self, inner: &mut Inner, met: bool) -> bool {
        if met {
            inner.lost_since = None;
            return false;
        }
        let since = *inner.lost_since.get_or_insert_with(Instant::now);
        since.elapsed() > Duration::from_millis(self.home.config.retry_ms)
    }

    /// What sends can do now.
    pub(crate) fn push(&self, inner: &mut Inner) {
        if inner.state != state::RTS || inner.sends.is_empty() || self.still(self.index) {
            return;
        }
        let met = self.meet(inner);
        while inner.placed < inner.sends.len() && !self.still(inner.target) && (met || !self.waits()) {
            let Some(place) = self.put(inner, met) else { break };
            let at = inner.placed;
            let lost = matches!(place, Place::Lost);
            inner.sends[at].place = place;
            inner.placed += 1;
            if let Some(held) = inner.held.take_if(|_| !lost) {
                inner.sends.insert(at + 1, held);
            }
        }
        // what is there when its receive is posted arrives, whatever becomes of the peer then
        let linked = !self.still(inner.target) && self.up(self.index) && self.up(inner.target);
        while inner.placed > 0 {
            let mut sum = None;
            if let Place::There { index, sum: before } = inner.sends[0].place
                && self.waits()
            {
                let room = inner.peer.as_ref().and_then(|peer| peer.ring.receive(index));
                let Some(room) = room.filter(|_| linked) else { break };
                if self.kind == RC && (room as usize) < inner.sends[0].len() {
                    return self.fail_first(inner, status::REM_INV_REQ_ERR);
                }
                sum = before;
            }
            if !inner.sends[0].extra
                && let Some((_, value)) = self.home.board.fault(&[Kind::SendStatus], self.index, self.number)
            {
                return self.fail_first(inner, value as u32);
            }
            let Some(send) = inner.sends.pop_front() else { break };
            inner.placed -= 1;
            self.unchanged(&send, sum);
            self.complete(inner, &send, status::SUCCESS);
        }
        if self.kind == RC && !inner.sends.is_empty() && self.given_up(inner, met) {
            self.fail_first(inner, status::RETRY_EXC_ERR);
        }
    }

    /// Checks the buffer of a send that had to wait.
    fn unchanged(&self, send: &Send, sum: Option<u64>) {
        let Some(sum) = sum else { return };
        if !send.parts.iter().all(|part| self.domain.covers(part)) {
            self.violation(rules::LKEY, "the region of a send was released before its completion");
        } else if send.sum() != sum {
            self.violation(rules::BUFFER_CHANGED, &format!("wr_id {}", send.id));
        }
    }

    /// Whether a queue pair has been idle for so long that it sends no more.
    fn asleep(&self, inner: &mut Inner) -> bool {
        let Some(idle) = self.home.config.idle_ms else { return false };
        let before = inner.sent.replace(Instant::now());
        let asleep = before.is_some_and(|before| before.elapsed() > Duration::from_millis(idle));
        if asleep {
            self.violation(rules::IDLE, &format!("{idle} ms without a message"));
            inner.sent = before;
        }
        asleep
    }

    fn fail_first(&self, inner: &mut Inner, code: u32) {
        if let Some(send) = inner.sends.pop_front() {
            inner.placed = inner.placed.saturating_sub(1);
            self.complete(inner, &send, code);
        }
        self.to_error(inner);
    }

    /// Puts the first waiting send into the peer's file.
    fn put(&self, inner: &mut Inner, met: bool) -> Option<Place> {
        if self.asleep(inner) {
            return Some(Place::Lost);
        }
        let Inner { peer, sends, placed, head, held, .. } = inner;
        let send = &sends[*placed];
        let peer = peer.as_ref().map(|peer| &peer.ring);
        let len = send.len();
        if send.bytes.is_none() && !send.parts.iter().all(|part| self.domain.covers(part)) {
            self.violation(rules::LKEY, "the region of a send was released before it left");
            return Some(Place::Lost);
        }
        if send.posted.is_some_and(|sum| sum != send.sum()) {
            self.violation(rules::BUFFER_CHANGED, &format!("wr_id {}, before it left", send.id));
        }
        if !self.waits() {
            // UC: what finds no receive is dropped silently
            let posted = peer.is_some_and(|ring| ring.receive(ring.produced.0.load(Ordering::Relaxed)).is_some());
            if !met || !posted {
                return Some(Place::Lost);
            }
        }
        let ring = peer?;
        let offset = ring.room(head, len)?;
        let kinds = [Kind::Drop, Kind::Corrupt, Kind::Duplicate, Kind::Reorder];
        let fault = match send.extra {
            true => None,
            false => self.home.board.fault(&kinds, self.index, self.number),
        };
        let copy = || {
            let mut bytes = vec![0; len].into_boxed_slice();
            send.copy_to(bytes.as_mut_ptr());
            let mut copy = Send::new(send.id, Parts::default(), send.imm, false, 0);
            copy.extra = true;
            copy.bytes = Some(bytes);
            copy
        };
        match fault {
            Some((Kind::Drop, _)) => return Some(Place::Lost),
            Some((Kind::Reorder, _)) => {
                *held = Some(copy());
                return Some(Place::Lost);
            }
            _ => {}
        }
        let data = ring.data(offset, len);
        send.copy_to(data);
        if let Some((Kind::Corrupt, at)) = fault
            && len > 0
        {
            // SAFETY: a byte of the message.
            unsafe { *data.add(at as usize % len) ^= 0x40 };
        }
        if self.home.config.one_frame && len > FRAME {
            self.violation(rules::LARGE_MESSAGE, &format!("{len} bytes"));
            // SAFETY: bytes of the message.
            unsafe { data.add(FRAME).write_bytes(0xa5, len - FRAME) };
        }
        let index = ring.produce(Head { offset, len, imm: send.imm });
        let waits = self.waits() && ring.receive(index).is_none();
        let sum = (waits && send.bytes.is_none()).then(|| send.sum());
        if let Some((Kind::Duplicate, _)) = fault {
            let copy = copy();
            sends.insert(*placed + 1, copy);
        }
        Some(Place::There { index, sum })
    }
}
