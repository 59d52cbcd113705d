//! A list of calls on its way to a device; one that waits for the host first is kept, to be asked for again.

use std::ops::Range;
use std::sync::Arc;

use super::arena::Region;
use crate::error::Result;
use crate::gpu::params::WaitParams;
use crate::gpu::{Access, Argument, Buffer, Call, Commands, Device, Kernel};

/// Calls after which a device is given what it was asked so far: it works while the host goes on asking.
pub(super) const CALLS: usize = 128;
/// Bytes of three counts.
const COUNTS: usize = 12;
/// Threads of a wait's threadgroup: `WAITING` of kernels/fence.metal.
const WAITING: u32 = 128;

/// The wait that a list may begin with.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    pub(super) kernel: Kernel,
    pub(super) words: Region,
    pub(super) looks: u32,
}

/// How many threadgroups each call of a list has: as it was asked for, and as the wait before it lets it.
#[derive(Debug)]
pub(super) struct Table {
    asked: Region,
    counts: Region,
}

impl Table {
    pub(super) fn new(device: &dyn Device) -> Result<Self> {
        let region = || -> Result<Region> {
            Ok(Region { buffer: Arc::new(device.allocate(CALLS * COUNTS)?), bytes: 0..CALLS * COUNTS })
        };
        Ok(Self { asked: region()?, counts: region()? })
    }

    fn ask(&self, call: usize, groups: [u32; 3]) {
        let at = self.asked.buffer.start().as_ptr().wrapping_add(call * COUNTS).cast::<[u32; 3]>();
        // SAFETY: a list has at most so many calls, and no device has it yet
        unsafe { at.write(groups) };
    }

    fn counts(&self, call: usize) -> Argument<'_> {
        Argument { buffer: &self.counts.buffer, bytes: call * COUNTS..(call + 1) * COUNTS, access: Access::Read }
    }
}

/// A call as it is kept.
#[derive(Debug)]
struct Kept {
    kernel: Kernel,
    arguments: Range<usize>,
    params: Range<usize>,
    groups: [u32; 3],
    threads: [u32; 3],
    after_barrier: bool,
}

/// The calls of a list that waits.
#[derive(Debug)]
pub(super) struct Gated {
    number: u32,
    table: Table,
    calls: Vec<Kept>,
    arguments: Vec<(Arc<Buffer>, Range<usize>, Access)>,
    params: Vec<u8>,
}

impl Gated {
    pub(super) fn new(table: Table) -> Self {
        Self { number: 0, table, calls: Vec::new(), arguments: Vec::new(), params: Vec::new() }
    }

    /// The same without any calls, for a wait for exchange `number`, as a word.
    pub(super) fn renewed(mut self, number: u32) -> Self {
        self.number = number;
        self.calls.clear();
        self.arguments.clear();
        self.params.clear();
        self
    }

    /// Appends the wait, behind which calls find their counts.
    fn wait(&self, commands: &mut dyn Commands, gate: &Gate) -> Result<()> {
        let arguments = [
            argument(&self.table.asked, Access::Read),
            argument(&gate.words, Access::Write),
            argument(&self.table.counts, Access::Write),
        ];
        let params = WaitParams { number: self.number, looks: gate.looks, words: (CALLS * COUNTS / 4) as u32 };
        commands.dispatch(&Call {
            kernel: gate.kernel,
            arguments: &arguments,
            params: bytemuck::bytes_of(&params),
            groups: [1; 3],
            counts: None,
            threads: [WAITING, 1, 1],
        })?;
        commands.barrier();
        Ok(())
    }

    fn keep(&mut self, call: &Call<'_>, after_barrier: bool) {
        self.table.ask(self.calls.len(), call.groups);
        let (arguments, params) = (self.arguments.len(), self.params.len());
        self.arguments.extend(call.arguments.iter().map(|a| (a.buffer.clone(), a.bytes.clone(), a.access)));
        self.params.extend(call.params);
        self.calls.push(Kept {
            kernel: call.kernel,
            arguments: arguments..self.arguments.len(),
            params: params..self.params.len(),
            groups: call.groups,
            threads: call.threads,
            after_barrier,
        });
    }

    /// Appends the wait and all calls.
    pub(super) fn ask_again(&self, commands: &mut dyn Commands, gate: &Gate) -> Result<()> {
        self.wait(commands, gate)?;
        for (index, call) in self.calls.iter().enumerate() {
            if call.after_barrier {
                commands.barrier();
            }
            let arguments = self.arguments[call.arguments.clone()].iter();
            let arguments: Vec<Argument<'_>> = arguments
                .map(|(buffer, bytes, access)| Argument { buffer, bytes: bytes.clone(), access: *access })
                .collect();
            commands.dispatch(&Call {
                kernel: call.kernel,
                arguments: &arguments,
                params: &self.params[call.params.clone()],
                groups: call.groups,
                counts: Some(&self.table.counts(index)),
                threads: call.threads,
            })?;
        }
        Ok(())
    }
}

fn argument(region: &Region, access: Access) -> Argument<'_> {
    Argument { buffer: &region.buffer, bytes: region.bytes.clone(), access }
}

/// Calls that a device is about to be given.
pub(super) struct List {
    pub(super) commands: Box<dyn Commands>,
    /// The exchange whose sum it needs, if it comes after one.
    pub(super) after: Option<u64>,
    pub(super) gated: Option<Gated>,
    pub(super) calls: usize,
    /// Read by them, about.
    pub(super) bytes: u64,
    barrier: bool,
}

impl List {
    /// An empty list, or one that has a wait.
    pub(super) fn begin(device: &dyn Device, after: Option<u64>, gated: Option<(Gated, &Gate)>) -> Result<Self> {
        let mut commands = device.commands()?;
        if let Some((gated, gate)) = &gated {
            gated.wait(&mut *commands, gate)?;
        }
        Ok(Self { commands, after, gated: gated.map(|(gated, _)| gated), calls: 0, bytes: 0, barrier: false })
    }

    /// What is appended after this sees what was written before it.
    pub(super) fn barrier(&mut self) {
        self.commands.barrier();
        self.barrier = true;
    }

    pub(super) fn dispatch(&mut self, call: &Call<'_>) -> Result<()> {
        let barrier = std::mem::take(&mut self.barrier);
        match &mut self.gated {
            None => self.commands.dispatch(call)?,
            Some(gated) => {
                gated.keep(call, barrier);
                self.commands.dispatch(&Call { counts: Some(&gated.table.counts(self.calls)), ..call.clone() })?;
            }
        }
        self.calls += 1;
        Ok(())
    }
}
