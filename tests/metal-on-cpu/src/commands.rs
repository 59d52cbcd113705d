//! Lists of calls, and what is wrong with a call before it runs.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use tbshard::error::{Error, Result};
use tbshard::gpu::{Access, Argument, Call, Commands, Event, Pending};

use crate::emulator::Shared;
use crate::library::Entry;
use crate::memory::Memory;
use crate::queue::{Queue, Raised, Work};

/// Bytes of a call's params at most.
const PARAMS: usize = 4096;

/// An argument of a recorded call.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) memory: Arc<Memory>,
    pub(crate) bytes: Range<usize>,
    pub(crate) writes: bool,
}

impl Bound {
    /// The addresses that the kernel may touch.
    pub(crate) fn addresses(&self) -> Range<usize> {
        let start = self.memory.kernels() as usize;
        start + self.bytes.start..start + self.bytes.end
    }

    fn conflicts(&self, other: &Self) -> bool {
        let (own, others) = (self.addresses(), other.addresses());
        (self.writes || other.writes) && own.start < others.end && others.start < own.end
    }
}

/// A call as it will run.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) entry: Entry,
    pub(crate) arguments: Vec<Bound>,
    pub(crate) params: Vec<u8>,
    pub(crate) groups: [u32; 3],
    /// Where their counts are found, if they are not these.
    pub(crate) counts: Option<Bound>,
    pub(crate) threads: [u32; 3],
}

impl Recorded {
    /// What it touches.
    fn touched(&self) -> impl Iterator<Item = &Bound> {
        self.arguments.iter().chain(&self.counts)
    }
}

/// Calls, the last ones after the last barrier.
pub(crate) struct List {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    runs: Vec<Vec<Recorded>>,
    raises: Option<(Arc<dyn Event>, u64)>,
}

impl List {
    pub(crate) fn new(shared: Arc<Shared>, queue: Arc<Queue>) -> Self {
        Self { shared, queue, runs: vec![Vec::new()], raises: None }
    }
}

fn bound(argument: &Argument<'_>) -> Result<Bound> {
    let memory: &Arc<Memory> = argument.buffer.handle().ok_or_else(|| Error::msg("a buffer is another device's"))?;
    let (bytes, writes) = (argument.bytes.clone(), argument.access == Access::Write);
    if bytes.start > bytes.end || bytes.end > memory.len() {
        return Err(Error::msg(format!("bytes {bytes:?} of a buffer of {}", memory.len())));
    }
    if writes && memory.constant().is_some() {
        return Err(Error::msg("what was adopted is not written"));
    }
    Ok(Bound { memory: memory.clone(), bytes, writes })
}

fn check(entry: &Entry, call: &Call<'_>) -> Result<()> {
    let given = call.arguments.len() + usize::from(!call.params.is_empty());
    let written = |(index, argument): (usize, &Argument<'_>)| {
        entry.written >> index & 1 == 1 && argument.access == Access::Read && !argument.bytes.is_empty()
    };
    if given > 31 || entry.bound != (1 << given) - 1 {
        return Err(Error::msg(format!("{given} buffers are bound where it takes {:b} (a bit each)", entry.bound)));
    }
    if let Some(index) = call.arguments.iter().enumerate().position(written) {
        return Err(Error::msg(format!("it may write argument {index}, which is said to be read")));
    }
    if call.params.len() > PARAMS {
        return Err(Error::msg(format!("{} bytes of params: {PARAMS} are allowed", call.params.len())));
    }
    let threads: u64 = call.threads.iter().map(|count| u64::from(*count)).product();
    if threads == 0 || threads > u64::from(entry.threads) {
        return Err(Error::msg(format!("{threads} threads in a threadgroup: 1 to {} are allowed", entry.threads)));
    }
    if call.groups.contains(&0) {
        return Err(Error::msg("a grid without threadgroups"));
    }
    Ok(())
}

impl Commands for List {
    fn dispatch(&mut self, call: &Call<'_>) -> Result<()> {
        let entry = self.shared.library.entries.get(call.kernel.0);
        let entry = entry.ok_or_else(|| Error::msg("a kernel is another device's"))?.clone();
        let name = entry.name.clone();
        let context = |error: Error| error.context(format!("kernel `{name}`"));
        check(&entry, call).map_err(context)?;
        if self.raises.is_some() {
            return Err(context(Error::msg("it comes after an event")));
        }
        let arguments = call.arguments.iter().map(bound).collect::<Result<Vec<_>>>().map_err(context)?;
        let counts = call.counts.map(bound).transpose().map_err(context)?;
        if counts.as_ref().is_some_and(|counts| counts.bytes.len() != 12 || counts.bytes.start % 4 != 0) {
            return Err(context(Error::msg("counts are three words")));
        }
        let (params, groups, threads) = (call.params.to_vec(), call.groups, call.threads);
        let new = Recorded { entry, arguments, params, groups, counts, threads };
        for other in self.runs.last().into_iter().flatten() {
            let pairs =
                other.touched().enumerate().flat_map(|old| new.touched().enumerate().map(move |new| (old, new)));
            for ((old_index, old), (new_index, argument)) in pairs {
                if old.conflicts(argument) {
                    let verb = |bound: &Bound| if bound.writes { "written" } else { "read" };
                    return Err(Error::msg(format!(
                        "no barrier between kernel `{}`, whose argument {old_index} is {}, and kernel `{}`, whose argument \
                         {new_index} is {} and overlaps it",
                        other.entry.name,
                        verb(old),
                        new.entry.name,
                        verb(argument)
                    )));
                }
            }
        }
        if let Some(run) = self.runs.last_mut() {
            run.push(new);
        }
        Ok(())
    }

    fn barrier(&mut self) {
        self.runs.push(Vec::new());
    }

    fn signal(&mut self, event: &Arc<dyn Event>, number: u64) -> Result<()> {
        let known = (&**event as &dyn Any).is::<Raised>();
        self.raises = known.then(|| (event.clone(), number));
        known.then_some(()).ok_or_else(|| Error::msg("an event is another device's"))
    }

    fn commit(self: Box<Self>) -> Result<Box<dyn Pending>> {
        self.queue.commit(&self.shared, Work { runs: self.runs, raises: self.raises })
    }
}
