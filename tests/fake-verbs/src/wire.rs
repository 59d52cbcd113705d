//! How messages move: from a send to the peer's file, from the own file to a receive.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::abi::{QpAttr, QpCap, RC, Sge, WC_RECV, WC_WITH_IMM, Wc, state, status};
use crate::board::Kind;
use crate::home::{self, Home, locked};
use crate::memory::Domain;
use crate::queue::{Depth, Done, Queue};
use crate::ring::{Head, Ring};
use crate::rules::{self, Rule};

/// Elements that a request can have.
pub(crate) const ELEMENTS: usize = 4;
/// TN3205: what a message is cut into, and depth is counted in.
const FRAME: usize = 4096;
/// How often a peer that is awaited is looked for where that takes system calls.
const LOOK: Duration = Duration::from_millis(5);

/// Frames of a message; one at least.
pub(crate) fn frames(len: usize) -> u32 {
    (len.div_ceil(FRAME) as u32).max(1)
}

/// Memory of a request.
#[derive(Clone, Copy, Default)]
pub(crate) struct Parts {
    pub(crate) parts: [Sge; ELEMENTS],
    pub(crate) count: usize,
}

impl Parts {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sge> {
        self.parts[..self.count].iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.iter().map(|part| part.length as usize).sum()
    }
}

/// Where a send is on its way.
enum Place {
    Waiting,
    /// In the peer's file; with a sum of its bytes if its completion had to wait.
    There {
        index: u64,
        sum: Option<u64>,
    },
    /// Out of sight: it completes and nobody gets it.
    Lost,
}

pub(crate) struct Send {
    pub(crate) id: u64,
    pub(crate) parts: Parts,
    /// Its bytes, if they were taken when it was posted, or belong to a fault.
    pub(crate) bytes: Option<Box<[u8]>>,
    pub(crate) imm: Option<u32>,
    pub(crate) signaled: bool,
    /// What it takes of the depth.
    pub(crate) cost: u32,
    /// Made by a fault: no completion.
    extra: bool,
    place: Place,
}

impl Send {
    pub(crate) fn new(id: u64, parts: Parts, imm: Option<u32>, signaled: bool, cost: u32) -> Self {
        Self { id, parts, bytes: None, imm, signaled, cost, extra: false, place: Place::Waiting }
    }

    fn len(&self) -> usize {
        self.bytes.as_ref().map_or_else(|| self.parts.len(), |bytes| bytes.len())
    }

    fn copy_to(&self, to: *mut u8) {
        // SAFETY: `to` has room for `len` bytes; the parts lie in live regions, which was just checked; what the
        // program writes meanwhile, against the rules, is what is torn.
        unsafe {
            if let Some(bytes) = &self.bytes {
                return to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            }
            let mut at = to;
            for part in self.parts.iter() {
                at.copy_from_nonoverlapping(part.addr as *const u8, part.length as usize);
                at = at.add(part.length as usize);
            }
        }
    }

    fn sum(&self) -> u64 {
        let mut copy = vec![0; self.len()];
        self.copy_to(copy.as_mut_ptr());
        let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let (words, rest) = copy.as_chunks::<8>();
        let sum = words.iter().fold(1, |sum, word| mix(sum, u64::from_ne_bytes(*word)));
        rest.iter().fold(sum, |sum, byte| mix(sum, u64::from(*byte)))
    }
}

pub(crate) struct Recv {
    pub(crate) id: u64,
    pub(crate) parts: Parts,
    pub(crate) cost: u32,
}

struct Peer {
    ring: Ring,
    device: usize,
    looked: Instant,
    alive: bool,
}

/// What changes of a queue pair.
pub(crate) struct Inner {
    pub(crate) state: u32,
    pub(crate) attr: QpAttr,
    pub(crate) ring: Ring,
    /// The device that the address handle leads to.
    pub(crate) target: usize,
    peer: Option<Peer>,
    looked: Option<Instant>,
    pub(crate) sends: VecDeque<Send>,
    pub(crate) recvs: VecDeque<Recv>,
    /// Those of `sends` that wait for completion only.
    placed: usize,
    head: usize,
    /// Depth that the next signaled completion gives back.
    unsignaled: u32,
    held: Option<Send>,
    lost_since: Option<Instant>,
}

impl Inner {
    pub(crate) fn new(ring: Ring) -> Self {
        Self {
            state: state::RESET,
            attr: QpAttr::default(),
            ring,
            target: 0,
            peer: None,
            looked: None,
            sends: VecDeque::new(),
            recvs: VecDeque::new(),
            placed: 0,
            head: 0,
            unsignaled: 0,
            held: None,
            lost_since: None,
        }
    }

    pub(crate) fn clear(&mut self) {
        (self.peer, self.held, self.lost_since, self.looked) = (None, None, None, None);
        (self.placed, self.head, self.unsignaled) = (0, 0, 0);
        self.sends.clear();
        self.recvs.clear();
        self.ring.clear();
    }

    /// Lets go of the files, since the handle stays.
    pub(crate) fn close(&mut self) {
        self.state = state::RESET;
        (self.peer, self.held) = (None, None);
        self.sends = VecDeque::new();
        self.recvs = VecDeque::new();
        if let Ok(blank) = Ring::blank() {
            self.ring = blank;
        }
    }
}

/// A queue pair.
pub(crate) struct Pair {
    pub(crate) home: Arc<Home>,
    pub(crate) index: usize,
    pub(crate) number: u32,
    pub(crate) kind: u32,
    /// What is really granted.
    pub(crate) cap: QpCap,
    pub(crate) all_signaled: bool,
    pub(crate) domain: Arc<Domain>,
    pub(crate) send_queue: Arc<Queue>,
    pub(crate) recv_queue: Arc<Queue>,
    pub(crate) depth: Arc<Depth>,
    pub(crate) inner: Mutex<Inner>,
}

impl Pair {
    pub(crate) fn violation(&self, rule: Rule, detail: &str) {
        self.home.violation(rule, self.index, detail);
    }

    /// A message waits for its receive, instead of being lost.
    fn waits(&self) -> bool {
        self.kind == RC || self.home.apple()
    }

    fn still(&self, device: usize) -> bool {
        self.home.board.still(device)
    }

    fn up(&self, device: usize) -> bool {
        self.home.board.up(&self.home.config, device)
    }

    /// What hardware would do by itself.
    pub(crate) fn progress(&self) {
        let inner = &mut *locked(&self.inner);
        if inner.state < state::RTR || inner.state > state::RTS || self.still(self.index) {
            return;
        }
        self.pull(inner);
        self.push(inner);
    }

    fn complete(&self, inner: &mut Inner, send: &Send, code: u32) {
        if send.extra {
            return;
        }
        inner.unsignaled += send.cost;
        if !send.signaled && code == status::SUCCESS {
            return;
        }
        let wc = Wc { wr_id: send.id, status: code, qp_num: self.number, ..Wc::default() };
        let depth = self.depth.clone();
        self.send_queue.push(Done { wc, depth, send: std::mem::take(&mut inner.unsignaled), recv: 0 });
    }

    fn received(&self, recv: &Recv, code: u32, message: Option<&Head>) {
        let imm = message.and_then(|head| head.imm);
        let wc = Wc {
            wr_id: recv.id,
            status: code,
            opcode: WC_RECV,
            byte_len: message.map_or(0, |head| head.len as u32),
            imm_data: imm.unwrap_or(0),
            wc_flags: if imm.is_some() { WC_WITH_IMM } else { 0 },
            qp_num: self.number,
            src_qp: 0,
            ..Wc::default()
        };
        self.recv_queue.push(Done { wc, depth: self.depth.clone(), send: 0, recv: recv.cost });
    }

    /// All that is left of a queue pair in error is flushed.
    pub(crate) fn to_error(&self, inner: &mut Inner) {
        inner.state = state::ERR;
        inner.ring.state.store(state::ERR, Ordering::Release);
        for send in std::mem::take(&mut inner.sends) {
            self.complete(inner, &send, status::WR_FLUSH_ERR);
        }
        inner.placed = 0;
        for recv in std::mem::take(&mut inner.recvs) {
            self.received(&recv, status::WR_FLUSH_ERR, None);
        }
    }

    /// The peer's file, once the peer is connected to this queue pair.
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
            if ring.dest.load(Ordering::Acquire) == self.number
                && ring.rq_psn.load(Ordering::Relaxed) != inner.attr.sq_psn
            {
                self.violation(rules::PSN, &format!("sq_psn {}", inner.attr.sq_psn));
            }
            inner.peer = Some(Peer { ring, device: inner.target, looked: Instant::now(), alive: true });
        }
        let Some(peer) = &mut inner.peer else { return false };
        peer.ring.dest.load(Ordering::Acquire) == self.number
            && matches!(peer.ring.state.load(Ordering::Acquire), state::RTR | state::RTS)
            && peer.ring.gone.load(Ordering::Acquire) == 0
            && self.up(self.index)
            && self.up(peer.device)
    }

    /// Whether an RC queue pair has tried for long enough.
    fn given_up(&self, inner: &mut Inner, met: bool) -> bool {
        let mut there = met;
        if let Some(peer) = &mut inner.peer
            && peer.looked.elapsed() > LOOK
        {
            peer.looked = Instant::now();
            peer.alive = home::alive(&self.home.dir, &peer.ring.owner());
        }
        there &= inner.peer.as_ref().is_some_and(|peer| peer.alive);
        if there {
            inner.lost_since = None;
            return false;
        }
        let since = *inner.lost_since.get_or_insert_with(Instant::now);
        since.elapsed() > Duration::from_millis(self.home.config.retry_ms)
    }

    /// The sending half.
    pub(crate) fn push(&self, inner: &mut Inner) {
        if inner.state != state::RTS || inner.sends.is_empty() || self.still(self.index) {
            return;
        }
        let met = self.meet(inner);
        // what is there when its receive is posted arrives, whatever becomes of the peer then
        let linked = !self.still(inner.target) && self.up(self.index) && self.up(inner.target);
        while inner.placed < inner.sends.len() && !self.still(inner.target) {
            if !met && self.waits() {
                break;
            }
            let Some(place) = self.put(inner, met) else { break };
            let at = inner.placed;
            inner.sends[at].place = place;
            inner.placed += 1;
            if inner.state != state::RTS {
                return;
            }
            if let Some(held) = inner.held.take_if(|_| !matches!(inner.sends[at].place, Place::Lost)) {
                inner.sends.insert(at + 1, held);
            }
        }
        while inner.placed > 0 && inner.state == state::RTS {
            let sum = match &inner.sends[0].place {
                Place::There { index, sum } if self.waits() => {
                    let room = inner.peer.as_ref().and_then(|peer| peer.ring.receive(*index));
                    let Some(room) = room.filter(|_| linked) else { break };
                    if self.kind == RC && (room as usize) < inner.sends[0].len() {
                        self.fail_first(inner, status::REM_INV_REQ_ERR);
                        return;
                    }
                    *sum
                }
                _ => None,
            };
            if let Some(value) = self.home.board.fault(&[Kind::SendStatus], self.index, self.number) {
                self.fail_first(inner, value.1 as u32);
                return;
            }
            let Some(send) = inner.sends.pop_front() else { break };
            inner.placed -= 1;
            if let Some(sum) = sum {
                if !send.parts.iter().all(|part| self.domain.covers(part)) {
                    self.violation(rules::LKEY, "the region of a send was released before its completion");
                } else if send.sum() != sum {
                    self.violation(rules::BUFFER_CHANGED, &format!("wr_id {}", send.id));
                }
            }
            self.complete(inner, &send, status::SUCCESS);
        }
        if self.kind == RC && !inner.sends.is_empty() && inner.state == state::RTS && self.given_up(inner, met) {
            self.fail_first(inner, status::RETRY_EXC_ERR);
        }
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
        let Inner { peer, sends, placed, head, held, .. } = inner;
        let send = &sends[*placed];
        let peer = peer.as_ref().map(|peer| &peer.ring);
        let len = send.len();
        if send.bytes.is_none() && !send.parts.iter().all(|part| self.domain.covers(part)) {
            self.violation(rules::LKEY, "the region of a send was released before it left");
            return Some(Place::Lost);
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

    /// The receiving half.
    fn pull(&self, inner: &mut Inner) {
        while let Some(message) = inner.ring.next() {
            let Some(recv) = inner.recvs.pop_front() else { break };
            let room = recv.parts.len();
            let bad = if self.home.apple() && frames(room) != frames(message.len) {
                let detail = format!("{} bytes meet a receive of {room}", message.len);
                self.violation(rules::FRAMES, &detail);
                status::LOC_LEN_ERR
            } else if message.len > room {
                self.violation(rules::RECV_TOO_SHORT, &format!("{} bytes meet a receive of {room}", message.len));
                status::LOC_LEN_ERR
            } else if !recv.parts.iter().all(|part| self.domain.covers(part)) {
                self.violation(rules::LKEY, "the region of a receive was released before its message came");
                status::LOC_PROT_ERR
            } else {
                let fault = self.home.board.fault(&[Kind::RecvStatus], self.index, self.number);
                fault.map_or(status::SUCCESS, |(_, value)| value as u32)
            };
            if bad == status::SUCCESS {
                scatter(&inner.ring, &message, &recv.parts);
            }
            inner.ring.consume();
            self.received(&recv, bad, Some(&message));
            if bad != status::SUCCESS {
                return self.to_error(inner);
            }
        }
    }
}

fn scatter(ring: &Ring, message: &Head, parts: &Parts) {
    let mut from = ring.data(message.offset, message.len);
    let mut left = message.len;
    for part in parts.iter() {
        let len = left.min(part.length as usize);
        // SAFETY: the message's bytes, into a part of a live region, both just checked.
        unsafe {
            (part.addr as *mut u8).copy_from_nonoverlapping(from, len);
            from = from.add(len);
        }
        left -= len;
    }
}
