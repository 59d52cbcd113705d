//! Calls on their way to a device: what they touch is noted, and a barrier stands where one needs another's result.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::arena::{Arena, Region, Writer};
use crate::error::{Error, Result};
use crate::gpu::{Access, Argument, Call, Commands, Device, Kernel, Pending};

/// Calls after which a device is given what it was asked so far: it works while the host goes on asking.
const CALLS: usize = 128;
/// So does it after calls that read about so many bytes: macOS ends lists that run for seconds.
const BYTES: u64 = 8 << 30;

/// A kernel's name in two parts: what it does, and for which format (or nothing).
pub(super) type Name = (&'static str, &'static str);

/// One call of a kernel, as the operations write it.
pub(super) struct Work<'a> {
    pub(super) name: Name,
    pub(super) reads: &'a [&'a Region],
    pub(super) writes: &'a [&'a Region],
    /// Bytes of the structures after the buffers.
    pub(super) params: &'a [u8],
    pub(super) groups: [usize; 3],
    /// Threads of a threadgroup.
    pub(super) threads: usize,
}

/// A device and what it was asked.
pub(super) struct Stream {
    device: Arc<dyn Device>,
    arena: Mutex<Arena>,
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    kernels: HashMap<Name, Kernel>,
    commands: Option<Box<dyn Commands>>,
    calls: usize,
    // read by them, about
    bytes: u64,
    // what was touched since the last barrier
    touched: Vec<(usize, Range<usize>, Access)>,
    pending: VecDeque<Box<dyn Pending>>,
    // the first error, which stays
    error: Option<String>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("device", &self.device).finish_non_exhaustive()
    }
}

/// What a panicking thread left is whole: every change is made at once.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    pub(super) fn new(device: Arc<dyn Device>) -> Self {
        Self { device, arena: Mutex::default(), asked: Mutex::default() }
    }

    pub(super) fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// A region of at least `bytes` bytes.
    pub(super) fn take(&self, bytes: usize, writer: Writer) -> Result<Region> {
        lock(&self.arena).take(&*self.device, bytes, writer)
    }

    /// Takes a region back.
    pub(super) fn give_back(&self, region: Region, writer: Writer) {
        lock(&self.arena).give_back(region, writer);
    }

    /// Notes an error that [`Stream::finish`] will return.
    pub(super) fn fail(&self, error: &Error) {
        lock(&self.asked).fail(error);
    }

    /// Asks for a call; an error is noted.
    pub(super) fn run(&self, work: &Work<'_>) {
        if work.groups.contains(&0) {
            return;
        }
        let asked = &mut *lock(&self.asked);
        if asked.error.is_none()
            && let Err(error) = asked.call(&*self.device, work)
        {
            asked.fail(&error.context(format_args!("kernel `{}`", joined(work.name))));
        }
    }

    /// Waits until everything has run.
    ///
    /// # Errors
    /// If anything has failed, now or before.
    pub(super) fn finish(&self) -> Result<()> {
        let mut asked = lock(&self.asked);
        if let Err(error) = asked.drain() {
            asked.fail(&error);
        }
        lock(&self.arena).rested();
        match &asked.error {
            None => Ok(()),
            Some(error) => Err(Error::msg(format!("{}: {error}", self.device.name()))),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // buffers must outlive what reads them
        let _ = self.finish();
    }
}

fn joined((what, format): Name) -> String {
    if format.is_empty() { what.to_owned() } else { format!("{what}_{format}") }
}

fn overlaps(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Asked {
    fn fail(&mut self, error: &Error) {
        self.error.get_or_insert_with(|| error.to_string());
    }

    fn call(&mut self, device: &dyn Device, work: &Work<'_>) -> Result<()> {
        let kernel = match self.kernels.get(&work.name) {
            Some(kernel) => *kernel,
            None => *self.kernels.entry(work.name).or_insert(device.kernel(&joined(work.name))?),
        };
        let reads = work.reads.iter().map(|region| (*region, Access::Read));
        let writes = work.writes.iter().map(|region| (*region, Access::Write));
        let touches: Vec<_> = reads.chain(writes).collect();
        let arguments: Vec<Argument<'_>> = touches
            .iter()
            .map(|(region, access)| Argument { buffer: &region.buffer, bytes: region.bytes.clone(), access: *access })
            .collect();
        let id = |argument: &Argument<'_>| Arc::as_ptr(argument.buffer) as usize;
        let commands = match &mut self.commands {
            Some(commands) => commands,
            none => none.insert(device.commands()?),
        };
        let conflicts = |argument: &Argument<'_>| {
            self.touched.iter().any(|(buffer, bytes, access)| {
                *buffer == id(argument)
                    && (*access == Access::Write || argument.access == Access::Write)
                    && overlaps(bytes, &argument.bytes)
            })
        };
        if arguments.iter().any(conflicts) {
            commands.barrier();
            self.touched.clear();
        }
        let mut groups = [0; 3];
        for (to, count) in groups.iter_mut().zip(work.groups) {
            *to = u32::try_from(count).map_err(|_| Error::msg(format!("{count} threadgroups")))?;
        }
        let threads = [work.threads as u32, 1, 1];
        commands.dispatch(&Call { kernel, arguments: &arguments, params: work.params, groups, threads })?;
        self.touched.extend(arguments.iter().map(|a| (id(a), a.bytes.clone(), a.access)));
        self.calls += 1;
        // rows of threadgroups read what they share again
        let touched: u64 = touches.iter().map(|(region, _)| region.bytes.len() as u64).sum();
        self.bytes = self.bytes.saturating_add(touched.saturating_mul(u64::from(groups[1])));
        if self.calls >= CALLS || self.bytes >= BYTES { self.commit() } else { Ok(()) }
    }

    fn commit(&mut self) -> Result<()> {
        self.touched.clear();
        (self.calls, self.bytes) = (0, 0);
        if let Some(commands) = self.commands.take() {
            self.pending.push_back(commands.commit()?);
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<()> {
        let committed = self.commit();
        // every one of them must have ended, whatever becomes of the first
        let ended = self.pending.drain(..).map(|pending| pending.wait()).fold(Ok(()), Result::and);
        committed.and(ended)
    }
}
