//! A file that several processes have in their memory.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;

/// What may stand at the beginning of a shared file.
///
/// # Safety
///
/// All zeros are a valid value, and everything that processes write is atomic, or written before an atomic says so.
pub(crate) unsafe trait Shared {}

/// A mapped file that begins with a `T`.
pub(crate) struct Map<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: `T` is shared between processes, so threads may share it as well.
unsafe impl<T: Shared> Send for Map<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Map<T> {}

impl<T: Shared> Map<T> {
    /// A new file of zeros.
    pub(crate) fn create(path: &Path, len: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o666).open(path)?;
        file.set_len(len as u64)?;
        Self::of(&file, len)
    }

    /// A file that is there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let len = file.metadata()?.len() as usize;
        Self::of(&file, len)
    }

    fn of(file: &File, len: usize) -> io::Result<Self> {
        if len < size_of::<T>() {
            return Err(io::Error::other("the file is too short"));
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of an open file; the kernel chooses the address.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        Self::at(start, len)
    }

    /// Zeros that nobody shares, which cost nothing while nobody looks: what a handle has after its end.
    pub(crate) fn blank() -> io::Result<Self> {
        let len = size_of::<T>();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
        // SAFETY: a new mapping; the kernel chooses the address.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, flags, -1, 0) };
        Self::at(start, len)
    }

    fn at(start: *mut c_void, len: usize) -> io::Result<Self> {
        match NonNull::new(start.cast::<T>()) {
            Some(at) if start != libc::MAP_FAILED => Ok(Self { start: at, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The bytes from `offset` on.
    pub(crate) fn bytes(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset + len <= self.len);
        // SAFETY: inside the mapping, as just asserted.
        unsafe { self.start.as_ptr().cast::<u8>().add(offset) }
    }
}

impl<T: Shared> Deref for Map<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: mapped for as long as `self`, page-aligned, long enough, and valid as `Shared` promises.
        unsafe { self.start.as_ref() }
    }
}

impl<T> Drop for Map<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `of` made, which nobody uses any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
