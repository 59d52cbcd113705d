//! Queue pairs: made, connected, asked, ended.

use std::ffi::c_int;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use crate::abi::{self, LOCAL_WRITE, Qp, QpAttr, QpCap, QpInitAttr, RC, UC, mask, state};
use crate::config::Granted;
use crate::handle::{self, Owned};
use crate::home::{Errno, Full, Home, Object, locked, raise};
use crate::memory::DomainHandle;
use crate::queue::QueueHandle;
use crate::ring::Ring;
use crate::rules::{self, Rule};
use crate::slip;
use crate::wire::{Inner, Pair};

/// A queue pair.
pub(crate) struct PairHandle {
    pub(crate) pair: Arc<Pair>,
    object: Object,
}

impl Owned for PairHandle {
    type Public = Qp;
    const MAGIC: u64 = 0x7061_6972_0000_0006;

    fn place(&self) -> (&Home, usize) {
        (&self.pair.home, self.pair.index)
    }
}

/// Third parties: 256 became 1023. TN3205: ask ibv_query_qp.
fn granted(home: &Home, asked: u32) -> u32 {
    match home.config.granted {
        Granted::Asked => asked,
        Granted::Always(depth) => depth,
        Granted::Up => ((asked + 1).next_power_of_two() - 1).clamp(1023, 4095),
    }
}

/// A new queue pair.
///
/// # Safety
///
/// A domain, and attributes with completion queues of the same device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_qp(pd: *mut abi::Pd, attr: *mut QpInitAttr) -> *mut Qp {
    // SAFETY: a handle, as the caller promises.
    match unsafe { handle::get::<DomainHandle>(pd) } {
        // SAFETY: as the caller promises.
        Some(own) => slip::make(&own.domain.home.config, "too-many-qps", || unsafe { create(pd, attr) }),
        None => {
            raise(libc::EINVAL);
            std::ptr::null_mut()
        }
    }
}

/// As [`ibv_create_qp`].
unsafe fn create(pd: *mut abi::Pd, attr: *mut QpInitAttr) -> *mut Qp {
    // SAFETY: handles, as the caller promises.
    let (domain, send, recv) = unsafe {
        let queues = (handle::get::<QueueHandle>((*attr).send_cq), handle::get::<QueueHandle>((*attr).recv_cq));
        match (handle::get::<DomainHandle>(pd), queues) {
            (Some(domain), (Some(send), Some(recv))) => (&domain.domain, &send.queue, &recv.queue),
            _ => {
                raise(libc::EINVAL);
                return std::ptr::null_mut();
            }
        }
    };
    // SAFETY: attributes, as the caller promises.
    let asked = unsafe { &mut *attr };
    let home = &domain.home;
    slip::create(&home.config, asked);
    let refuse = |rule: Option<Rule>, detail: &str, error: Errno| {
        if let Some(rule) = rule {
            home.violation(rule, domain.index, detail);
        }
        raise(home.errno(error));
        std::ptr::null_mut()
    };
    if home.spoilt(domain.index).is_some() {
        return std::ptr::null_mut();
    }
    let limits = home.config.devices[domain.index].limits;
    let (cap, apple) = (asked.cap, home.apple());
    if [send, recv].into_iter().any(|queue| !queue.of(home, domain.index)) {
        return refuse(Some(rules::ARGUMENT), "create_qp with a completion queue of another device", Errno::Invalid);
    }
    if asked.qp_type != UC && (apple || asked.qp_type != RC) {
        return refuse(Some(rules::QP_TYPE), &format!("type {}", asked.qp_type), Errno::Unsupported);
    }
    if !asked.srq.is_null() {
        return refuse(Some(rules::SRQ), "create_qp", Errno::Invalid);
    }
    if cap.max_inline_data > limits.max_inline {
        return refuse(Some(rules::INLINE), &format!("{} bytes", cap.max_inline_data), Errno::Invalid);
    }
    if cap.max_send_sge.max(cap.max_recv_sge) > limits.max_sge {
        return refuse(Some(rules::TOO_MANY_SGES), "create_qp", Errno::Invalid);
    }
    if cap.max_send_wr.max(cap.max_recv_wr) > limits.max_qp_wr {
        return refuse(Some(rules::ARGUMENT), "create_qp with a queue that is too deep", Errno::Invalid);
    }
    // one of those that ibv_query_device names is not to be had (MLX #4209)
    let most = limits.max_qp - u32::from(apple);
    let object = match home.record(domain.index, "qp", most) {
        Ok(object) => object,
        Err(Full { own }) => {
            return refuse(own.then_some(rules::TOO_MANY_QPS), &format!("{most} are there"), Errno::Busy);
        }
    };
    let path = home.dir.join("qps").join(object.number.to_string());
    let Ok(ring) = Ring::new(&path, domain.index, &home.token) else {
        object.release();
        return refuse(None, "", Errno::Memory);
    };
    domain.pairs.fetch_add(1, Ordering::AcqRel);
    let pair = Arc::new(Pair {
        home: home.clone(),
        index: domain.index,
        number: object.number,
        kind: asked.qp_type,
        cap: QpCap { max_send_wr: granted(home, cap.max_send_wr), max_recv_wr: granted(home, cap.max_recv_wr), ..cap },
        all_signaled: asked.sq_sig_all != 0,
        domain: domain.clone(),
        send_queue: send.clone(),
        recv_queue: recv.clone(),
        depth: Arc::default(),
        inner: Mutex::new(Inner::new(ring)),
    });
    locked(&send.pairs).push(pair.clone());
    if !Arc::ptr_eq(send, recv) {
        locked(&recv.pairs).push(pair.clone());
    }
    if !apple {
        // rdma-core writes back what there is; TN3205 has its readers ask
        asked.cap = pair.cap;
    }
    // SAFETY: a live handle.
    let context = unsafe { (*pd).context };
    let public = Qp {
        context,
        qp_context: asked.qp_context,
        pd,
        send_cq: asked.send_cq,
        recv_cq: asked.recv_cq,
        srq: std::ptr::null_mut(),
        handle: object.number,
        qp_num: object.number,
        state: state::RESET,
        qp_type: asked.qp_type,
        mutex: libc::PTHREAD_MUTEX_INITIALIZER,
        cond: libc::PTHREAD_COND_INITIALIZER,
        events_completed: 0,
    };
    handle::make(public, PairHandle { pair, object })
}

/// Which attributes a change of state needs, and which it may have: ib_modify_qp_is_ok of the kernel.
fn attributes(from: u32, to: u32, kind: u32) -> Option<(u32, u32)> {
    let rc = |bits: u32| if kind == RC { bits } else { 0 };
    let rights = mask::ACCESS_FLAGS | mask::PKEY_INDEX;
    match (from, to) {
        (_, state::RESET | state::ERR) => Some((0, 0)),
        (state::RESET, state::INIT) => Some((rights | mask::PORT, 0)),
        (state::INIT, state::INIT) => Some((0, rights | mask::PORT)),
        (state::INIT, state::RTR) => Some((
            mask::AV
                | mask::PATH_MTU
                | mask::DEST_QPN
                | mask::RQ_PSN
                | rc(mask::MAX_DEST_RD_ATOMIC | mask::MIN_RNR_TIMER),
            rights | mask::ALT_PATH,
        )),
        (state::RTR, state::RTS) => Some((
            mask::SQ_PSN | rc(mask::TIMEOUT | mask::RETRY_CNT | mask::RNR_RETRY | mask::MAX_QP_RD_ATOMIC),
            mask::CUR_STATE | mask::ALT_PATH | mask::ACCESS_FLAGS | mask::PATH_MIG_STATE | rc(mask::MIN_RNR_TIMER),
        )),
        _ => None,
    }
}

fn modify(pair: &Pair, attr: &QpAttr, bits: u32) -> Result<u32, Errno> {
    let home = &pair.home;
    let inner = &mut *locked(&pair.inner);
    let to = if bits & mask::STATE != 0 { attr.qp_state } else { inner.state };
    let allowed = attributes(inner.state, to, pair.kind);
    let fits = allowed.is_some_and(|(needed, may)| {
        let rest = bits & !mask::STATE;
        rest & needed == needed && rest & !(needed | may) == 0
    });
    if !fits {
        pair.violation(rules::MODIFY, &format!("{} to {to} with {bits:#x}, needs {allowed:x?}", inner.state));
        return Err(Errno::Invalid);
    }
    let refuse = |rule: Rule, detail: String| {
        pair.violation(rule, &detail);
        Err(Errno::Invalid)
    };
    match to {
        state::RESET => {
            inner.clear();
            [&pair.send_queue, &pair.recv_queue].into_iter().for_each(|queue| queue.purge(pair.number));
            pair.depth.send.store(0, Ordering::Release);
            pair.depth.recv.store(0, Ordering::Release);
        }
        state::INIT => {
            if bits & mask::PORT != 0 && attr.port_num != home.config.devices[pair.index].port_num {
                return refuse(rules::ARGUMENT, format!("port {}", attr.port_num));
            }
            if home.apple() && attr.qp_access_flags & LOCAL_WRITE as u32 == 0 {
                return refuse(rules::ACCESS, format!("qp_access_flags {}", attr.qp_access_flags));
            }
        }
        state::RTR => inner.target = connect(pair, attr)?,
        state::RTS => {}
        _ => {
            if home.apple() {
                pair.domain.spoilt.store(true, Ordering::Release);
                pair.violation(rules::QP_TO_ERR, "modify_qp");
            }
            pair.to_error(inner);
        }
    }
    let mut kept = *attr;
    if to != state::RTR {
        // what connects stays as it was told
        kept.ah_attr = inner.attr.ah_attr;
        (kept.dest_qp_num, kept.rq_psn, kept.path_mtu) =
            (inner.attr.dest_qp_num, inner.attr.rq_psn, inner.attr.path_mtu);
    }
    if to != state::INIT {
        kept.qp_access_flags = inner.attr.qp_access_flags;
        kept.port_num = inner.attr.port_num;
    }
    inner.attr = kept;
    inner.state = to;
    inner.ring.rq_psn.store(inner.attr.rq_psn, Ordering::Relaxed);
    inner.ring.state.store(to, Ordering::Release);
    if to == state::RTR {
        inner.ring.dest.store(attr.dest_qp_num, Ordering::Release);
    }
    Ok(to)
}

/// Where the address handle leads.
fn connect(pair: &Pair, attr: &QpAttr) -> Result<usize, Errno> {
    let (home, route) = (&pair.home, &attr.ah_attr.grh);
    let device = &home.config.devices[pair.index];
    let mut broken = None;
    if attr.ah_attr.is_global == 0 && device.lid == 0 {
        broken = Some((rules::NO_GRH, String::from("modify_qp")));
    } else if attr.ah_attr.port_num != device.port_num || !(1..=5).contains(&attr.path_mtu) {
        broken = Some((rules::ARGUMENT, format!("port {}, path_mtu {}", attr.ah_attr.port_num, attr.path_mtu)));
    } else if !home.apple() && attr.path_mtu > 3 {
        broken = Some((rules::ARGUMENT, format!("path_mtu {} of active_mtu 3", attr.path_mtu)));
    } else if home.apple() && device.ipv4.is_none() {
        broken = Some((rules::NO_IPV4, String::from("modify_qp")));
    } else if home.apple() && route.sgid_index as usize != device.gid_index {
        broken = Some((rules::GID_INDEX, format!("{} instead of {}", route.sgid_index, device.gid_index)));
    }
    if let Some((rule, detail)) = broken {
        pair.violation(rule, &detail);
        return Err(Errno::Invalid);
    }
    let local = attr.ah_attr.is_global == 0;
    if !local && (route.sgid_index as usize >= device.gids() || device.gid(route.sgid_index as usize) == [0; 16]) {
        return Err(Errno::Invalid);
    }
    // a port that is down, or a wrong cable: nobody answers
    let target = match local {
        true => home.config.reach_local(pair.index, attr.ah_attr.dlid),
        false => home.config.reach(pair.index, route.dgid.0),
    };
    let target = target.ok_or(Errno::TimedOut)?;
    if !home.board.up(&home.config, pair.index) || (home.apple() && !home.board.up(&home.config, target)) {
        return Err(Errno::TimedOut);
    }
    Ok(target)
}

/// Moves a queue pair to another state; gives an errno.
///
/// # Safety
///
/// A queue pair and attributes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_modify_qp(qp: *mut Qp, attr: *mut QpAttr, mut bits: c_int) -> c_int {
    // SAFETY: a handle, as the caller promises.
    let Some(own) = (unsafe { handle::get::<PairHandle>(qp) }) else { return raise(libc::EINVAL) };
    if let Some(code) = own.pair.home.spoilt(own.pair.index) {
        return code;
    }
    // SAFETY: attributes, as the caller promises.
    let attr = unsafe { &mut *attr };
    if !slip::modify(&own.pair.home.config, attr, &mut bits) {
        return 0;
    }
    match modify(&own.pair, attr, bits as u32) {
        Ok(to) => {
            // SAFETY: alive; only the program's own threads look at it.
            unsafe { (*qp).state = to };
            0
        }
        Err(error) => raise(own.pair.home.errno(error)),
    }
}

/// Tells the state, the attributes, and how deep the queues really are.
///
/// # Safety
///
/// A queue pair, and structures that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_qp(qp: *mut Qp, attr: *mut QpAttr, _: c_int, init: *mut QpInitAttr) -> c_int {
    // SAFETY: a handle, as the caller promises.
    let Some(own) = (unsafe { handle::get::<PairHandle>(qp) }) else { return raise(libc::EINVAL) };
    let inner = locked(&own.pair.inner);
    let cap = slip::depth(&own.pair.home.config, own.pair.cap);
    // SAFETY: may be written, as the caller promises.
    unsafe {
        attr.write(QpAttr { qp_state: inner.state, cur_qp_state: inner.state, cap, ..inner.attr });
        init.write(QpInitAttr {
            qp_context: (*qp).qp_context,
            send_cq: (*qp).send_cq,
            recv_cq: (*qp).recv_cq,
            srq: std::ptr::null_mut(),
            cap,
            qp_type: own.pair.kind,
            sq_sig_all: c_int::from(own.pair.all_signaled),
        });
    }
    0
}

/// Ends a queue pair, with what was posted.
///
/// # Safety
///
/// A queue pair.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_qp(qp: *mut Qp) -> c_int {
    // SAFETY: a handle, as the caller promises.
    let Some(own) = (unsafe { handle::get::<PairHandle>(qp) }) else { return raise(libc::EINVAL) };
    if own.pair.home.config.slips("order") {
        return 0;
    }
    if own.pair.home.config.slips("qp-to-err") {
        let attr = QpAttr { qp_state: state::ERR, ..QpAttr::default() };
        let _ = modify(&own.pair, &attr, mask::STATE);
    }
    // SAFETY: as above.
    if unsafe { handle::end::<PairHandle>(qp) } {
        let pair = &own.pair;
        for queue in [&pair.send_queue, &pair.recv_queue] {
            queue.forget(pair.number);
        }
        let inner = &mut *locked(&pair.inner);
        inner.ring.gone.store(1, Ordering::Release);
        inner.close();
        pair.domain.pairs.fetch_sub(1, Ordering::AcqRel);
        own.object.release();
    }
    if own.pair.home.config.slips("use-after-destroy") {
        // SAFETY: a handle, which is never freed.
        return unsafe { ibv_destroy_qp(qp) };
    }
    0
}
