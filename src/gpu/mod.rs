//! The device that `backend/metal` is written against: memory shared with the host, kernels by name, commands in order.

#[cfg(target_os = "macos")]
pub mod apple;

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::error::Result;

/// Sources of all kernels but [`FENCES`] as one text of the Metal Shading Language, made by the build from `kernels/`.
pub const SOURCE: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.metal"));

/// The source of the kernels that meet the host while they run. Apart, because it asks for what Apple does not document: a
/// compiler that refuses it takes nothing else away.
pub const FENCES: &str = include_str!(concat!(env!("OUT_DIR"), "/fence.metal"));

/// Structures that the host hands to kernels, made by the build from `kernels/params.h`, which kernels include.
pub mod params {
    #![allow(missing_docs, reason = "documented where they are defined, in kernels/params.h")]
    include!(concat!(env!("OUT_DIR"), "/params.rs"));
}

/// Memory of a device that the host sees at `start`.
///
/// What the device writes is there once the commands that write it have run, or, from kernels of [`FENCES`], once the number
/// that says so is; nobody but the host looks after that.
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    address: u64,
    handle: Box<dyn Any + Send + Sync>,
}

// SAFETY: a pointer to memory that the handle keeps; who may use it when is what `bytes` and `bytes_mut` ask of callers
unsafe impl Send for Buffer {}
// SAFETY: as above
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Describes `len` bytes at `start` that live as long as `handle`; kernels find them at `address`.
    ///
    /// # Safety
    /// The memory is there until `handle` is dropped.
    pub unsafe fn new(start: NonNull<u8>, len: usize, address: u64, handle: Box<dyn Any + Send + Sync>) -> Self {
        Self { start, len, address, handle }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the host sees it.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Where kernels see it, for structures that hold pointers.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// What the device knows it by.
    pub fn handle<T: 'static>(&self) -> Option<&T> {
        self.handle.downcast_ref()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

/// A compiled kernel of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel(pub usize);

/// What a call does with a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads it.
    Read,
    /// Writes it, or reads and writes it.
    Write,
}

/// A part of a buffer as an argument.
#[derive(Debug, Clone)]
pub struct Argument<'a> {
    /// The buffer.
    pub buffer: &'a Arc<Buffer>,
    /// The bytes that the call may touch; the kernel's pointer is to the first of them.
    pub bytes: Range<usize>,
    /// How.
    pub access: Access,
}

/// One call of a kernel.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// Which.
    pub kernel: Kernel,
    /// Bound to the indices from 0 on.
    pub arguments: &'a [Argument<'a>],
    /// A structure of [`params`], bound to the index after them: at most 4096 bytes.
    pub params: &'a [u8],
    /// Threadgroups of the grid.
    pub groups: [u32; 3],
    /// Where the device finds, when the call's turn comes, how many threadgroups there are: three words, none of them more
    /// than in `groups`. With a zero among them nothing runs.
    pub counts: Option<&'a Argument<'a>>,
    /// Threads of a threadgroup.
    pub threads: [u32; 3],
}

/// A device with one queue.
pub trait Device: Send + Sync + fmt::Debug {
    /// What it is, for people.
    fn name(&self) -> String;

    /// Zeroed memory, aligned to a page.
    ///
    /// # Errors
    /// If the device has no room for it.
    fn allocate(&self, bytes: usize) -> Result<Buffer>;

    /// The host's `bytes` without copying them, if they can be had so: the buffer of the pages that they lie in, and where
    /// in it they start. The buffer keeps `bytes` alive; nobody writes them.
    ///
    /// # Errors
    /// If the device refuses the pages.
    fn adopt(&self, bytes: &Bytes) -> Result<(Buffer, usize)>;

    /// Memory of `bytes` bytes, aligned to a page, that `fill` fills and nobody writes afterwards.
    ///
    /// # Errors
    /// If the device has no room for it.
    fn constant(&self, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<Buffer>;

    /// The names of all kernels.
    fn kernels(&self) -> Vec<String>;

    /// The kernel called `name` in [`SOURCE`] or [`FENCES`].
    ///
    /// # Errors
    /// If there is none, or it does not compile.
    fn kernel(&self, name: &str) -> Result<Kernel>;

    /// Starts a list of commands.
    ///
    /// # Errors
    /// If the device is gone.
    fn commands(&self) -> Result<Box<dyn Commands>>;

    /// An event at 0.
    ///
    /// # Errors
    /// If the device is gone.
    fn event(&self) -> Result<Arc<dyn Event>>;
}

/// A number that commands raise and the host waits for.
pub trait Event: Any + Send + Sync + fmt::Debug {
    /// Waits until it is `number` at least, but no longer than `patience`; whether it is.
    fn wait(&self, number: u64, patience: Duration) -> bool;
}

/// Commands that run one after the other only where there is a barrier between them.
pub trait Commands: Send {
    /// Appends a call.
    ///
    /// # Errors
    /// If the kernel or a buffer is another device's, or the call does not fit its limits.
    fn dispatch(&mut self, call: &Call<'_>) -> Result<()>;

    /// What is appended after this sees what was written before it.
    fn barrier(&mut self);

    /// Raises `event` to `number` when all of these commands have run, and what they wrote is there. Nothing is appended after.
    ///
    /// # Errors
    /// If the event is another device's.
    fn signal(&mut self, event: &Arc<dyn Event>, number: u64) -> Result<()>;

    /// Lets the commands run, after those that were committed before.
    ///
    /// # Errors
    /// If the device is gone.
    fn commit(self: Box<Self>) -> Result<Box<dyn Pending>>;
}

/// Commands on their way.
pub trait Pending: Send {
    /// Whether they have run.
    fn done(&self) -> bool;

    /// Waits until they have run.
    ///
    /// # Errors
    /// If one of them has failed.
    fn wait(&self) -> Result<()>;
}
