//! Devices: their names, limits, ports and addresses; protection domains and completion queues.

use std::ffi::{CStr, c_int};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{self, DeviceAttr, Gid, LINK_INFINIBAND, MTU_1024, PORT_ACTIVE, PortAttr, Wc};
use super::errors::{self, Step};
use super::library::Library;
use crate::error::{Error, Result};

/// How Apple calls its devices: each is a port with one cable.
const THUNDERBOLT: &str = "rdma_en";

/// Completions that are taken at once.
const BATCH: usize = 16;

/// Ports that are tried: Apple's have not always number 1.
const PORTS: u8 = 8;

/// What a device can have, as it says; 0 where it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Queue pairs.
    pub queue_pairs: usize,
    /// Requests of a queue.
    pub requests: usize,
    /// Entries of a completion queue.
    pub completions: usize,
    /// Memory regions.
    pub regions: usize,
    /// Protection domains.
    pub domains: usize,
}

/// A port that can be used, and its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub number: u8,
    /// Its local identifier, which InfiniBand is addressed by.
    pub lid: u16,
    /// The largest packet that it sends, as the enumeration of verbs: 3 is 1024 bytes, 5 is 4096.
    pub mtu: u32,
    /// Its IPv4-mapped address; on InfiniBand the first.
    pub gid: Gid,
    /// The address's place in the port's table.
    pub gid_index: u8,
    /// Whether it is InfiniBand, which needs no global address.
    pub infiniband: bool,
}

/// An open device.
pub struct Device {
    pub(super) library: &'static Library,
    context: NonNull<abi::Context>,
    name: String,
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for Device {}
// SAFETY: as above; every object is locked by the library itself.
unsafe impl Sync for Device {}

impl Device {
    /// The names of the devices that there are.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn names(library: &'static Library) -> Result<Vec<String>> {
        each(library, |_, name| Some(name.to_owned()))
    }

    /// Opens a device.
    ///
    /// # Errors
    /// If there is none of that name, or it cannot be opened.
    pub fn open(library: &'static Library, name: &str) -> Result<Arc<Self>> {
        let mut opened = each(library, |device, found| {
            // SAFETY: the device is in a list that has not been freed.
            (found == name).then(|| (unsafe { (library.functions.open_device)(device) }, errors::errno()))
        })?;
        let Some((context, errno)) = opened.pop() else {
            let names = Self::names(library)?;
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let error = Error::msg(format!("this machine has no RDMA device `{name}`; it has {there}"));
            return Err(error.hint("`tbshard doctor` says what is cabled and whether RDMA is on"));
        };
        let context = NonNull::new(context).ok_or_else(|| errors::failed(Step::Open, name, errno))?;
        Ok(Arc::new(Self { library, context, name: name.to_owned() }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is one of Apple's, whose rules are others.
    pub fn is_thunderbolt(&self) -> bool {
        self.name.starts_with(THUNDERBOLT)
    }

    /// What it can have.
    ///
    /// # Errors
    /// If it does not say.
    pub fn limits(&self) -> Result<Limits> {
        // SAFETY: all zeros is a value of this structure of integers.
        let mut attr: DeviceAttr = unsafe { std::mem::zeroed() };
        // SAFETY: the device is open, and the structure is larger than any system's.
        let errno = unsafe { (self.library.functions.query_device)(self.context.as_ptr(), &raw mut attr) };
        if errno != 0 {
            return Err(errors::failed(Step::Query, &self.name, errno));
        }
        let count = |value: c_int| usize::try_from(value).unwrap_or(0);
        Ok(Limits {
            queue_pairs: count(attr.max_qp),
            requests: count(attr.max_qp_wr),
            completions: count(attr.max_cqe),
            regions: count(attr.max_mr),
            domains: count(attr.max_pd),
        })
    }

    /// Its first active port, or `None` while it has none.
    ///
    /// # Errors
    /// If an active port has no usable address, or the device does not say.
    pub fn port(&self) -> Result<Option<Port>> {
        let mut refused = Some(0);
        for number in 1..=PORTS {
            let mut attr = PortAttr::default();
            // SAFETY: the device is open, and the structure is larger than any system's.
            let errno = unsafe { (self.library.functions.query_port)(self.context.as_ptr(), number, &raw mut attr) };
            if errno != 0 {
                refused = refused.map(|_| errno);
                continue;
            }
            refused = None;
            if attr.state == PORT_ACTIVE {
                // nobody has seen Apple's structure behind its first fields
                let infiniband = attr.link_layer == LINK_INFINIBAND && !self.is_thunderbolt();
                if !(1..=5).contains(&attr.active_mtu) {
                    attr.active_mtu = MTU_1024;
                }
                let (gid_index, gid) = self.address(number, attr.gid_tbl_len, infiniband)?;
                let (lid, mtu) = (attr.lid, attr.active_mtu);
                return Ok(Some(Port { number, lid, mtu, gid, gid_index, infiniband }));
            }
        }
        refused.map_or(Ok(None), |errno| Err(errors::failed(Step::Query, &self.name, errno)))
    }

    /// The place and value of the port's IPv4-mapped address (`::ffff:a.b.c.d`); the place differs between systems.
    fn address(&self, port: u8, entries: c_int, infiniband: bool) -> Result<(u8, Gid)> {
        let mut found = None;
        for index in 0..entries.clamp(0, 256) {
            let mut gid = Gid::default();
            // SAFETY: the device is open, and `gid` has the 16 bytes.
            let errno = unsafe { (self.library.functions.query_gid)(self.context.as_ptr(), port, index, &raw mut gid) };
            let mapped = gid.0[..10] == [0; 10] && gid.0[10..12] == [0xff; 2];
            if errno != 0 || !(mapped || infiniband) {
                continue;
            }
            let at = (u8::try_from(index).unwrap_or(u8::MAX), gid);
            // RoCE has every address twice, and its first version crosses no router
            if self.routable(port, index) {
                return Ok(at);
            }
            found = found.or(Some(at));
        }
        found.ok_or_else(|| errors::without_address(&self.name, infiniband))
    }

    /// Whether the system says that an address is RoCE's second version, or says nothing of versions.
    fn routable(&self, port: u8, index: c_int) -> bool {
        let path = format!("/sys/class/infiniband/{}/ports/{port}/gid_attrs/types/{index}", self.name);
        std::fs::read_to_string(Path::new(&path)).map_or(true, |kind| kind.trim().ends_with("v2"))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: everything that was made from the device holds it, so nothing of it is left.
        unsafe { (self.library.functions.close_device)(self.context.as_ptr()) };
    }
}

/// Calls `look` with every device and its name, while the list stands.
fn each<T>(library: &'static Library, look: impl Fn(*mut abi::Device, &str) -> Option<T>) -> Result<Vec<T>> {
    let mut count = 0;
    // SAFETY: the count is where the function may write it.
    let list = unsafe { (library.functions.get_device_list)(&raw mut count) };
    if list.is_null() {
        // a kernel without RDMA has no devices
        let errno = errors::errno();
        return if errno == libc::ENOSYS { Ok(Vec::new()) } else { Err(errors::failed(Step::List, "", errno)) };
    }
    let devices = (0..usize::try_from(count).unwrap_or(0)).filter_map(|at| {
        // SAFETY: the list has `count` devices.
        let device = unsafe { *list.add(at) };
        // SAFETY: the device is in the list; its name lives as long and ends with a zero.
        let name = unsafe { CStr::from_ptr((library.functions.get_device_name)(device)) };
        look(device, &name.to_string_lossy())
    });
    let found = devices.collect();
    // SAFETY: the list came from the library, and no device of it is used from here on.
    unsafe { (library.functions.free_device_list)(list) };
    Ok(found)
}

/// A protection domain.
pub struct Domain {
    pub(super) device: Arc<Device>,
    pub(super) raw: NonNull<abi::Pd>,
}

// SAFETY: as for the device.
unsafe impl Send for Domain {}
// SAFETY: as for the device.
unsafe impl Sync for Domain {}

impl Domain {
    /// Makes one.
    ///
    /// # Errors
    /// If the device has no more.
    pub fn new(device: &Arc<Device>) -> Result<Arc<Self>> {
        // SAFETY: the device is open.
        let raw = unsafe { (device.library.functions.alloc_pd)(device.context.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| errors::failed(Step::Domain, &device.name, errors::errno()))?;
        Ok(Arc::new(Self { device: Arc::clone(device), raw }))
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: regions and queue pairs hold their domain, so none is left.
        unsafe { (self.device.library.functions.dealloc_pd)(self.raw.as_ptr()) };
    }
}

/// Completions, which only a completion queue makes.
pub struct Batch {
    done: [Wc; BATCH],
    count: usize,
}

impl Batch {
    /// What has completed.
    pub fn done(&self) -> &[Wc] {
        &self.done[..self.count]
    }

    /// Whether there may be more.
    pub fn is_full(&self) -> bool {
        self.count == BATCH
    }
}

/// A completion queue, which is polled: Apple's has no events.
pub struct Completions {
    device: Arc<Device>,
    pub(super) raw: NonNull<abi::Cq>,
}

// SAFETY: as for the device.
unsafe impl Send for Completions {}
// SAFETY: as for the device.
unsafe impl Sync for Completions {}

impl Completions {
    /// Makes one for `entries` completions.
    ///
    /// # Errors
    /// If the device has no more, or none so long.
    pub fn new(device: &Arc<Device>, entries: usize) -> Result<Arc<Self>> {
        let (null, entries) = (std::ptr::null_mut(), c_int::try_from(entries).unwrap_or(c_int::MAX));
        // SAFETY: the device is open; no context, no channel, the first vector.
        let raw = unsafe { (device.library.functions.create_cq)(device.context.as_ptr(), entries, null, null, 0) };
        let raw = NonNull::new(raw).ok_or_else(|| errors::failed(Step::Completions, &device.name, errors::errno()))?;
        Ok(Arc::new(Self { device: Arc::clone(device), raw }))
    }

    /// Takes some of what has completed. Never waits.
    ///
    /// # Errors
    /// If the queue is broken.
    pub fn poll(&self) -> Result<Batch> {
        let mut batch = Batch { done: [Wc::blank(); BATCH], count: 0 };
        // SAFETY: the queue stands; its context and the functions there are the library's.
        let poll = unsafe { (*(*self.raw.as_ptr()).context).ops.poll_cq };
        // SAFETY: the batch has room for as many.
        let count = poll.map_or(-1, |poll| unsafe { poll(self.raw.as_ptr(), BATCH as c_int, batch.done.as_mut_ptr()) });
        let count = usize::try_from(count).ok().filter(|count| *count <= BATCH);
        batch.count = count.ok_or_else(|| errors::broken_queue(&self.device.name))?;
        Ok(batch)
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // SAFETY: queue pairs hold their completion queue, so none is left.
        unsafe { (self.device.library.functions.destroy_cq)(self.raw.as_ptr()) };
    }
}
