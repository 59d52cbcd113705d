//! Queue pairs: from their making through their states to sends and receives.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{self, AhAttr, QpAttr, QpCap, QpInitAttr, RecvWr, SEND_SIGNALED, STATES, SendWr, Sge, WR_SEND, mask};
use super::device::{Completions, Domain};
use super::errors::{self, Step};
use super::library::Functions;
use super::open::Object;
use super::port::Port;
use crate::error::Result;

/// What a queue pair promises, by verbs' number of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// Reliable: the device acknowledges and repeats.
    Rc = 2,
    /// Unreliable: in order, but what is lost is lost. All that Apple's devices have.
    Uc = 3,
}

impl Service {
    /// What the field calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rc => "RC",
            Self::Uc => "UC",
        }
    }
}

/// Requests that a queue pair can hold: of 4 KiB frames on Apple's devices, of messages elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Sends.
    pub sends: usize,
    /// Receives.
    pub receives: usize,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// Its queue pair's number.
    pub number: u32,
    /// The first packet's number.
    pub first_packet: u32,
    /// Its port's address.
    pub gid: abi::Gid,
    /// Its port's local identifier.
    pub lid: u16,
    /// The smaller of both ends' packets, as verbs count them.
    pub mtu: u32,
    /// How many routers may stand in between, and one more.
    pub hops: u8,
}

/// A queue pair.
pub struct QueuePair {
    raw: NonNull<abi::Qp>,
    service: Service,
    // held, because it must not end first
    domain: Arc<Domain>,
    _completions: Arc<Completions>,
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for QueuePair {}

impl QueuePair {
    /// Makes one whose queues hold `depth` requests, each of one run of memory.
    ///
    /// # Errors
    /// If the device has no more, or cannot do `service`.
    pub fn new(domain: &Arc<Domain>, completions: &Arc<Completions>, service: Service, depth: Depth) -> Result<Self> {
        let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let mut attr = QpInitAttr {
            qp_context: std::ptr::null_mut(),
            send_cq: completions.raw.as_ptr(),
            recv_cq: completions.raw.as_ptr(),
            srq: std::ptr::null_mut(),
            cap: QpCap {
                max_send_wr: count(depth.sends),
                max_recv_wr: count(depth.receives),
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 0,
            },
            qp_type: service as u32,
            sq_sig_all: 0,
        };
        // SAFETY: domain and queue stand, and the structure is what the header says.
        let make = |library: &Functions| unsafe { (library.create_qp)(domain.raw.as_ptr(), &raw mut attr) };
        let raw = domain.device.open.make(Object::QueuePair, make);
        let raw = raw.map_err(|errno| errors::failed(Step::QueuePair(service), domain.device.name(), errno))?;
        Ok(Self { raw, service, domain: Arc::clone(domain), _completions: Arc::clone(completions) })
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        // SAFETY: the queue pair stands.
        unsafe { (*self.raw.as_ptr()).qp_num }
    }

    /// How many requests it really holds.
    ///
    /// # Errors
    /// If the device does not say.
    pub fn depth(&self) -> Result<Depth> {
        let (mut attr, device) = (QpAttr::default(), &self.domain.device);
        // SAFETY: all zeros is a value: null pointers and integers.
        let mut init: QpInitAttr = unsafe { std::mem::zeroed() };
        // SAFETY: the queue pair stands, and both structures are what the header says.
        let query = |library: &Functions| unsafe {
            (library.query_qp)(self.raw.as_ptr(), &raw mut attr, mask::CAP, &raw mut init)
        };
        let errno = device.open.call(query);
        if errno != 0 {
            return Err(errors::failed(Step::Query, device.name(), errno));
        }
        let cap = if attr.cap.max_recv_wr > 0 { attr.cap } else { init.cap };
        Ok(Depth { sends: cap.max_send_wr as usize, receives: cap.max_recv_wr as usize })
    }

    /// Connects it to `remote`: receives may be posted from here on, and sends once the other end has done the same.
    ///
    /// # Errors
    /// If the device refuses: the cable, the address or the port.
    pub fn connect(&mut self, port: &Port, first_packet: u32, remote: &Remote) -> Result<()> {
        let reliable = self.service == Service::Rc;
        let init = QpAttr {
            qp_state: STATES[0],
            port_num: port.number,
            // what comes is received; nobody reads or writes from outside
            qp_access_flags: if self.domain.device.is_thunderbolt() { abi::ACCESS_ALL as u32 } else { 0 },
            ..QpAttr::default()
        };
        self.modify(init, mask::STATE | mask::PKEY_INDEX | mask::PORT | mask::ACCESS_FLAGS, Step::Init)?;
        let ready = QpAttr {
            qp_state: STATES[1],
            path_mtu: remote.mtu,
            rq_psn: remote.first_packet,
            dest_qp_num: remote.number,
            ah_attr: AhAttr {
                dgid: if port.infiniband { abi::Gid::default() } else { remote.gid },
                sgid_index: port.gid_index,
                hop_limit: remote.hops,
                is_global: u8::from(!port.infiniband),
                dlid: remote.lid,
                port_num: port.number,
                ..AhAttr::default()
            },
            max_dest_rd_atomic: u8::from(reliable),
            min_rnr_timer: if reliable { 1 } else { 0 },
            ..QpAttr::default()
        };
        let mut which = mask::STATE | mask::AV | mask::PATH_MTU | mask::DEST_QPN | mask::RQ_PSN;
        if reliable {
            which |= mask::MAX_DEST_RD_ATOMIC | mask::MIN_RNR_TIMER;
        }
        self.modify(ready, which, Step::Receive)?;
        // 4.096 µs · 2^16 is 268 ms, seven times: heartbeats find the dead earlier, and the slow are not broken
        let sends = QpAttr {
            qp_state: STATES[2],
            sq_psn: first_packet,
            timeout: if reliable { 16 } else { 0 },
            retry_cnt: if reliable { 7 } else { 0 },
            rnr_retry: if reliable { 7 } else { 0 },
            max_rd_atomic: u8::from(reliable),
            ..QpAttr::default()
        };
        let mut which = mask::STATE | mask::SQ_PSN;
        if reliable {
            which |= mask::TIMEOUT | mask::RETRY_CNT | mask::RNR_RETRY | mask::MAX_QP_RD_ATOMIC;
        }
        self.modify(sends, which, Step::Send)
    }

    fn modify(&mut self, mut attr: QpAttr, which: c_int, step: Step) -> Result<()> {
        let device = &self.domain.device;
        // SAFETY: the queue pair stands, and the structure is what the header says.
        let modify = |library: &Functions| unsafe { (library.modify_qp)(self.raw.as_ptr(), &raw mut attr, which) };
        let errno = device.open.call(modify);
        if errno == 0 { Ok(()) } else { Err(errors::failed(step, device.name(), errno)) }
    }

    /// Posts one send; the memory is the device's until its completion.
    pub(super) fn post_send(&mut self, id: u64, mut memory: Sge) -> Result<()> {
        let mut request = SendWr {
            wr_id: id,
            next: std::ptr::null_mut(),
            sg_list: &raw mut memory,
            num_sge: 1,
            opcode: WR_SEND,
            send_flags: SEND_SIGNALED,
            imm_data: 0,
            unused: [0; 11],
        };
        let mut bad = std::ptr::null_mut();
        let errno = self.domain.device.open.call(|_| {
            // SAFETY: the queue pair stands; its context and the functions there are the library's.
            let post = unsafe { (*(*self.raw.as_ptr()).context).ops.post_send };
            // SAFETY: the request lives until the call returns, and the slab keeps the memory it names.
            post.map_or(libc::ENOSYS, |post| unsafe { post(self.raw.as_ptr(), &raw mut request, &raw mut bad) })
        });
        if errno == 0 { Ok(()) } else { Err(errors::failed(Step::PostSend, self.domain.device.name(), errno)) }
    }

    /// Posts one receive; the memory is the device's until its completion.
    pub(super) fn post_recv(&mut self, id: u64, mut memory: Sge) -> Result<()> {
        let mut request = RecvWr { wr_id: id, next: std::ptr::null_mut(), sg_list: &raw mut memory, num_sge: 1 };
        let mut bad = std::ptr::null_mut();
        let errno = self.domain.device.open.call(|_| {
            // SAFETY: the queue pair stands; its context and the functions there are the library's.
            let post = unsafe { (*(*self.raw.as_ptr()).context).ops.post_recv };
            // SAFETY: the request lives until the call returns, and the slab keeps the memory it names.
            post.map_or(libc::ENOSYS, |post| unsafe { post(self.raw.as_ptr(), &raw mut request, &raw mut bad) })
        });
        if errno == 0 { Ok(()) } else { Err(errors::failed(Step::PostRecv, self.domain.device.name(), errno)) }
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // straight from sending: to go through the error state first breaks Apple's unmapping of memory
        self.domain.device.open.end(Object::QueuePair(self.raw));
    }
}
