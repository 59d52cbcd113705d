//! Devices: listed, opened, asked.

use std::ffi::{CStr, c_char, c_int};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::abi::{self, Context, DeviceAttr, Gid, Ops, PortAttr};
use crate::handle::{self, Owned};
use crate::home::{self, Errno, Home, Object, raise};
use crate::{config, post, queue, rules, slip};

/// A device in a list.
pub(crate) struct Listed {
    home: Arc<Home>,
    index: usize,
}

impl Owned for Listed {
    type Public = abi::Device;
    const MAGIC: u64 = 0x6465_7669_6365_0001;

    fn place(&self) -> (&Home, usize) {
        (&self.home, self.index)
    }
}

/// An open device.
pub(crate) struct Opened {
    pub(crate) home: Arc<Home>,
    pub(crate) index: usize,
    /// Domains and completion queues that depend on it.
    pub(crate) users: AtomicU32,
    object: Object,
}

impl Owned for Opened {
    type Public = Context;
    const MAGIC: u64 = 0x6f70_656e_6564_0002;

    fn place(&self) -> (&Home, usize) {
        (&self.home, self.index)
    }
}

impl Opened {
    pub(crate) fn device(&self) -> &config::Device {
        &self.home.config.devices[self.index]
    }

    pub(crate) fn violation(&self, rule: rules::Rule, detail: &str) {
        self.home.violation(rule, self.index, detail);
    }

    /// Whether a fault has this call fail; errno says how.
    pub(crate) fn spoilt(&self) -> bool {
        self.home.spoilt(self.index).is_some()
    }

    /// Sets errno and gives it back.
    pub(crate) fn fail(&self, error: Errno) -> c_int {
        raise(self.home.errno(error))
    }
}

/// Chooses the fabric (a directory) and the machine (or null: all) that this thread sees, instead of `FAKE_VERBS` and
/// `FAKE_VERBS_HOST`; null for both gives them back.
///
/// # Safety
///
/// Strings of C, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_verbs_use(dir: *const c_char, host: *const c_char) {
    let text = |pointer: *const c_char| {
        // SAFETY: a string if it is not null, as the caller promises.
        (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
    };
    home::choose(text(dir).map(|dir| (PathBuf::from(dir), text(host))));
}

fn chars<const N: usize>(text: &str) -> [c_char; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(text.bytes().take(N - 1)) {
        *to = from as c_char;
    }
    out
}

/// The devices of this machine; null with an errno when there is no fabric.
///
/// # Safety
///
/// `count` is null or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_device_list(count: *mut c_int) -> *mut *mut abi::Device {
    let Some((home, host)) = Home::current() else {
        raise(libc::ENOSYS);
        return std::ptr::null_mut();
    };
    let all = home.config.devices.iter().enumerate();
    let seen: Vec<(usize, &config::Device)> =
        all.filter(|(_, device)| host.as_ref().is_none_or(|host| *host == device.host)).collect();
    // devices of different machines may share a name; in one list they may not
    let alone = |name: &str| seen.iter().filter(|(_, device)| device.name == name).count() == 1;
    let make = |&(index, device): &(usize, &config::Device)| {
        let name = if alone(&device.name) { device.name.clone() } else { format!("{}.{}", device.name, device.host) };
        let public = abi::Device {
            ops: [std::ptr::null(); 2],
            node_type: 1,
            transport_type: c_int::from(device.iwarp),
            name: chars(&name),
            dev_name: chars(&format!("uverbs{index}")),
            dev_path: chars(""),
            ibdev_path: chars(""),
        };
        handle::make(public, Listed { home: home.clone(), index })
    };
    let mut list: Vec<*mut abi::Device> = seen.iter().map(make).collect();
    if !count.is_null() {
        // SAFETY: may be written, as the caller promises.
        unsafe { *count = list.len() as c_int };
    }
    list.push(std::ptr::null_mut());
    Box::into_raw(list.into_boxed_slice()).cast()
}

/// Frees the list; devices that were opened stay open.
///
/// # Safety
///
/// A list that was got and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_free_device_list(list: *mut *mut abi::Device) {
    if list.is_null() {
        return;
    }
    // SAFETY: a list ends with a null, and was a boxed slice of that length.
    unsafe {
        let mut len = 0;
        while !(*list.add(len)).is_null() {
            handle::end::<Listed>(*list.add(len));
            len += 1;
        }
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(list, len + 1)));
    }
}

/// The name.
///
/// # Safety
///
/// A device of a list that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_device_name(device: *mut abi::Device) -> *const c_char {
    // SAFETY: a handle, as the caller promises.
    match unsafe { handle::get::<Listed>(device) } {
        // SAFETY: alive.
        Some(_) => unsafe { (&raw const (*device).name).cast() },
        None => std::ptr::null(),
    }
}

/// Opens a device.
///
/// # Safety
///
/// A device of a list that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_open_device(device: *mut abi::Device) -> *mut Context {
    // SAFETY: a handle, as the caller promises.
    let Some(listed) = (unsafe { handle::get::<Listed>(device) }) else {
        raise(libc::EINVAL);
        return std::ptr::null_mut();
    };
    let home = listed.home.clone();
    if home.spoilt(listed.index).is_some() {
        return std::ptr::null_mut();
    }
    let Ok(object) = home.record(listed.index, "context", u32::MAX) else {
        raise(home.errno(Errno::Busy));
        return std::ptr::null_mut();
    };
    let public = Context {
        device,
        ops: Ops {
            before: [None; 11],
            poll_cq: Some(queue::poll_cq),
            between: [None; 13],
            post_send: Some(post::post_send),
            post_recv: Some(post::post_recv),
            after: [None; 5],
        },
        cmd_fd: -1,
        async_fd: -1,
        num_comp_vectors: 1,
        mutex: libc::PTHREAD_MUTEX_INITIALIZER,
        abi_compat: std::ptr::null_mut(),
    };
    handle::make(public, Opened { home, index: listed.index, users: AtomicU32::new(0), object })
}

/// Closes it.
///
/// # Safety
///
/// A context that was opened.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_close_device(context: *mut Context) -> c_int {
    // SAFETY: a handle, as the caller promises.
    let Some(opened) = (unsafe { handle::get::<Opened>(context) }) else { return raise(libc::EINVAL) };
    let users = opened.users.load(Ordering::Acquire);
    if users != 0 {
        opened.violation(rules::ORDER, &format!("close_device with {users} domains or completion queues"));
        return opened.fail(Errno::Busy);
    }
    // SAFETY: as above.
    if unsafe { handle::end::<Opened>(context) } {
        opened.object.release();
    }
    0
}

/// What the device can.
///
/// # Safety
///
/// A context, and a structure that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_device(context: *mut Context, attr: *mut DeviceAttr) -> c_int {
    // SAFETY: a handle, as the caller promises.
    let Some(opened) = (unsafe { handle::get::<Opened>(context) }) else { return raise(libc::EINVAL) };
    let limits = opened.device().limits;
    // SAFETY: integers all over, so zeros are values; `attr` may be written.
    unsafe {
        let mut out: DeviceAttr = std::mem::zeroed();
        out.node_guid = u64::from_ne_bytes(*opened.device().gid(0).last_chunk::<8>().unwrap_or(&[0; 8]));
        out.sys_image_guid = out.node_guid;
        // not enforced: regions of 1 GiB work on a Mac that says this (third parties)
        out.max_mr_size = if opened.home.apple() { u64::from(limits.max_msg) } else { u64::MAX };
        out.page_size_cap = if opened.home.apple() { 16384 } else { 0xffff_f000 };
        out.max_qp = limits.max_qp as c_int;
        out.max_qp_wr = limits.max_qp_wr as c_int;
        out.max_sge = limits.max_sge as c_int;
        out.max_cq = limits.max_cq as c_int;
        out.max_cqe = limits.max_cqe as c_int;
        out.max_mr = limits.max_mr as c_int;
        out.max_pd = limits.max_pd as c_int;
        out.max_pkeys = 1;
        out.phys_port_cnt = opened.device().port_num;
        attr.write(out);
    }
    0
}

/// A port. A cable is at the last one, which mostly is the only one; llama.cpp looks at all, because it need not be 1.
///
/// # Safety
///
/// A context, and a structure that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_port(context: *mut Context, port: u8, attr: *mut PortAttr) -> c_int {
    // SAFETY: a handle, as the caller promises.
    let Some(opened) = (unsafe { handle::get::<Opened>(context) }) else { return raise(libc::EINVAL) };
    if port == 0 || port > opened.device().port_num {
        opened.violation(rules::ARGUMENT, &format!("port {port}"));
        return opened.fail(Errno::Invalid);
    }
    let up = port == opened.device().port_num && opened.home.board.up(&opened.home.config, opened.index);
    let apple = opened.home.apple();
    let out = PortAttr {
        state: if up { 4 } else { 1 },
        max_mtu: 5,
        active_mtu: if apple { 5 } else { 3 },
        gid_tbl_len: opened.device().gids() as c_int,
        port_cap_flags: 1 << 16,
        max_msg_sz: opened.device().limits.max_msg,
        bad_pkey_cntr: 0,
        qkey_viol_cntr: 0,
        pkey_tbl_len: 1,
        lid: opened.device().lid,
        sm_lid: 0,
        lmc: 0,
        max_vl_num: 1,
        sm_sl: 0,
        subnet_timeout: 0,
        init_type_reply: 0,
        // TN3205: 8X × 10 Gb/s on a Thunderbolt 5 port
        active_width: if apple { 4 } else { 1 },
        active_speed: if apple { 4 } else { 1 },
        phys_state: if up { 5 } else { 3 },
        // TN3205: "Thunderbolt (100)"
        link_layer: match opened.device().lid {
            _ if apple => 100,
            0 => 2,
            _ => 1,
        },
        flags: 0,
    };
    // SAFETY: may be written, as the caller promises.
    unsafe { attr.write(out) };
    0
}

/// An entry of the table of GIDs.
///
/// # Safety
///
/// A context, and a GID that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_gid(context: *mut Context, port: u8, index: c_int, gid: *mut Gid) -> c_int {
    // SAFETY: a handle, as the caller promises.
    let Some(opened) = (unsafe { handle::get::<Opened>(context) }) else {
        raise(libc::EINVAL);
        return -1;
    };
    let device = opened.device();
    if port == 0 || port > device.port_num || index < 0 || index as usize >= device.gids() {
        opened.violation(rules::ARGUMENT, &format!("GID {index} of port {port}"));
        opened.fail(Errno::Invalid);
        return -1;
    }
    let known = if port == device.port_num { device.gid(index as usize) } else { [0; 16] };
    // SAFETY: may be written, as the caller promises.
    unsafe { (*gid).0 = slip::gid(&opened.home.config, known) };
    0
}
