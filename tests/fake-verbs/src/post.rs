//! Requests: checked against the rules, then queued.

use std::ffi::c_int;
use std::sync::atomic::Ordering;

use crate::abi::{INLINE, Qp, RecvWr, SEND, SEND_WITH_IMM, SIGNALED, SendWr, Sge, state};
use crate::board::Kind;
use crate::handle;
use crate::home::{Errno, locked};
use crate::pair::PairHandle;
use crate::request::{ELEMENTS, Parts, Recv, Send, frames};
use crate::rules;
use crate::slip;
use crate::wire::Pair;

/// Copies a list of elements.
///
/// # Safety
///
/// `count` elements at `list`.
unsafe fn parts(pair: &Pair, list: *const Sge, count: c_int, most: u32) -> Result<Parts, Errno> {
    if count < 0 || count as u32 > most || count as usize > ELEMENTS {
        pair.violation(rules::TOO_MANY_SGES, &format!("{count} elements"));
        return Err(Errno::Invalid);
    }
    let mut parts = Parts { count: count as usize, ..Parts::default() };
    for at in 0..parts.count {
        // SAFETY: as the caller promises.
        parts.parts[at] = unsafe { *list.add(at) };
    }
    Ok(parts)
}

fn send_checked(pair: &Pair, wr: &SendWr) -> Result<(), Errno> {
    let home = &pair.home;
    // SAFETY: as `post_send`'s caller promises.
    let parts = unsafe { parts(pair, wr.sg_list, wr.num_sge, pair.cap.max_send_sge)? };
    let len = parts.len();
    let imm = wr.opcode == SEND_WITH_IMM;
    if wr.opcode != SEND && (home.apple() || !imm) {
        pair.violation(rules::OPCODE, &format!("opcode {}", wr.opcode));
        return Err(if home.apple() { Errno::Invalid } else { Errno::Unsupported });
    }
    if home.apple() && (wr.imm_data != 0 || wr.rest != [0; 11]) {
        pair.violation(rules::WR_TAIL, &format!("imm_data {:#x}, rest {:x?}", wr.imm_data, wr.rest));
        return Err(Errno::Invalid);
    }
    let inline = wr.send_flags & INLINE != 0;
    if inline && (home.apple() || len > pair.cap.max_inline_data as usize) {
        pair.violation(rules::INLINE, &format!("{len} bytes inline"));
        return Err(Errno::Invalid);
    }
    if len > home.config.devices[pair.index].limits.max_msg as usize {
        pair.violation(rules::MESSAGE_TOO_LONG, &format!("{len} bytes"));
        return Err(Errno::Invalid);
    }
    if !inline && !parts.iter().all(|part| pair.domain.covers(part)) {
        pair.violation(rules::LKEY, "post_send");
        return Err(Errno::Invalid);
    }
    let inner = &mut *locked(&pair.inner);
    let signaled = pair.all_signaled || wr.send_flags & SIGNALED != 0;
    let cost = if home.apple() { frames(len) } else { 1 };
    if inner.state != state::RTS && inner.state != state::ERR {
        pair.violation(rules::SEND_BEFORE_RTS, &format!("state {}", inner.state));
        return Err(Errno::Invalid);
    }
    if pair.depth.send.load(Ordering::Acquire) + cost > pair.cap.max_send_wr {
        if home.apple() {
            pair.violation(rules::OVERPOST_SEND, &format!("{cost} frames more than {}", pair.cap.max_send_wr));
            return Ok(());
        }
        pair.violation(rules::QUEUE_FULL, &format!("{} sends", pair.cap.max_send_wr));
        return Err(Errno::Memory);
    }
    pair.depth.send.fetch_add(cost, Ordering::AcqRel);
    let mut send = Send::new(wr.wr_id, parts, imm.then_some(wr.imm_data), signaled, cost);
    if inline {
        let mut bytes = Vec::with_capacity(len);
        for part in parts.iter() {
            // SAFETY: inline data are read during this call.
            bytes
                .extend_from_slice(unsafe { std::slice::from_raw_parts(part.addr as *const u8, part.length as usize) });
        }
        send.bytes = Some(bytes.into_boxed_slice());
    }
    inner.sends.push_back(send);
    match inner.state {
        state::ERR => pair.to_error(inner),
        _ => pair.push(inner),
    }
    // what could not leave at once is compared when it does
    if inner.placed < inner.sends.len()
        && let Some(send) = inner.sends.back_mut().filter(|send| send.bytes.is_none())
    {
        send.posted = Some(send.sum());
    }
    Ok(())
}

fn recv_checked(pair: &Pair, wr: &RecvWr) -> Result<(), Errno> {
    let home = &pair.home;
    if home.board.fault(&[Kind::Crash], pair.index, pair.number).is_some() {
        // SAFETY: none: this is the crash that a fault asked for. A raised signal would not do, because Rust's handler
        // takes it away and lets the instruction fault again.
        unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(0) };
    }
    // SAFETY: as `post_recv`'s caller promises.
    let parts = unsafe { parts(pair, wr.sg_list, wr.num_sge, pair.cap.max_recv_sge)? };
    if !parts.iter().all(|part| pair.domain.covers(part)) {
        pair.violation(rules::LKEY, "post_recv");
        return Err(Errno::Invalid);
    }
    let inner = &mut *locked(&pair.inner);
    let first = if home.apple() { state::RTR } else { state::INIT };
    if inner.state < first {
        pair.violation(rules::RECV_BEFORE_RTR, &format!("state {}", inner.state));
        return Err(Errno::Invalid);
    }
    let cost = if home.apple() { frames(parts.len()) } else { 1 };
    if pair.depth.recv.load(Ordering::Acquire) + cost > pair.cap.max_recv_wr {
        if home.apple() {
            pair.violation(rules::OVERPOST_RECV, &format!("{cost} frames more than {}", pair.cap.max_recv_wr));
            return Ok(());
        }
        pair.violation(rules::QUEUE_FULL, &format!("{} receives", pair.cap.max_recv_wr));
        return Err(Errno::Memory);
    }
    pair.depth.recv.fetch_add(cost, Ordering::AcqRel);
    inner.recvs.push_back(Recv { id: wr.wr_id, parts, cost });
    match inner.state {
        state::ERR => pair.to_error(inner),
        _ => inner.ring.post(parts.len() as u32),
    }
    Ok(())
}

/// Sends.
///
/// # Safety
///
/// A queue pair, a chain of requests whose elements are there, and a pointer that may be written.
pub(crate) unsafe extern "C" fn post_send(qp: *mut Qp, wr: *mut SendWr, bad: *mut *mut SendWr) -> c_int {
    // SAFETY: a handle, as the caller promises.
    let Some(own) = (unsafe { handle::get::<PairHandle>(qp) }) else { return libc::EINVAL };
    let mut next = wr;
    while !next.is_null() {
        // SAFETY: a request of the chain.
        let request = unsafe { &*next };
        // SAFETY: it has one element at least where it has memory.
        let changed =
            (request.num_sge == 1).then(|| slip::send(&own.pair.home.config, request, unsafe { &*request.sg_list }));
        let changed = changed.map(|(wr, part)| (wr, [part]));
        let sent = match &changed {
            None => send_checked(&own.pair, request),
            Some((wr, part)) => send_checked(&own.pair, &SendWr { sg_list: part.as_ptr().cast_mut(), ..*wr }),
        };
        if let Err(error) = sent {
            // SAFETY: may be written.
            unsafe { *bad = next };
            return own.pair.home.errno(error);
        }
        if let Some((_, [part])) = &changed {
            slip::sent(&own.pair.home.config, part);
        }
        next = request.next;
    }
    0
}

/// Receives.
///
/// # Safety
///
/// A queue pair, a chain of requests whose elements are there, and a pointer that may be written.
pub(crate) unsafe extern "C" fn post_recv(qp: *mut Qp, wr: *mut RecvWr, bad: *mut *mut RecvWr) -> c_int {
    // SAFETY: a handle, as the caller promises.
    let Some(own) = (unsafe { handle::get::<PairHandle>(qp) }) else { return libc::EINVAL };
    let mut next = wr;
    while !next.is_null() {
        // SAFETY: a request of the chain.
        let request = unsafe { &*next };
        let posted = match slip::receive(&own.pair.home.config, request) {
            None => recv_checked(&own.pair, request),
            Some(mut part) => recv_checked(&own.pair, &RecvWr { sg_list: &raw mut part, ..*request }),
        };
        if let Err(error) = posted {
            // SAFETY: may be written.
            unsafe { *bad = next };
            return own.pair.home.errno(error);
        }
        next = request.next;
    }
    0
}
