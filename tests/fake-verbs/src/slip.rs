//! Mistakes that a program could make, made for it: a call is changed on its way in, and its rule must notice.
//!
//! `"slips": ["gid-index"]` in `fabric.json` makes a program's right calls wrong in just that way, so a test can show that
//! the rule watches that very program. Slips of setting up go on; those of single requests happen from the 5th on.

use std::ffi::c_int;

use crate::abi::{QpAttr, QpInitAttr, RC, SendWr, Sge, mask};
use crate::config::Config;

/// Bytes of a frame.
const FRAME: u32 = 4096;

impl Config {
    pub(crate) fn slips(&self, name: &str) -> bool {
        self.slips.iter().any(|slip| slip == name)
    }
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
}

/// Another state of a queue pair.
pub(crate) fn modify(config: &Config, attr: &mut QpAttr, bits: &mut c_int) {
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
}

/// A registration: where it begins, and its rights.
pub(crate) fn register(config: &Config, addr: usize, length: usize, access: c_int) -> (usize, usize, c_int) {
    let shift = if config.slips("mr-alignment") { 64 } else { 0 };
    (addr + shift, length - shift, if config.slips("access") { 0 } else { access })
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
    (wr, part)
}
