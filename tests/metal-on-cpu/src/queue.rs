//! The thread that runs what is committed, in the order of the commits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use tbshard::error::{Error, Result};
use tbshard::gpu::Pending;

use crate::commands::{Bound, Recorded};
use crate::emulator::Shared;
use crate::fault;
use crate::group::Runner;
use crate::host::Grid;
use crate::memory::{Memory, page, release_guarded, reserve_guarded};
use crate::order::Random;
use crate::races::Races;

/// Calls between barriers, in their order.
type Runs = Vec<Vec<Recorded>>;

/// How commands have ended, once they have.
#[derive(Debug, Default)]
struct Ending {
    result: Mutex<Option<std::result::Result<(), String>>>,
    known: Condvar,
}

/// Commands whose ending is waited for.
struct Sent(Arc<Ending>);

impl Pending for Sent {
    fn done(&self) -> bool {
        self.0.result.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn wait(&self) -> Result<()> {
        let mut result = self.0.result.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*result {
                Some(Ok(())) => return Ok(()),
                Some(Err(problem)) => return Err(Error::msg(problem)),
                None => result = self.0.known.wait(result).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Where commands are sent.
#[derive(Debug)]
pub(crate) struct Queue {
    sender: Option<Sender<(Runs, Arc<Ending>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Queue {
    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let (sender, receiver) = channel::<(Runs, Arc<Ending>)>();
        let shared = shared.clone();
        let thread = std::thread::spawn(move || {
            let mut processor = Processor::new(&shared);
            for (runs, ending) in receiver {
                let result = processor.run(&runs);
                // buffers are given back before anybody hears that they are not needed
                drop(runs);
                *ending.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                ending.known.notify_all();
            }
        });
        Self { sender: Some(sender), thread: Some(thread) }
    }

    pub(crate) fn commit(&self, runs: Runs) -> Result<Box<dyn Pending>> {
        let ending = Arc::new(Ending::default());
        let sent = self.sender.as_ref().is_some_and(|sender| sender.send((runs, ending.clone())).is_ok());
        if sent { Ok(Box::new(Sent(ending))) } else { Err(Error::msg("the emulator has ended")) }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.sender = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What runs calls.
struct Processor<'a> {
    shared: &'a Shared,
    runners: Vec<Runner>,
    random: Random,
    params: *mut u8,
}

impl<'a> Processor<'a> {
    fn new(shared: &'a Shared) -> Self {
        fault::catch();
        let options = shared.options;
        Self {
            shared,
            runners: (0..options.workers.max(1)).map(|_| Runner::new(options.threads)).collect(),
            random: Random::new(options.calls.seed() ^ options.groups.seed()),
            params: reserve_guarded(page()),
        }
    }

    fn run(&mut self, runs: &Runs) -> std::result::Result<(), String> {
        for run in runs {
            for index in self.shared.options.calls.of(run.len(), &mut self.random) {
                let call = &run[index];
                self.call(call).map_err(|problem| format!("kernel `{}`: {problem}", call.entry.name))?;
            }
        }
        Ok(())
    }

    fn call(&mut self, call: &Recorded) -> std::result::Result<(), String> {
        let memories = self.shared.memories();
        if self.shared.options.strict {
            protect(&memories, call);
        }
        let copies =
            if self.shared.options.isolated { call.arguments.iter().map(Copy::of).collect() } else { Vec::new() };
        let mut bound: Vec<*mut u8> = match copies.is_empty() {
            true => call.arguments.iter().map(|bound| bound.addresses().start as *mut u8).collect(),
            false => copies.iter().map(|copy: &Copy| copy.start).collect(),
        };
        if !call.params.is_empty() {
            // they end at the guard page, as far as eight bytes of alignment allow
            let at = self.params.wrapping_add(page() - call.params.len().next_multiple_of(8));
            // SAFETY: there is room for 4096 bytes, and no kernel runs
            unsafe { at.copy_from_nonoverlapping(call.params.as_ptr(), call.params.len()) };
            bound.push(at);
        }
        let grid = Grid { function: call.entry.call, bound: &bound, groups: call.groups, threads: call.threads };
        let [wide, high, deep] = call.groups.map(|count| count as usize);
        let order = self.shared.options.groups.of(wide * high * deep, &mut self.random);
        if self.shared.options.races {
            let buffers: Vec<_> = call.arguments.iter().filter(|bound| bound.writes).map(Bound::addresses).collect();
            for runner in &mut self.runners {
                runner.races = Some(Races::new(buffers.clone()));
            }
        }
        let next = AtomicUsize::new(0);
        let work = |runner: &mut Runner| {
            while let Some(group) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                let place = [group % wide, group / wide % high, group / wide / high].map(|at| at as u32);
                let result = runner.run(&grid, place);
                let result = fault::explain(runner, call, &memories).map_or(result, Err);
                result.map_err(|problem| format!("threadgroup {place:?}: {problem}"))?;
            }
            Ok(())
        };
        let (first, others) = self.runners.split_at_mut(1);
        std::thread::scope(|scope| {
            let others: Vec<_> = if order.len() == 1 {
                Vec::new()
            } else {
                others.iter_mut().map(|runner| scope.spawn(|| work(runner))).collect()
            };
            let own = work(&mut first[0]);
            let ended =
                others.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("it panicked".to_owned())));
            ended.fold(own, std::result::Result::and)
        })?;
        copies
            .iter()
            .zip(&call.arguments)
            .enumerate()
            .try_for_each(|(index, (copy, bound))| copy.give_back(index, bound))
    }
}

impl Drop for Processor<'_> {
    fn drop(&mut self) {
        release_guarded(self.params, page());
    }
}

/// An argument's bytes, at the end of pages of their own.
struct Copy {
    pages: *mut u8,
    room: usize,
    start: *mut u8,
    len: usize,
}

impl Copy {
    fn of(bound: &Bound) -> Self {
        let bytes = bound.addresses();
        let room = bytes.len().max(1).next_multiple_of(page());
        let pages = reserve_guarded(room);
        // the last value ends where nobody may go on
        let start = pages.wrapping_add(room - bytes.len().next_multiple_of(4));
        // SAFETY: there is room for them; what wrote them has run
        unsafe { start.copy_from_nonoverlapping(bytes.start as *const u8, bytes.len()) };
        Self { pages, room, start, len: bytes.len() }
    }

    /// Writes what the kernel has written to where it belongs; an error if it may only read.
    fn give_back(&self, index: usize, bound: &Bound) -> std::result::Result<(), String> {
        let place = bound.addresses().start as *mut u8;
        // SAFETY: both have so many bytes, and no kernel runs
        unsafe {
            if bound.writes {
                place.copy_from_nonoverlapping(self.start, self.len);
                return Ok(());
            }
            let (now, before) =
                (std::slice::from_raw_parts(self.start, self.len), std::slice::from_raw_parts(place, self.len));
            if now == before { Ok(()) } else { Err(format!("it writes argument {index}, which it may only read")) }
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        release_guarded(self.pages, self.room);
    }
}

/// Kernels may touch what the call names, and read what is resident.
fn protect(memories: &[Arc<Memory>], call: &Recorded) {
    for memory in memories {
        if let Memory::Own(own) = &**memory {
            let named = call.arguments.iter().filter(|bound| Arc::ptr_eq(&bound.memory, memory));
            own.protect(named.map(|bound| bound.writes).reduce(|a, b| a || b));
        }
    }
}
