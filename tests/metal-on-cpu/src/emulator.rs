//! The device.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tbshard::error::{Error, Result};
use tbshard::gpu::{Buffer, Commands, Device, Event, Kernel};

use crate::commands::List;
use crate::compile::Build;
use crate::library::Library;
use crate::memory::Memory;
use crate::order::Order;
use crate::queue::{Queue, Raised};

/// How an emulator does what is left to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The order of a grid's threadgroups.
    pub groups: Order,
    /// The order of a threadgroup's threads.
    pub threads: Order,
    /// The order of calls between barriers.
    pub calls: Order,
    /// Whether kernels are kept from what their calls do not name: other buffers, and writing what is to be read. Buffers
    /// then end at a page that nobody may touch, and start where 16 bytes of alignment let them.
    pub strict: bool,
    /// Whether a call sees copies of its arguments alone, which end where memory ends, to the byte: others beside them in one
    /// buffer are then as unreachable as other buffers. What it may only read is compared afterwards.
    pub isolated: bool,
    /// Whether fresh memory is full of NaN, not of zeros.
    pub poison: bool,
    /// Whether threads that touch the same bytes without a barrier between them are an error. [`Emulator::with`] needs a
    /// library that was built for it, and only the threadgroups that one thread of the host runs are seen together.
    pub races: bool,
    /// Whether kernels and the host see each other's memory only where Metal promises that they do. Needs such a library, too.
    pub caches: bool,
    /// How long a list of commands may run that waits for the host: 0 is five seconds, as a Mac's patience is.
    pub watchdog: Duration,
    /// Threads of the host that run threadgroups; 0 is one.
    pub workers: usize,
}

/// What the device and its queue share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) library: Library,
    pub(crate) options: Options,
    /// Calls that did nothing, because a count was zero.
    pub(crate) skipped: AtomicUsize,
    /// Buffers that were ever made.
    buffers: AtomicUsize,
    memories: Mutex<Vec<Weak<Memory>>>,
    constants: Mutex<Constants>,
}

/// What was ever adopted or made constant.
#[derive(Debug, Clone, Copy, Default)]
pub struct Constants {
    /// How often.
    pub buffers: usize,
    /// Bytes that were asked for.
    pub bytes: usize,
    /// Bytes of the buffers: whole pages.
    pub memory: usize,
}

impl Shared {
    /// All memory that is there.
    pub(crate) fn memories(&self) -> Vec<Arc<Memory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    /// The host is shown what kernels have written.
    pub(crate) fn show_host(&self) {
        if self.options.caches {
            self.memories().iter().filter_map(|memory| memory.apart()).for_each(|(unseen, sides)| unseen.show(&sides));
        }
    }

    fn keep(&self, memory: Memory) -> Buffer {
        self.buffers.fetch_add(1, Ordering::Relaxed);
        if let Some(bytes) = memory.constant() {
            let mut constants = self.constants.lock().unwrap_or_else(PoisonError::into_inner);
            constants.buffers += 1;
            constants.bytes += bytes;
            constants.memory += memory.len();
        }
        let memory = Arc::new(memory);
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        if memories.len() == memories.capacity() {
            memories.retain(|memory| memory.strong_count() > 0);
        }
        memories.push(Arc::downgrade(&memory));
        drop(memories);
        memory.buffer()
    }
}

/// A device that runs Metal kernels on this machine's processor.
#[derive(Debug)]
pub struct Emulator {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
}

impl Emulator {
    /// A device with the project's kernels.
    ///
    /// # Errors
    /// If they cannot be loaded.
    pub fn new(options: Options) -> Result<Self> {
        let build = if options.races || options.caches { Build::Races } else { Build::Fast };
        Ok(Self::with(Library::kernels(build)?, options))
    }

    /// A device with these kernels.
    pub fn with(library: Library, options: Options) -> Self {
        let (skipped, buffers) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (memories, constants) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { library, options, skipped, buffers, memories, constants });
        Self { queue: Arc::new(Queue::start(&shared)), shared }
    }

    /// What was ever adopted or made constant.
    pub fn constants(&self) -> Constants {
        *self.shared.constants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Buffers that were ever made.
    pub fn buffers(&self) -> usize {
        self.shared.buffers.load(Ordering::Relaxed)
    }

    /// Calls that did nothing, because the device found a count of zero.
    pub fn skipped(&self) -> usize {
        self.shared.skipped.load(Ordering::Relaxed)
    }
}

fn out_of_memory(bytes: usize) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error::from_std(error).context(format!("{bytes} bytes"))
}

impl Device for Emulator {
    fn name(&self) -> String {
        "Metal on a CPU".to_owned()
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        let Options { strict, caches, .. } = self.shared.options;
        let memory = Memory::allocate(bytes, strict, caches).map_err(out_of_memory(bytes))?;
        if self.shared.options.poison {
            // SAFETY: nobody else knows of it yet
            unsafe { memory.host().write_bytes(0xff, bytes) };
        }
        Ok(self.shared.keep(memory))
    }

    fn adopt(&self, bytes: &Bytes) -> Result<(Buffer, usize)> {
        let (memory, start) = match self.shared.options.strict {
            true => Memory::copy(bytes).map_err(out_of_memory(bytes.len()))?,
            false => Memory::adopt(bytes),
        };
        Ok((self.shared.keep(memory), start))
    }

    fn constant(&self, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<Buffer> {
        let memory = Memory::constant_of(bytes, self.shared.options.strict, fill).map_err(out_of_memory(bytes))?;
        Ok(self.shared.keep(memory))
    }

    fn kernels(&self) -> Vec<String> {
        self.shared.library.entries.iter().map(|entry| entry.name.clone()).collect()
    }

    fn kernel(&self, name: &str) -> Result<Kernel> {
        let found = self.shared.library.entries.iter().position(|entry| entry.name == name);
        found.map(Kernel).ok_or_else(|| Error::msg(format!("there is no kernel `{name}`")))
    }

    fn commands(&self) -> Result<Box<dyn Commands>> {
        Ok(Box::new(List::new(self.shared.clone(), self.queue.clone())))
    }

    fn event(&self) -> Result<Arc<dyn Event>> {
        Ok(Arc::new(Raised::new(self.shared.clone())))
    }
}
