//! The shared memory of the ranks of one machine: a header, a bell a rank and a ring for each ordered pair.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shm;
use super::map::{Layout, MAGIC, Map, VERSION};
use crate::error::{Error, Result};

/// Bytes of a ring unless told otherwise. Pages that no message ever touches cost nothing.
pub const RING_BYTES: usize = 1 << 20;

/// Shared memory for the ranks of one machine. Child processes inherit its descriptor; it has no name to be found by.
pub struct Segment {
    map: Arc<Map>,
    fd: OwnedFd,
}

impl Segment {
    /// Creates the memory of a run: rings of `ring_bytes` (rounded up to a power of two, at least 16 KiB) for
    /// `world_size` ranks. Pages are taken when a message first touches them.
    ///
    /// # Errors
    /// If there are 0 or more than 64 ranks, a ring would be larger than 1 GiB, or the system has no room for it.
    pub fn create(world_size: usize, ring_bytes: usize, run: u64) -> Result<Self> {
        let layout = Layout::new(world_size, ring_bytes)?;
        let fd = anonymous(layout.bytes())?;
        let map = Arc::new(Map::new(fd.as_fd(), layout, run)?);
        map.header().into_iter().for_each(|(at, value)| map.word(at).store(value, Ordering::Release));
        Ok(Self { map, fd })
    }

    /// Takes the memory that a parent process has created for `world_size` ranks of the run `run`.
    ///
    /// # Errors
    /// If `fd` is something else: of another size, version, run or number of ranks.
    pub fn from_fd(fd: OwnedFd, world_size: usize, run: u64) -> Result<Self> {
        let wrong = |what: String| {
            let message = format!("the inherited shared memory (descriptor {}) {what}", fd.as_raw_fd());
            Error::msg(message).hint("ranks of one machine are started by the same tbshard process")
        };
        let actual = size(fd.as_fd()).ok_or_else(|| wrong("is not open".to_owned()))?;
        let probe = Layout::new(world_size, 0)?;
        if actual < probe.bytes() {
            return Err(wrong(format!("has {actual} bytes, too few for {world_size} ranks")));
        }
        let map = Map::new(fd.as_fd(), probe, run)?;
        let word = |at: usize| map.word(at).load(Ordering::Acquire);
        if (word(0), word(4)) != (MAGIC, VERSION) {
            return Err(wrong("is not a segment of this version".to_owned()));
        }
        if word(8) as usize != world_size {
            return Err(wrong(format!("is for {} ranks where this run has {world_size}", word(8))));
        }
        let theirs = u64::from(word(16)) | u64::from(word(20)) << 32;
        if theirs != run {
            return Err(wrong(format!("is of run {theirs:016x} where this is run {run:016x}")));
        }
        let layout = Layout::new(world_size, word(12) as usize)?;
        if actual < layout.bytes() {
            return Err(wrong(format!("has {actual} bytes where its header needs {}", layout.bytes())));
        }
        drop(map);
        let map = Arc::new(Map::new(fd.as_fd(), layout, run)?);
        Ok(Self { map, fd })
    }

    /// The descriptor. It is not inherited by itself: see [`crate::transport::inherit`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes the end of `rank`, which can be taken once.
    ///
    /// # Errors
    /// If there is no such rank or its end has been taken.
    pub fn endpoint(&self, rank: usize) -> Result<Shm> {
        if rank >= self.map.world_size() {
            return Err(Error::msg(format!("rank {rank} in shared memory for {} ranks", self.map.world_size())));
        }
        let state = self.map.state(rank);
        if state.compare_exchange(0, super::TAKEN, Ordering::AcqRel, Ordering::Acquire).is_err() {
            let hint = "every rank is one process (or thread): none may be started twice";
            return Err(Error::msg(format!("rank {rank} in shared memory has been taken already")).hint(hint));
        }
        Ok(Shm::new(&self.map, rank))
    }
}

fn system(what: &str) -> Error {
    Error::from_std(std::io::Error::last_os_error()).context(what)
}

/// The size of an open file, in bytes.
fn size(fd: BorrowedFd<'_>) -> Option<usize> {
    // SAFETY: all zeros is a `stat`, and fstat writes no more than one.
    let (done, stat) = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::fstat(fd.as_raw_fd(), &raw mut stat), stat)
    };
    if done == 0 { usize::try_from(stat.st_size).ok() } else { None }
}

/// Sets the size of a new file.
fn resize(fd: OwnedFd, bytes: usize) -> Result<OwnedFd> {
    // SAFETY: ftruncate touches no memory of this process.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), bytes as libc::off_t) } != 0 {
        return Err(system("sizing shared memory between ranks"));
    }
    Ok(fd)
}

/// Returns new memory without a name, which nobody can shorten.
#[cfg(target_os = "linux")]
fn anonymous(bytes: usize) -> Result<OwnedFd> {
    // SAFETY: the name is a string with its terminator.
    let fd = unsafe { libc::memfd_create(c"tbshard".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(system("creating shared memory between ranks"));
    }
    // SAFETY: the system has just opened it for this caller.
    let fd = resize(unsafe { OwnedFd::from_raw_fd(fd) }, bytes)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: fcntl on a number touches no memory.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(system("sealing shared memory between ranks"));
    }
    Ok(fd)
}

/// Returns new memory whose name is gone before anybody could use it.
#[cfg(not(target_os = "linux"))]
fn anonymous(bytes: usize) -> Result<OwnedFd> {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = std::ffi::CString::new(format!("/tbshard-{}-{count}", std::process::id())).unwrap_or_default();
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    // SAFETY: the name is a string with its terminator, and O_EXCL makes the object this caller's own.
    let fd = unsafe { libc::shm_open(name.as_ptr(), flags, 0o600) };
    if fd < 0 {
        return Err(system("creating shared memory between ranks"));
    }
    // SAFETY: as above; and the descriptor has just been opened for this caller. macOS closes it on exec by itself.
    let fd = unsafe {
        libc::shm_unlink(name.as_ptr());
        OwnedFd::from_raw_fd(fd)
    };
    resize(fd, bytes)
}
