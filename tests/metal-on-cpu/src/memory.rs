//! Memory that host and kernels see at different addresses, so that what kernels may touch can be taken away from them alone.

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicI32, Ordering};

use crate::caches::{Sides, Unseen};
use bytes::Bytes;
use libc::{MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE};

/// Bytes before and behind memory that nobody may touch: whole pages of any size that is usual.
const GUARD: usize = 64 << 10;

/// Bytes of a page.
pub(crate) fn page() -> usize {
    // SAFETY: the call has no preconditions
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

fn map(at: *mut u8, bytes: usize, access: i32, flags: i32, file: i32) -> io::Result<*mut u8> {
    // SAFETY: it maps new pages, or replaces what this module has reserved
    let start = unsafe { libc::mmap(at.cast(), bytes, access, flags, file, 0) };
    if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(start.cast()) }
}

/// `bytes` bytes, whole pages, between pages that nobody may touch.
pub(crate) fn reserve_guarded(bytes: usize) -> *mut u8 {
    try_reserve(bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1).unwrap_or_else(|error| {
        panic!("no memory for the emulator's own use: {error}");
    })
}

fn try_reserve(bytes: usize, flags: i32, file: i32) -> io::Result<*mut u8> {
    let whole = bytes + 2 * GUARD;
    let start = map(null_mut(), whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1)?;
    map(start.wrapping_add(GUARD), bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, file)
}

/// Gives back what [`reserve_guarded`] gave.
pub(crate) fn release_guarded(start: *mut u8, bytes: usize) {
    // SAFETY: the pages are this module's and are not used any more
    unsafe { libc::munmap(start.wrapping_sub(GUARD).cast::<c_void>(), bytes + 2 * GUARD) };
}

/// Pages mapped twice, or two copies of them.
#[derive(Debug)]
struct Shared {
    host: *mut u8,
    kernels: *mut u8,
    bytes: usize,
}

impl Shared {
    fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: the name is a string
        let file = unsafe { libc::memfd_create(c"metal-on-cpu".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the file is this function's
        let sized = unsafe { libc::ftruncate(file, bytes as i64) };
        let mapped = if sized == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }.and_then(|()| {
            let host = try_reserve(bytes, MAP_SHARED, file)?;
            Ok(Self { host, kernels: try_reserve(bytes, MAP_SHARED, file)?, bytes })
        });
        // SAFETY: mappings outlive it
        unsafe { libc::close(file) };
        mapped
    }
}

impl Shared {
    /// Two copies instead of one.
    fn apart(bytes: usize) -> io::Result<Self> {
        let copy = || try_reserve(bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
        Ok(Self { host: copy()?, kernels: copy()?, bytes })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        release_guarded(self.host, self.bytes);
        release_guarded(self.kernels, self.bytes);
    }
}

/// What a buffer of the emulator is.
#[derive(Debug)]
pub(crate) enum Memory {
    /// Memory of its own, or a copy of what was adopted.
    Own(Own),
    /// The host's memory.
    Adopted { bytes: Bytes, start: *mut u8, len: usize },
}

/// Memory between guard pages.
#[derive(Debug)]
pub(crate) struct Own {
    pages: Shared,
    offset: usize,
    len: usize,
    /// Bytes that nobody writes, and kernels may read whatever they are given.
    constant: Option<usize>,
    /// Where host and kernels have a copy each.
    unseen: Option<Unseen>,
    access: AtomicI32,
}

// SAFETY: memory may be used by any thread; who uses it when is what `Buffer` asks of callers
unsafe impl Send for Memory {}
// SAFETY: as above
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` zeros that start a page, or end one (but for what 16 bytes of alignment ask for).
    pub(crate) fn allocate(len: usize, at_the_end: bool, apart: bool) -> io::Result<Self> {
        let bytes = len.max(1).next_multiple_of(page());
        let offset = if at_the_end { bytes - len.max(1).next_multiple_of(16) } else { 0 };
        let (pages, unseen) = match apart {
            false => (Shared::new(bytes)?, None),
            true => (Shared::apart(bytes)?, Some(Unseen::new(bytes))),
        };
        let access = AtomicI32::new(PROT_READ | PROT_WRITE);
        Ok(Self::Own(Own { pages, offset, len, constant: None, unseen, access }))
    }

    /// `len` bytes that `fill` fills and nobody writes afterwards.
    pub(crate) fn constant_of(len: usize, at_the_end: bool, fill: &mut dyn FnMut(&mut [u8])) -> io::Result<Self> {
        let Self::Own(mut own) = Self::allocate(len, at_the_end, false)? else { unreachable!("it was allocated") };
        own.constant = Some(len);
        let memory = Self::Own(own);
        // SAFETY: so many bytes, zeroed, and nobody else knows of them yet
        fill(unsafe { std::slice::from_raw_parts_mut(memory.host(), len) });
        Ok(memory)
    }

    /// A copy of `bytes`, which nobody writes, and where it starts.
    pub(crate) fn copy(bytes: &Bytes) -> io::Result<(Self, usize)> {
        let before = bytes.as_ptr() as usize % 16;
        let mut memory = Self::constant_of(before + bytes.len(), true, &mut |to| to[before..].copy_from_slice(bytes))?;
        if let Self::Own(own) = &mut memory {
            own.constant = Some(bytes.len());
        }
        Ok((memory, before))
    }

    /// The pages that `bytes` lie in, and where they start.
    pub(crate) fn adopt(bytes: &Bytes) -> (Self, usize) {
        let before = bytes.as_ptr() as usize % page();
        let start = bytes.as_ptr().wrapping_sub(before).cast_mut();
        (Self::Adopted { start, len: (before + bytes.len()).next_multiple_of(page()), bytes: bytes.clone() }, before)
    }

    /// Where the host sees it.
    pub(crate) fn host(&self) -> *mut u8 {
        match self {
            Self::Own(own) => own.pages.host.wrapping_add(own.offset),
            Self::Adopted { start, .. } => *start,
        }
    }

    /// Where kernels see it.
    pub(crate) fn kernels(&self) -> *mut u8 {
        match self {
            Self::Own(own) => own.pages.kernels.wrapping_add(own.offset),
            Self::Adopted { start, .. } => *start,
        }
    }

    /// What kernels have written and the host was not shown, and both copies; nothing where there is one.
    pub(crate) fn apart(&self) -> Option<(&Unseen, Sides)> {
        let Self::Own(own) = self else { return None };
        let unseen = own.unseen.as_ref()?;
        Some((unseen, Sides { host: own.pages.host, kernels: own.pages.kernels }))
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Own(own) => own.len,
            Self::Adopted { len, .. } => *len,
        }
    }

    /// The bytes that nobody may write, if that is what it is.
    pub(crate) fn constant(&self) -> Option<usize> {
        match self {
            Self::Own(own) => own.constant,
            Self::Adopted { bytes, .. } => Some(bytes.len()),
        }
    }

    /// A buffer of this memory.
    pub(crate) fn buffer(self: std::sync::Arc<Self>) -> tbshard::gpu::Buffer {
        let start = NonNull::new(self.host()).unwrap_or(NonNull::dangling());
        let (len, address) = (self.len(), self.kernels() as u64);
        // SAFETY: the handle keeps the memory
        unsafe { tbshard::gpu::Buffer::new(start, len, address, Box::new(self)) }
    }
}

impl Own {
    /// Lets kernels do with it what `writes` says, if anything.
    pub(crate) fn protect(&self, writes: Option<bool>) {
        let access = match writes {
            None if self.constant.is_some() => PROT_READ,
            None => PROT_NONE,
            Some(false) => PROT_READ,
            Some(true) => PROT_READ | PROT_WRITE,
        };
        if self.access.swap(access, Ordering::Relaxed) != access {
            // SAFETY: only kernels use this mapping, and none runs
            unsafe { libc::mprotect(self.pages.kernels.cast(), self.pages.bytes, access) };
        }
    }

    /// The addresses that kernels see, with the guard pages.
    pub(crate) fn around(&self) -> Range<usize> {
        let start = self.pages.kernels as usize;
        start - GUARD..start + self.pages.bytes + GUARD
    }
}
