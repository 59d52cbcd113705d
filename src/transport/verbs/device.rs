//! Devices: their names and limits; protection domains and completion queues.

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::{self, DeviceAttr, TRANSPORT_IWARP, Wc};
use super::errors::{self, Step};
use super::library::{Functions, Library};
use super::open::{Object, Open};
use crate::error::{Error, Result};

/// How Apple calls its devices: each is a port with one cable.
const THUNDERBOLT: &str = "rdma_en";

/// Completions that are taken at once.
const BATCH: usize = 16;

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

/// An open device.
pub struct Device {
    pub(super) open: Arc<Open>,
    pub(super) context: NonNull<abi::Context>,
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
        let (open, context) = Open::device(library, || {
            let mut opened = each(library, |device, found| {
                if found != name {
                    return None;
                }
                // nobody has seen Apple's structure
                // SAFETY: the device is in a list that has not been freed.
                if !found.starts_with(THUNDERBOLT) && unsafe { (*device).transport_type } == TRANSPORT_IWARP {
                    return Some(Err(errors::iwarp(name)));
                }
                // SAFETY: as above.
                let context = NonNull::new(unsafe { (library.functions.open_device)(device) });
                Some(context.ok_or_else(|| errors::failed(Step::Open, name, errors::errno())))
            })?;
            opened.pop().unwrap_or_else(|| {
                let names = Self::names(library)?;
                let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                let error = Error::msg(format!("this machine has no RDMA device `{name}`; it has {there}"));
                Err(error.hint("`tbshard doctor` says what is cabled and whether RDMA is on"))
            })
        })?;
        Ok(Arc::new(Self { open, context, name: name.to_owned() }))
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
        let query = |library: &Functions| unsafe { (library.query_device)(self.context.as_ptr(), &raw mut attr) };
        let errno = self.open.call(query);
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
}

impl Drop for Device {
    fn drop(&mut self) {
        // everything that was made from the device holds it, so nothing of it is left
        self.open.end(Object::Context(self.context));
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
        let make = |library: &Functions| unsafe { (library.alloc_pd)(device.context.as_ptr()) };
        let raw = device.open.make(Object::Domain, make);
        let raw = raw.map_err(|errno| errors::failed(Step::Domain, &device.name, errno))?;
        Ok(Arc::new(Self { device: Arc::clone(device), raw }))
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // regions and queue pairs hold their domain, so none is left
        self.device.open.end(Object::Domain(self.raw));
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
        let make =
            |library: &Functions| unsafe { (library.create_cq)(device.context.as_ptr(), entries, null, null, 0) };
        let raw = device.open.make(Object::Completions, make);
        let raw = raw.map_err(|errno| errors::failed(Step::Completions, &device.name, errno))?;
        Ok(Arc::new(Self { device: Arc::clone(device), raw }))
    }

    /// Takes some of what has completed. Never waits.
    ///
    /// # Errors
    /// If the queue is broken.
    pub fn poll(&self) -> Result<Batch> {
        let mut batch = Batch { done: [Wc::blank(); BATCH], count: 0 };
        let count = self.device.open.call(|_| {
            // SAFETY: the queue stands; its context and the functions there are the library's.
            let poll = unsafe { (*(*self.raw.as_ptr()).context).ops.poll_cq };
            // SAFETY: the batch has room for as many.
            poll.map_or(-1, |poll| unsafe { poll(self.raw.as_ptr(), BATCH as c_int, batch.done.as_mut_ptr()) })
        });
        let count = usize::try_from(count).ok().filter(|count| *count <= BATCH);
        batch.count = count.ok_or_else(|| errors::broken_queue(&self.device.name))?;
        Ok(batch)
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // queue pairs hold their completion queue, so none is left
        self.device.open.end(Object::Completions(self.raw));
    }
}
