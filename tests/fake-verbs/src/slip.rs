//! Mistakes that a program could make, made for it: a call is changed on its way in, and its rule must notice.
//!
//! `"slips": ["gid-index"]` in `fabric.json` makes a program's right calls wrong in just the way that breaks the rule of that
//! name, so a test can show that the rule watches that very program.

use std::ffi::c_int;

use crate::abi::{QpAttr, QpCap, QpInitAttr, RC, RecvWr, SendWr, Sge, mask, state};
use crate::config::Config;

/// Bytes of a frame.
const FRAME: u32 = 4096;

impl Config {
    pub(crate) fn slips(&self, name: &str) -> bool {
        self.slips.iter().any(|slip| slip == name)
    }
}

/// Makes an object, and with the slip `name` as many more as there may be, of which the program knows nothing.
pub(crate) fn make<T>(config: &Config, name: &str, make: impl Fn() -> *mut T) -> *mut T {
    let first = make();
    while config.slips(name) && !first.is_null() && !make().is_null() {}
    first
}

/// What is asked of a new queue pair.
pub(crate) fn create(config: &Config, attr: &mut QpInitAttr) {
    if config.slips("qp-type") {
        attr.qp_type = RC;
    }
    if config.slips("inline") {
        attr.cap.max_inline_data = 64;
    }
    if config.slips("too-many-sges") {
        attr.cap.max_send_sge = 2;
    }
    if config.slips("srq") {
        attr.srq = attr.send_cq.cast();
    }
}

/// How deep a program believes its queues to be.
pub(crate) fn depth(config: &Config, cap: QpCap) -> QpCap {
    let times =
        if ["overpost-recv", "overpost-send", "queue-full"].iter().any(|slip| config.slips(slip)) { 4 } else { 1 };
    QpCap { max_recv_wr: cap.max_recv_wr * times, max_send_wr: cap.max_send_wr * times, ..cap }
}

/// Another state of a queue pair; whether it is asked for at all.
pub(crate) fn modify(config: &Config, attr: &mut QpAttr, bits: &mut c_int) -> bool {
    let connects = *bits as u32 & mask::AV != 0;
    if connects && config.slips("gid-index") {
        attr.ah_attr.grh.sgid_index = 0;
    }
    if connects && config.slips("no-grh") {
        attr.ah_attr.is_global = 0;
    }
    if connects && config.slips("psn") {
        attr.rq_psn ^= 1;
    }
    if connects && config.slips("modify") {
        *bits &= !(mask::PATH_MTU as c_int);
    }
    if config.slips("argument") {
        attr.port_num += 1;
    }
    let forgotten = match attr.qp_state {
        state::RTR => config.slips("recv-before-rtr"),
        state::RTS => config.slips("recv-before-rtr") || config.slips("send-before-rts"),
        _ => false,
    };
    !forgotten
}

/// A registration: where it begins, how long it is, and its rights.
pub(crate) fn register(config: &Config, addr: usize, length: usize, access: c_int) -> (usize, usize, c_int) {
    if config.slips("mr-unmapped") {
        return (1 << 44, length, access);
    }
    if config.slips("mr-too-large") {
        return (large(), (4 << 30) + 1, access);
    }
    let shift = if config.slips("mr-alignment") { 64 } else { 0 };
    (addr + shift, length - shift, if config.slips("access") { 0 } else { access })
}

/// More than 4 GiB of addresses, from a page of a Mac's on, which nobody writes to.
fn large() -> usize {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
    // SAFETY: a new mapping; the kernel chooses the address.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 5 << 30, libc::PROT_READ, flags, -1, 0) };
    at.addr().next_multiple_of(16384)
}

/// Entries of a completion queue.
pub(crate) fn entries(config: &Config, asked: c_int) -> c_int {
    if config.slips("cq-overrun") { 1 } else { asked }
}

/// An entry of the table of GIDs as a program sees it that takes any for the one it needs.
pub(crate) fn gid(config: &Config, known: [u8; 16]) -> [u8; 16] {
    let any = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 169, 254, 0, 1];
    if config.slips("no-ipv4") { any } else { known }
}

/// A send, with its memory.
pub(crate) fn send(config: &Config, request: &SendWr, memory: &Sge) -> (SendWr, Sge) {
    let mut wr = SendWr { ..*request };
    let mut part = Sge { ..*memory };
    if config.slips("opcode") {
        wr.opcode = 0;
    }
    if config.slips("wr-tail") {
        wr.rest[10] = 0xdead_beef;
    }
    if config.slips("lkey") {
        part.lkey ^= 1;
    }
    if config.slips("frames") && part.length > FRAME {
        part.length -= FRAME;
    }
    if config.slips("message-too-long") {
        part.length = 4096 * FRAME;
    }
    (wr, part)
}

/// What a program does to the memory of a send that it has posted.
pub(crate) fn sent(config: &Config, part: &Sge) {
    if config.slips("buffer-changed") {
        // SAFETY: registered memory of the program's, which it could write to as well.
        unsafe { *(part.addr as *mut u8) ^= 1 };
    }
}

/// A receive's memory.
pub(crate) fn receive(config: &Config, request: &RecvWr) -> Option<Sge> {
    // SAFETY: it has one element at least where it has memory.
    let part = (request.num_sge == 1).then(|| unsafe { *request.sg_list })?;
    config.slips("recv-too-short").then(|| Sge { length: part.length - 1, ..part })
}
