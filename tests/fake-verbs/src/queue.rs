//! Completion queues; polling one moves the data of its queue pairs.

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::abi::{Context, Cq, Wc, status};
use crate::board::Kind;
use crate::device::Opened;
use crate::handle::{self, Owned};
use crate::home::{Errno, Home, Object, locked, raise};
use crate::rules;
use crate::slip;
use crate::wire::Pair;

/// What of a queue pair's depth is in use.
#[derive(Default)]
pub(crate) struct Depth {
    pub(crate) send: AtomicU32,
    pub(crate) recv: AtomicU32,
}

/// A completion that nobody has polled.
pub(crate) struct Done {
    pub(crate) wc: Wc,
    pub(crate) depth: Arc<Depth>,
    /// What its polling gives back.
    pub(crate) send: u32,
    /// As well.
    pub(crate) recv: u32,
}

/// What queue pairs know of a completion queue.
pub(crate) struct Queue {
    home: Arc<Home>,
    index: usize,
    capacity: usize,
    done: Mutex<VecDeque<Done>>,
    pub(crate) pairs: Mutex<Vec<Arc<Pair>>>,
}

impl Queue {
    pub(crate) fn push(&self, done: Done) {
        let mut queue = locked(&self.done);
        if queue.len() < self.capacity {
            return queue.push_back(done);
        }
        drop(queue);
        self.home.violation(rules::CQ_OVERRUN, self.index, &format!("{} completions were not polled", self.capacity));
    }

    /// Whether it is of that device.
    pub(crate) fn of(&self, home: &Arc<Home>, index: usize) -> bool {
        Arc::ptr_eq(&self.home, home) && self.index == index
    }

    /// Forgets a queue pair and its completions.
    pub(crate) fn forget(&self, number: u32) {
        locked(&self.pairs).retain(|pair| pair.number != number);
        self.purge(number);
    }

    /// Forgets the completions of a queue pair.
    pub(crate) fn purge(&self, number: u32) {
        locked(&self.done).retain(|done| done.wc.qp_num != number);
    }
}

/// A completion queue.
pub(crate) struct QueueHandle {
    pub(crate) queue: Arc<Queue>,
    object: Object,
}

impl Owned for QueueHandle {
    type Public = Cq;
    const MAGIC: u64 = 0x7175_6575_6500_0005;

    fn place(&self) -> (&Home, usize) {
        (&self.queue.home, self.queue.index)
    }
}

/// A new completion queue, without events.
///
/// # Safety
///
/// A context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_cq(
    context: *mut Context,
    cqe: c_int,
    cq_context: *mut c_void,
    channel: *mut c_void,
    vector: c_int,
) -> *mut Cq {
    // SAFETY: a handle, as the caller promises.
    let Some(opened) = (unsafe { handle::get::<Opened>(context) }) else {
        raise(libc::EINVAL);
        return std::ptr::null_mut();
    };
    let limits = opened.device().limits;
    let cqe = slip::entries(&opened.home.config, cqe);
    if opened.spoilt() {
        return std::ptr::null_mut();
    }
    if cqe < 1 || cqe as u32 > limits.max_cqe || vector != 0 || !channel.is_null() {
        opened.violation(rules::ARGUMENT, &format!("create_cq with {cqe} entries, vector {vector}"));
        opened.fail(Errno::Invalid);
        return std::ptr::null_mut();
    }
    let Ok(object) = opened.home.record(opened.index, "cq", limits.max_cq) else {
        opened.fail(Errno::Memory);
        return std::ptr::null_mut();
    };
    opened.users.fetch_add(1, Ordering::AcqRel);
    let public = Cq {
        context,
        channel,
        cq_context,
        handle: object.number,
        cqe,
        mutex: libc::PTHREAD_MUTEX_INITIALIZER,
        cond: libc::PTHREAD_COND_INITIALIZER,
        comp_events_completed: 0,
        async_events_completed: 0,
    };
    let queue = Arc::new(Queue {
        home: opened.home.clone(),
        index: opened.index,
        capacity: cqe as usize,
        done: Mutex::default(),
        pairs: Mutex::default(),
    });
    handle::make(public, QueueHandle { queue, object })
}

/// Ends it.
///
/// # Safety
///
/// A completion queue.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_cq(cq: *mut Cq) -> c_int {
    // SAFETY: a handle, as the caller promises.
    let Some(own) = (unsafe { handle::get::<QueueHandle>(cq) }) else { return raise(libc::EINVAL) };
    let pairs = locked(&own.queue.pairs).len();
    if pairs != 0 {
        let home = &own.queue.home;
        home.violation(rules::ORDER, own.queue.index, &format!("destroy_cq with {pairs} queue pairs"));
        return raise(home.errno(Errno::Busy));
    }
    // SAFETY: a live handle; handles are never freed, so its context can be asked.
    unsafe {
        if handle::end::<QueueHandle>(cq) {
            own.object.release();
            if let Some(opened) = handle::get::<Opened>((*cq).context) {
                opened.users.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
    0
}

/// Moves data and takes completions.
///
/// # Safety
///
/// A completion queue, and room for `count` completions.
pub(crate) unsafe extern "C" fn poll_cq(cq: *mut Cq, count: c_int, out: *mut Wc) -> c_int {
    // SAFETY: a handle, as the caller promises.
    let Some(own) = (unsafe { handle::get::<QueueHandle>(cq) }) else { return -1 };
    let queue = &*own.queue;
    match queue.home.board.fault(&[Kind::Poll, Kind::Hang], queue.index, 0) {
        Some((Kind::Hang, time)) => std::thread::sleep(Duration::from_millis(time)),
        Some(_) => return -1,
        None => {}
    }
    for pair in locked(&queue.pairs).iter() {
        pair.progress();
    }
    let mut done = locked(&queue.done);
    let mut taken = 0;
    while taken < count {
        let Some(next) = done.pop_front() else { break };
        next.depth.send.fetch_sub(next.send, Ordering::AcqRel);
        next.depth.recv.fetch_sub(next.recv, Ordering::AcqRel);
        let mut wc = next.wc;
        if wc.status != status::SUCCESS {
            // verbs: valid are only wr_id, status, qp_num and vendor_err then; whoever reads more, sees it
            wc = Wc { opcode: !0, byte_len: !0, imm_data: !0, wc_flags: !0, vendor_err: 0x81, ..wc };
        }
        // SAFETY: room for `count` of them, as the caller promises.
        unsafe { out.add(taken as usize).write(wc) };
        taken += 1;
    }
    taken
}

/// What a status means.
#[unsafe(no_mangle)]
pub extern "C" fn ibv_wc_status_str(status: u32) -> *const std::ffi::c_char {
    let text = match status {
        0 => c"success",
        1 => c"local length error",
        2 => c"local QP operation error",
        4 => c"local protection error",
        5 => c"Work Request Flushed Error",
        9 => c"remote invalid request error",
        12 => c"transport retry counter exceeded",
        13 => c"RNR retry counter exceeded",
        21 => c"general error",
        _ => c"unknown",
    };
    text.as_ptr()
}
