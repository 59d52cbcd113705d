//! Calls on their way to a device: what they touch is noted, and a barrier stands where one needs another's result.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::arena::{Arena, Region, Writer};
use super::fence::Fence;
use super::fence::ledger::{Flight, Ledger, word};
use super::fence::words::Words;
use super::list::{CALLS, Gate, Gated, List, Table};
use crate::error::{Error, Result};
use crate::gpu::{Access, Argument, Call, Device, Event, Kernel, Pending};

/// A device is also given its work after calls that read about so many bytes: macOS ends lists that run for seconds.
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
    pub(super) fence: Fence,
    arena: Mutex<Arena>,
    asked: Mutex<Asked>,
}

/// What the device and the host meet by.
pub(super) enum Meeting {
    Words(Words, Gate),
    Event(Arc<dyn Event>),
}

/// What a device was asked. Lists fly as the ledger says; the fence's part of this is in `fence/crossing.rs`.
#[derive(Default)]
pub(super) struct Asked {
    kernels: HashMap<Name, Kernel>,
    open: Option<List>,
    // what was touched since the last barrier
    touched: Vec<(usize, Range<usize>, Access)>,
    pub(super) ledger: Ledger<Load>,
    /// From the first exchange on.
    pub(super) meeting: Option<Meeting>,
    /// Lists that are handed over when the exchange before them has its sum, and what they signal.
    pub(super) held: VecDeque<(List, Option<u64>)>,
    /// What the open list signals last.
    pub(super) signal: Option<u64>,
    // whose work is done, but not said to be
    ending: VecDeque<Box<dyn Pending>>,
    // to be used again
    spare: Vec<Gated>,
    /// How often lists were asked for again.
    pub(super) resubmissions: u64,
    // the first error, which stays
    error: Option<String>,
}

/// A list that the device has.
pub(super) struct Load {
    pub(super) pending: Box<dyn Pending>,
    pub(super) gated: Option<Gated>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("device", &self.device).field("fence", &self.fence).finish_non_exhaustive()
    }
}

/// What a panicking thread left is whole: every change is made at once.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    pub(super) fn new(device: Arc<dyn Device>, fence: Fence) -> Self {
        Self { device, fence, arena: Mutex::default(), asked: Mutex::default() }
    }

    pub(super) fn device(&self) -> &dyn Device {
        &*self.device
    }

    pub(super) fn asked(&self) -> MutexGuard<'_, Asked> {
        lock(&self.asked)
    }

    pub(super) fn arena(&self) -> MutexGuard<'_, Arena> {
        lock(&self.arena)
    }

    /// A region of at least `bytes` bytes.
    pub(super) fn take(&self, bytes: usize, writer: Writer) -> Result<Region> {
        self.arena().take(&*self.device, bytes, writer)
    }

    /// Takes a region back.
    pub(super) fn give_back(&self, region: Region, writer: Writer) {
        self.arena().give_back(region, writer);
    }

    /// Notes an error that [`Stream::finish`] will return.
    pub(super) fn fail(&self, error: &Error) {
        self.asked().fail(error);
    }

    /// Asks for a call; an error is noted.
    pub(super) fn run(&self, work: &Work<'_>) {
        self.asked().run(self.device(), work);
    }

    /// Waits until everything has run.
    ///
    /// # Errors
    /// If anything has failed, now or before, or a sum is missing that something waits for.
    pub(super) fn finish(&self) -> Result<()> {
        let mut asked = self.asked();
        if let Err(error) = asked.drain(self.device()) {
            asked.fail(&error);
        }
        self.arena().rested();
        asked.sound().map_err(|error| error.context(self.device.name()))
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
    pub(super) fn fail(&mut self, error: &Error) {
        self.error.get_or_insert_with(|| error.to_string());
    }

    /// The first error.
    pub(super) fn sound(&self) -> Result<()> {
        self.error.as_ref().map_or(Ok(()), |error| Err(Error::msg(error)))
    }

    pub(super) fn kernel(&mut self, device: &dyn Device, name: Name) -> Result<Kernel> {
        Ok(match self.kernels.get(&name) {
            Some(kernel) => *kernel,
            None => *self.kernels.entry(name).or_insert(device.kernel(&joined(name))?),
        })
    }

    pub(super) fn run(&mut self, device: &dyn Device, work: &Work<'_>) {
        if self.error.is_none()
            && !work.groups.contains(&0)
            && let Err(error) = self.call(device, work)
        {
            self.fail(&error.context(format_args!("kernel `{}`", joined(work.name))));
        }
    }

    fn call(&mut self, device: &dyn Device, work: &Work<'_>) -> Result<()> {
        let kernel = self.kernel(device, work.name)?;
        let reads = work.reads.iter().map(|region| (*region, Access::Read));
        let writes = work.writes.iter().map(|region| (*region, Access::Write));
        let touches: Vec<_> = reads.chain(writes).collect();
        let arguments: Vec<Argument<'_>> = touches
            .iter()
            .map(|(region, access)| Argument { buffer: &region.buffer, bytes: region.bytes.clone(), access: *access })
            .collect();
        let id = |argument: &Argument<'_>| Arc::as_ptr(argument.buffer) as usize;
        self.open(device)?;
        let Some(list) = &mut self.open else { return Ok(()) };
        let conflicts = |argument: &Argument<'_>| {
            self.touched.iter().any(|(buffer, bytes, access)| {
                *buffer == id(argument)
                    && (*access == Access::Write || argument.access == Access::Write)
                    && overlaps(bytes, &argument.bytes)
            })
        };
        if arguments.iter().any(conflicts) {
            list.barrier();
            self.touched.clear();
        }
        let mut groups = [0; 3];
        for (to, count) in groups.iter_mut().zip(work.groups) {
            *to = u32::try_from(count).map_err(|_| Error::msg(format!("{count} threadgroups")))?;
        }
        let threads = [work.threads as u32, 1, 1];
        list.dispatch(&Call { kernel, arguments: &arguments, params: work.params, groups, counts: None, threads })?;
        self.touched.extend(arguments.iter().map(|a| (id(a), a.bytes.clone(), a.access)));
        // rows of threadgroups read what they share again
        let touched: u64 = touches.iter().map(|(region, _)| region.bytes.len() as u64).sum();
        list.bytes = list.bytes.saturating_add(touched.saturating_mul(u64::from(groups[1])));
        if list.calls >= CALLS || list.bytes >= BYTES { self.commit() } else { Ok(()) }
    }

    /// Begins a list where none is open: it waits if a kernel is what waits.
    pub(super) fn open(&mut self, device: &dyn Device) -> Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        let after = self.ledger.gate();
        let gated = match (&self.meeting, after) {
            (Some(Meeting::Words(_, gate)), Some(number)) => {
                let gated = match self.spare.pop() {
                    Some(gated) => gated,
                    None => Gated::new(Table::new(device)?),
                };
                Some((gated.renewed(word(number)), gate))
            }
            _ => None,
        };
        self.open = Some(List::begin(device, after, gated)?);
        Ok(())
    }

    /// Gives the device what it was asked so far; or holds it back, if the sum before it is missing and nothing on the device
    /// waits.
    pub(super) fn commit(&mut self) -> Result<()> {
        self.touched.clear();
        let signal = self.signal.take();
        let Some(list) = self.open.take() else { return Ok(()) };
        let early = list.after.is_some_and(|number| !self.ledger.has_answered(number));
        if matches!(self.meeting, Some(Meeting::Event(_))) && early {
            self.held.push_back((list, signal));
            return Ok(());
        }
        self.submit(list, signal)
    }

    /// Gives the device a list.
    pub(super) fn submit(&mut self, list: List, signal: Option<u64>) -> Result<()> {
        let List { mut commands, gated, after: gate, .. } = list;
        if let (Some(Meeting::Event(event)), Some(number)) = (&self.meeting, signal) {
            commands.signal(event, number)?;
        }
        self.ledger.fly(Flight { gate, signal, load: Load { pending: commands.commit()?, gated } });
        Ok(())
    }

    /// Lists that have done their work need not be kept.
    pub(super) fn release(&mut self, flights: Vec<Flight<Load>>) {
        for Flight { load: Load { pending, gated }, .. } in flights {
            self.ending.push_back(pending);
            self.spare.extend(gated);
        }
    }

    /// Takes note of lists that are said to have ended.
    ///
    /// # Errors
    /// If one has failed.
    pub(super) fn reap(&mut self) -> Result<()> {
        while self.ending.front().is_some_and(|pending| pending.done()) {
            self.ending.pop_front().map_or(Ok(()), |pending| pending.wait())?;
        }
        // a list that is still kept for its calls may have failed, too
        let ended = self.ledger.flying().filter(|flight| flight.load.pending.done());
        ended.map(|flight| flight.load.pending.wait()).fold(Ok(()), Result::and)
    }

    /// Waits until the device has nothing more to do.
    ///
    /// # Errors
    /// If a list has failed.
    pub(super) fn rest(&mut self) -> Result<()> {
        // every one of them must have ended, whatever becomes of the first
        let ended = self.ending.drain(..).map(|pending| pending.wait()).fold(Ok(()), Result::and);
        self.ledger.flying().map(|flight| flight.load.pending.wait()).fold(ended, Result::and)
    }

    fn drain(&mut self, device: &dyn Device) -> Result<()> {
        let quiet = self.ledger.is_quiet();
        if !quiet {
            self.close();
        }
        let committed = self.commit();
        self.held.clear();
        let rested = self.rest();
        let again = if self.error.is_none() && quiet && rested.is_ok() { self.again(device) } else { Ok(()) };
        let flights = self.ledger.settle().collect();
        self.release(flights);
        committed.and(rested).and(again).and(self.rest())
    }
}
