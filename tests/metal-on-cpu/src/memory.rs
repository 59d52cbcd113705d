//! Memory between pages that nobody may touch.

use std::ptr::NonNull;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use tbshard::error::{Error, Result};

/// A mapping of `len` bytes, a page that faults before and one after it.
#[derive(Debug)]
pub(crate) struct Guarded {
    mapping: NonNull<u8>,
    mapped: usize,
    start: NonNull<u8>,
}

// SAFETY: a mapping belongs to nobody's thread
unsafe impl Send for Guarded {}
// SAFETY: as above
unsafe impl Sync for Guarded {}

impl Guarded {
    /// Zeros that start at a page.
    pub(crate) fn pages(len: usize) -> Result<Self> {
        Self::new(len, |_, _| 0)
    }

    /// Zeros that end at a page, to the byte, if `len` is a multiple of `align`.
    pub(crate) fn ending(len: usize, align: usize) -> Result<Self> {
        Self::new(len, |len, room| room - len.next_multiple_of(align))
    }

    fn new(len: usize, start: impl Fn(usize, usize) -> usize) -> Result<Self> {
        let page = rustix::param::page_size();
        let room = len.max(1).next_multiple_of(page);
        let mapped = room + 2 * page;
        // SAFETY: a new mapping
        let mapping = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            mmap_anonymous(std::ptr::null_mut(), mapped, ProtFlags::empty(), flags).map_err(Error::from_std)?
        };
        let mapping = NonNull::new(mapping.cast::<u8>()).ok_or_else(|| Error::msg("a mapping at zero"))?;
        // SAFETY: inside the mapping
        let start = unsafe {
            let first = mapping.add(page);
            let access = MprotectFlags::READ | MprotectFlags::WRITE;
            mprotect(first.as_ptr().cast(), room, access).map_err(Error::from_std)?;
            first.add(start(len, room))
        };
        Ok(Self { mapping, mapped, start })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours
        let _ = unsafe { munmap(self.mapping.as_ptr().cast(), self.mapped) };
    }
}
