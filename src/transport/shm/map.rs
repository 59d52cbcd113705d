//! Where everything lies in a segment, and the only code that touches it.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::ring::Memory;
use crate::error::{Error, Result};

/// The first words of a segment.
pub(super) const MAGIC: u32 = 0x7462_7368;
/// Changes with the layout or the protocol.
pub(super) const VERSION: u32 = 1;
/// Words of one writer are this far apart: a pair of cache lines on x86, one on Apple silicon.
const LINE: usize = 128;
/// Where the rings' bytes begin and end: a page of the largest kind.
const PAGE: usize = 16 << 10;
/// More ranks than this on one machine are a mistake.
const MOST_RANKS: usize = 64;

/// Where everything lies in a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    world_size: usize,
    ring_bytes: usize,
}

impl Layout {
    pub(super) fn new(world_size: usize, ring_bytes: usize) -> Result<Self> {
        if world_size == 0 || world_size > MOST_RANKS {
            return Err(Error::msg(format!("shared memory for {world_size} ranks: 1 to {MOST_RANKS} are possible")));
        }
        if ring_bytes > 1 << 30 {
            return Err(Error::msg(format!(
                "a ring of {ring_bytes} bytes in shared memory: at most 1 GiB is possible"
            )));
        }
        Ok(Self { world_size, ring_bytes: ring_bytes.next_power_of_two().max(PAGE) })
    }
    fn rank(self, rank: usize) -> usize {
        LINE + rank * 2 * LINE
    }
    fn control(self, from: usize, to: usize) -> usize {
        self.rank(self.world_size) + (from * self.world_size + to) * 2 * LINE
    }
    fn data(self, from: usize, to: usize) -> usize {
        let start = self.control(self.world_size, 0).next_multiple_of(PAGE);
        start + (from * self.world_size + to) * self.ring_bytes
    }
    pub(super) fn bytes(self) -> usize {
        self.data(self.world_size, 0)
    }
}

/// A mapping of a segment, unmapped when its last user is dropped.
pub(super) struct Map {
    start: *mut u8,
    layout: Layout,
    run: u64,
}

// SAFETY: the memory is shared by design: every word is atomic, and the rings' bytes are only touched through a ring
// end.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    pub(super) fn new(fd: BorrowedFd<'_>, layout: Layout, run: u64) -> Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the system's choice, of a file that is at least this long (the callers
        // have set or checked its size, and on Linux it is sealed so that nobody can shorten it).
        let start = unsafe { libc::mmap(std::ptr::null_mut(), layout.bytes(), protection, flags, fd.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(Error::from_std(std::io::Error::last_os_error()).context("mapping shared memory between ranks"));
        }
        Ok(Self { start: start.cast(), layout, run })
    }

    pub(super) fn word(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at.is_multiple_of(4) && at + 4 <= self.layout.data(0, 0));
        // SAFETY: every caller's offset is one of the layout's, aligned and inside the mapping, which lives as long as
        // the borrow; all processes touch these words as atomics only, and any bits are a u32.
        unsafe { &*self.start.add(at).cast::<AtomicU32>() }
    }

    /// What a rank sleeps on.
    pub(super) fn bell(&self, rank: usize) -> &AtomicU32 {
        self.word(self.layout.rank(rank))
    }
    /// Whether a rank's end is taken (1) or closed (2).
    pub(super) fn state(&self, rank: usize) -> &AtomicU32 {
        self.word(self.layout.rank(rank) + LINE)
    }
    pub(super) fn world_size(&self) -> usize {
        self.layout.world_size
    }
    pub(super) fn run(&self) -> u64 {
        self.run
    }

    /// The words of the header, by offset.
    pub(super) fn header(&self) -> [(usize, u32); 6] {
        let Layout { world_size, ring_bytes } = self.layout;
        let (low, high) = (self.run as u32, (self.run >> 32) as u32);
        [(0, MAGIC), (4, VERSION), (8, world_size as u32), (12, ring_bytes as u32), (16, low), (20, high)]
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and every borrow of it has ended.
        unsafe { libc::munmap(self.start.cast(), self.layout.bytes()) };
    }
}

/// One ring of a segment.
pub(super) struct Lane {
    map: Arc<Map>,
    control: usize,
    data: usize,
}

impl Lane {
    pub(super) fn new(map: &Arc<Map>, from: usize, to: usize) -> Self {
        let layout = map.layout;
        Self { map: Arc::clone(map), control: layout.control(from, to), data: layout.data(from, to) }
    }

    /// Splits a range into its part before the ring's end and the length of that.
    fn split(&self, at: u32, count: usize) -> (*mut u8, usize, *mut u8) {
        let offset = at as usize & (self.capacity() - 1);
        // SAFETY: `data` is where a ring of `capacity` bytes begins inside the mapping, and `offset` is less than that.
        let (ring, start) = unsafe { (self.map.start.add(self.data), self.map.start.add(self.data + offset)) };
        (start, count.min(self.capacity() - offset), ring)
    }
}

impl Memory for Lane {
    type Word = AtomicU32;
    fn head(&self) -> &AtomicU32 {
        self.map.word(self.control)
    }
    fn tail(&self) -> &AtomicU32 {
        self.map.word(self.control + LINE)
    }
    fn capacity(&self) -> usize {
        self.map.layout.ring_bytes
    }
    unsafe fn put(&self, at: u32, bytes: &[u8]) {
        let (start, first, ring) = self.split(at, bytes.len());
        // SAFETY: both parts lie in the ring, and the caller vouches that the other side is not touching them.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, first);
            std::ptr::copy_nonoverlapping(bytes.as_ptr().add(first), ring, bytes.len() - first);
        }
    }
    unsafe fn get(&self, at: u32, into: &mut [u8]) {
        let (start, first, ring) = self.split(at, into.len());
        // SAFETY: as for `put`.
        unsafe {
            std::ptr::copy_nonoverlapping(start, into.as_mut_ptr(), first);
            std::ptr::copy_nonoverlapping(ring, into.as_mut_ptr().add(first), into.len() - first);
        }
    }
}
