//! The device: memory, kernels by name, and lists of commands that are checked before they are taken.

use std::collections::HashMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;
use tbshard::error::{Error, Result};
use tbshard::gpu::{Access, Buffer, Call, Commands, Device, Kernel, Pending};

use crate::kernels::{self, Compiled};
use crate::memory::Guarded;
use crate::queue::{Queue, Recorded, Touched};

/// In which order what has no order is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// First to last.
    #[default]
    Forward,
    /// Last to first.
    Reverse,
    /// Any, by a number that chooses it.
    Shuffled(u32),
}

impl Order {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Forward => 0,
            Self::Reverse => 1,
            Self::Shuffled(seed) => seed.max(2),
        }
    }
}

/// How strict the emulator is, and what it makes of freedom.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Of threadgroups, lanes and SIMD-groups, and of calls without a barrier between them.
    pub order: Order,
    /// Every call sees copies of its arguments, which end where memory ends; what it must not write is compared afterwards.
    pub isolated: bool,
    /// Nothing runs before somebody waits for it.
    pub late: bool,
}

/// A device that runs kernels on this processor.
#[derive(Debug)]
pub struct Emulator {
    kernels: HashMap<&'static str, usize>,
    queue: Arc<Queue>,
}

impl Emulator {
    /// A new one, whose commands wait for nobody else's.
    pub fn new(options: Options) -> Self {
        let kernels = kernels::all().iter().enumerate().map(|(at, kernel)| (kernel.name(), at)).collect();
        Self { kernels, queue: Arc::new(Queue::new(options)) }
    }
}

impl Device for Emulator {
    fn name(&self) -> String {
        "Metal on this CPU".to_owned()
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        let memory = Guarded::pages(bytes)?;
        let start = memory.start();
        // SAFETY: the handle is the mapping
        Ok(unsafe { Buffer::new(start, bytes, start.as_ptr() as u64, Box::new(memory)) })
    }

    fn adopt(&self, bytes: &Bytes) -> Result<(Buffer, usize)> {
        let page = rustix::param::page_size();
        let start = bytes.as_ptr() as usize;
        let (first, end) = (start / page * page, (start + bytes.len()).next_multiple_of(page));
        let pages = NonNull::new(first as *mut u8).ok_or_else(|| Error::msg("nothing to adopt"))?;
        // SAFETY: pages that hold the bytes, which the handle keeps
        let buffer = unsafe { Buffer::new(pages, end - first, first as u64, Box::new(bytes.clone())) };
        Ok((buffer, start - first))
    }

    fn kernel(&self, name: &str) -> Result<Kernel> {
        let at = self.kernels.get(name).ok_or_else(|| Error::msg(format!("there is no kernel `{name}`")))?;
        Ok(Kernel(*at))
    }

    fn commands(&self) -> Result<Box<dyn Commands>> {
        Ok(Box::new(List {
            queue: self.queue.clone(),
            kernels: kernels::all(),
            touched: Vec::new(),
            recorded: vec![Vec::new()],
        }))
    }
}

/// A list of commands: calls between barriers.
struct List {
    queue: Arc<Queue>,
    kernels: Vec<&'static Compiled>,
    // what the calls since the last barrier touch
    touched: Vec<(&'static str, Touched)>,
    recorded: Vec<Vec<Recorded>>,
}

/// Threads of a threadgroup at most, and bytes of params.
const THREADS: u32 = 1024;
const PARAMS: usize = 4096;

impl List {
    /// What Metal's validation would refuse.
    fn check(kernel: &Compiled, call: &Call<'_>) -> Result<()> {
        let threads: u32 = call.threads.iter().product();
        if threads == 0 || threads > THREADS || call.groups.contains(&0) {
            return Err(Error::msg(format!("{threads} threads in {:?} threadgroups", call.groups)));
        }
        if call.arguments.len() + 1 != kernel.buffers() || call.params.len() > PARAMS {
            let (have, wants) = (call.arguments.len(), kernel.buffers());
            return Err(Error::msg(format!("{have} buffers and {} bytes for {wants} indices", call.params.len())));
        }
        for (at, argument) in call.arguments.iter().enumerate() {
            if argument.bytes.end > argument.buffer.len() || argument.bytes.start > argument.bytes.end {
                return Err(Error::msg(format!("bytes {:?} of a buffer of {}", argument.bytes, argument.buffer.len())));
            }
            if !argument.bytes.start.is_multiple_of(4) {
                return Err(Error::msg(format!("buffer {at} starts at byte {}", argument.bytes.start)));
            }
            if kernel.writes(at) != (argument.access == Access::Write) {
                let verb = if kernel.writes(at) { "writes" } else { "only reads" };
                return Err(Error::msg(format!("it {verb} buffer {at}, which the call gives it otherwise")));
            }
        }
        Ok(())
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Commands for List {
    fn dispatch(&mut self, call: &Call<'_>) -> Result<()> {
        let kernel = *self.kernels.get(call.kernel.0).ok_or_else(|| Error::msg("another device's kernel"))?;
        Self::check(kernel, call).map_err(|error| error.context(format_args!("kernel `{}`", kernel.name())))?;
        let touched = call.arguments.iter().map(|argument| {
            let start = argument.buffer.start().as_ptr() as usize;
            let bytes = start + argument.bytes.start..start + argument.bytes.end;
            Touched { bytes, writes: argument.access == Access::Write }
        });
        let touched: Vec<Touched> = touched.collect();
        for (other, before) in &self.touched {
            let clash = touched.iter().any(|now| (now.writes || before.writes) && overlap(&now.bytes, &before.bytes));
            if clash {
                let name = kernel.name();
                return Err(Error::msg(format!(
                    "no barrier between `{other}` and `{name}`, which touch the same bytes"
                )));
            }
        }
        // within a call too: one argument must not be written under another
        for (i, a) in touched.iter().enumerate() {
            if touched[..i].iter().any(|b| (a.writes || b.writes) && overlap(&a.bytes, &b.bytes)) {
                return Err(Error::msg(format!("arguments of `{}` overlap, and it writes one", kernel.name())));
            }
        }
        let buffers = call.arguments.iter().map(|argument| argument.buffer.clone()).collect();
        self.touched.extend(touched.iter().map(|touched| (kernel.name(), touched.clone())));
        let (params, groups, threads) = (call.params.to_vec(), call.groups, call.threads);
        let recorded = Recorded { kernel, buffers, touched, params, groups, threads };
        self.recorded.last_mut().ok_or_else(|| Error::msg("no list"))?.push(recorded);
        Ok(())
    }

    fn barrier(&mut self) {
        self.touched.clear();
        self.recorded.push(Vec::new());
    }

    fn commit(self: Box<Self>) -> Result<Box<dyn Pending>> {
        Ok(Box::new(self.queue.push(self.recorded)))
    }
}
