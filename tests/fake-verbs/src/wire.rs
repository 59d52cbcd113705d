//! A queue pair, and its receiving half: messages go from its file to its receives.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::abi::{QpAttr, QpCap, RC, WC_RECV, WC_WITH_IMM, Wc, state, status};
use crate::board::Kind;
use crate::home::{Home, locked};
use crate::memory::Domain;
use crate::queue::{Depth, Done, Queue};
use crate::request::{Parts, Recv, Send, frames};
use crate::ring::{Head, Ring};
use crate::rules::{self, Rule};

/// The queue pair at the other end, as its file shows it.
pub(crate) struct Peer {
    pub(crate) ring: Ring,
    /// How often it was met; a clock costs more than a count.
    pub(crate) met: u32,
    /// When its process was last looked for.
    pub(crate) looked: Instant,
    pub(crate) alive: bool,
    /// Whether its first number was compared, and was another.
    pub(crate) numbers: Option<bool>,
}

/// What changes of a queue pair.
pub(crate) struct Inner {
    pub(crate) state: u32,
    pub(crate) attr: QpAttr,
    pub(crate) ring: Ring,
    /// The device that the address handle leads to.
    pub(crate) target: usize,
    pub(crate) peer: Option<Peer>,
    pub(crate) looked: Option<Instant>,
    pub(crate) sends: VecDeque<Send>,
    pub(crate) recvs: VecDeque<Recv>,
    /// Those of `sends` that wait for completion only.
    pub(crate) placed: usize,
    pub(crate) head: usize,
    /// Depth that the next signaled completion gives back.
    pub(crate) unsignaled: u32,
    pub(crate) held: Option<Send>,
    /// Since when an RC queue pair has not reached its peer.
    pub(crate) lost_since: Option<Instant>,
    /// When it last sent, where that matters.
    pub(crate) sent: Option<Instant>,
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
            sent: None,
        }
    }

    pub(crate) fn clear(&mut self) {
        (self.peer, self.held, self.lost_since, self.looked, self.sent) = (None, None, None, None, None);
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
    pub(crate) fn waits(&self) -> bool {
        self.kind == RC || self.home.apple()
    }

    pub(crate) fn still(&self, device: usize) -> bool {
        self.home.board.still(device)
    }

    pub(crate) fn up(&self, device: usize) -> bool {
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

    pub(crate) fn complete(&self, inner: &mut Inner, send: &Send, code: u32) {
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
