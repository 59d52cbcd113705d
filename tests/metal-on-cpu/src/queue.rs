//! The thread that runs what is committed, in the order of the commits.

use std::any::Any;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tbshard::error::{Error, Result};
use tbshard::gpu::{Event, Pending};

use crate::caches::{Caches, Late};
use crate::commands::{Bound, Recorded};
use crate::emulator::Shared;
use crate::fault;
use crate::group::Runner;
use crate::host::Grid;
use crate::memory::{Memory, page, release_guarded, reserve_guarded};
use crate::order::Random;
use crate::races::Races;

/// How long a Mac lets commands wait, about.
const WATCHDOG: Duration = Duration::from_secs(5);

/// Calls between barriers, in their order.
type Runs = Vec<Vec<Recorded>>;

/// What is committed: calls, and what is raised when they have run.
pub(crate) struct Work {
    pub(crate) runs: Runs,
    pub(crate) raises: Option<(Arc<dyn Event>, u64)>,
}

/// An event.
#[derive(Debug)]
pub(crate) struct Raised {
    shared: Arc<Shared>,
    number: Mutex<u64>,
    changed: Condvar,
}

impl Raised {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, number: Mutex::new(0), changed: Condvar::new() }
    }

    fn raise(&self, number: u64) {
        let mut now = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        *now = number.max(*now);
        self.changed.notify_all();
    }
}

impl Event for Raised {
    fn wait(&self, number: u64, patience: Duration) -> bool {
        let now = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(now, patience, |now| *now < number);
        let there = *waited.unwrap_or_else(PoisonError::into_inner).0 >= number;
        if there {
            self.shared.show_host();
        }
        there
    }
}

/// How commands have ended, once they have.
#[derive(Debug, Default)]
struct Ending {
    result: Mutex<Option<std::result::Result<(), String>>>,
    known: Condvar,
}

/// Commands whose ending is waited for.
struct Sent(Arc<Ending>, Arc<Shared>);

impl Pending for Sent {
    fn done(&self) -> bool {
        let done = self.0.result.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if done {
            self.1.show_host();
        }
        done
    }

    fn wait(&self) -> Result<()> {
        let mut result = self.0.result.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*result {
                Some(Ok(())) => {
                    self.1.show_host();
                    return Ok(());
                }
                Some(Err(problem)) => return Err(Error::msg(problem)),
                None => result = self.0.known.wait(result).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Where commands are sent.
#[derive(Debug)]
pub(crate) struct Queue {
    sender: Option<Sender<(Work, Arc<Ending>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Queue {
    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let (sender, receiver) = channel::<(Work, Arc<Ending>)>();
        let shared = shared.clone();
        let thread = std::thread::spawn(move || {
            let mut processor = Processor::new(&shared);
            for (work, ending) in receiver {
                let result = processor.run(&work.runs);
                let raised = work.raises.as_ref().filter(|_| result.is_ok());
                if let Some((event, number)) = raised
                    && let Some(event) = (&**event as &dyn Any).downcast_ref::<Raised>()
                {
                    event.raise(*number);
                }
                // buffers are given back before anybody hears that they are not needed
                drop(work);
                *ending.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                ending.known.notify_all();
            }
        });
        Self { sender: Some(sender), thread: Some(thread) }
    }

    pub(crate) fn commit(&self, shared: &Arc<Shared>, work: Work) -> Result<Box<dyn Pending>> {
        let ending = Arc::new(Ending::default());
        let sent = self.sender.as_ref().is_some_and(|sender| sender.send((work, ending.clone())).is_ok());
        if sent { Ok(Box::new(Sent(ending, shared.clone()))) } else { Err(Error::msg("the emulator has ended")) }
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
        let options = self.shared.options;
        let memories = self.shared.memories();
        if options.caches {
            memories.iter().filter_map(|memory| memory.apart()).for_each(|(unseen, sides)| unseen.begin(&sides));
        }
        let patience = if options.watchdog.is_zero() { WATCHDOG } else { options.watchdog };
        let late = Late::default();
        for runner in &mut self.runners {
            runner.patience.deadline = Instant::now().checked_add(patience);
            runner.caches = options.caches.then(|| Caches::new(&memories, late.clone()));
        }
        let result = self.calls(runs);
        self.runners.iter_mut().for_each(|runner| runner.caches = None);
        memories.iter().filter_map(|memory| memory.apart()).for_each(|(unseen, _)| unseen.end());
        result
    }

    fn calls(&mut self, runs: &Runs) -> std::result::Result<(), String> {
        for run in runs {
            for index in self.shared.options.calls.of(run.len(), &mut self.random) {
                let call = &run[index];
                self.call(call).map_err(|problem| format!("kernel `{}`: {problem}", call.entry.name))?;
            }
        }
        Ok(())
    }

    fn call(&mut self, call: &Recorded) -> std::result::Result<(), String> {
        if self.shared.options.strict
            && let Some(Memory::Own(own)) = call.counts.as_ref().map(|counts| &*counts.memory)
        {
            own.protect(Some(false));
        }
        let Some(groups) = groups(call)? else {
            self.shared.skipped.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
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
        let grid = Grid { function: call.entry.call, bound: &bound, groups, threads: call.threads };
        let [wide, high, deep] = groups.map(|count| count as usize);
        let order = self.shared.options.groups.of(wide * high * deep, &mut self.random);
        if self.shared.options.races {
            let buffers: Vec<_> = call.arguments.iter().filter(|bound| bound.writes).map(Bound::addresses).collect();
            for runner in &mut self.runners {
                runner.races = Some(Races::new(buffers.clone()));
            }
        }
        self.runners
            .iter_mut()
            .filter_map(|runner| runner.caches.as_mut())
            .for_each(|caches| caches.begin(order.len()));
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

/// The threadgroups of a call, none if a count is zero.
fn groups(call: &Recorded) -> std::result::Result<Option<[u32; 3]>, String> {
    let Some(counts) = &call.counts else { return Ok(Some(call.groups)) };
    // SAFETY: three words of a buffer, at a multiple of four, and no kernel runs
    let found = unsafe { (counts.addresses().start as *const [u32; 3]).read() };
    if found.iter().zip(call.groups).any(|(found, most)| *found > most) {
        return Err(format!("{found:?} threadgroups are counted, at most {:?} were told", call.groups));
    }
    Ok((!found.contains(&0)).then_some(found))
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
