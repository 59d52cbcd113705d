//! A pool of threads that share out numbered tasks; idle threads spin briefly, then park.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Error, Result};

/// Rounds of spinning before a waiting worker parks: some 50 µs where a pause takes 140 cycles.
const SPINS: u32 = 1_000;

/// Rounds of spinning before the caller lets others run: on a busy machine the worker it waits for may be one of them.
const CALLER_SPINS: u32 = 200;

type Task = *const (dyn Fn(usize) + Sync);

/// Threads that run `task(0) … task(n - 1)`, the caller among them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    // one job at a time: `run` may be called from several threads
    turn: Mutex<()>,
}

struct Shared {
    epoch: AtomicU32,
    quit: AtomicBool,
    job: UnsafeCell<Option<(Task, usize)>>,
    next: AtomicUsize,
    working: AtomicUsize,
    panicked: AtomicBool,
    // of the first worker that panicked
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    parked: Vec<AtomicBool>,
}

// SAFETY: `job` is written only by the thread that holds `turn`, while no worker reads it: workers read it between
// the change of `epoch` (release/acquire) and their decrement of `working`, which the writer waits for
unsafe impl Sync for Shared {}
// SAFETY: the task behind the pointer is `Sync`, and outlives the job because `run` waits for all workers
unsafe impl Send for Shared {}

impl Pool {
    /// Starts `threads - 1` workers; the thread that calls [`Pool::run`] is the last one.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(threads: usize) -> Result<Self> {
        let workers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            quit: AtomicBool::new(false),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            working: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
            parked: (0..workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let spawn = |index: usize| {
            let shared = Arc::clone(&shared);
            let named = std::thread::Builder::new().name(format!("tbshard-{index}"));
            named.spawn(move || shared.work(index))
        };
        let mut pool = Self { shared: Arc::clone(&shared), workers: Vec::new(), turn: Mutex::new(()) };
        for worker in (0..workers).map(spawn) {
            let refused = |error| Error::from_std(error).context(format!("cannot start {threads} threads"));
            pool.workers.push(worker.map_err(|error| refused(error).hint("ask for fewer with --threads"))?);
        }
        Ok(pool)
    }

    /// The number of threads that share the work.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(i)` for every `i < tasks`, each once, on any of the threads, and returns when all are done.
    ///
    /// A panic in a task is raised again here. A task must not call `run` itself: it would wait for its own turn.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(task);
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        let erased: *const (dyn Fn(usize) + Sync + '_) = &task;
        // SAFETY: only the lifetime is erased; no worker holds the pointer when `run` returns
        let erased: Task = unsafe { std::mem::transmute(erased) };
        // SAFETY: no worker reads the job now: all of them finished the one before
        unsafe { *shared.job.get() = Some((erased, tasks)) };
        shared.next.store(0, Ordering::Relaxed);
        shared.working.store(self.workers.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (worker, parked) in self.workers.iter().zip(&shared.parked) {
            if parked.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| shared.take(&task, tasks)));
        let mut spins = 0u32;
        while shared.working.load(Ordering::Acquire) != 0 {
            spins = spins.saturating_add(1);
            if spins > CALLER_SPINS { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        let theirs = shared.panicked.swap(false, Ordering::Relaxed);
        let theirs = theirs.then(|| shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(panic) = own.err().or(theirs.flatten()) {
            resume_unwind(panic);
        }
    }
}

impl Shared {
    fn take(&self, task: &(dyn Fn(usize) + Sync), tasks: usize) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                return;
            }
            task(index);
        }
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.wait(index, seen) {
            seen = epoch;
            // SAFETY: the epoch changed, so the job is set and stays until `working` is decremented
            if let Some((task, tasks)) = unsafe { *self.job.get() } {
                // SAFETY: `run` keeps the closure alive until `working` is zero
                let task = unsafe { &*task };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take(task, tasks))) {
                    self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
                    self.panicked.store(true, Ordering::Relaxed);
                }
            }
            self.working.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits until the epoch differs from `seen`; `None` when the pool ends.
    fn wait(&self, index: usize, seen: u32) -> Option<u32> {
        let mut spins = 0;
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            if self.quit.load(Ordering::Relaxed) {
                return None;
            }
            if epoch != seen {
                return Some(epoch);
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            // the flag is raised before the epoch is read again, so a job is never missed
            self.parked[index].store(true, Ordering::SeqCst);
            if self.epoch.load(Ordering::SeqCst) == seen && !self.quit.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.parked[index].store(false, Ordering::SeqCst);
            spins = 0;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // a worker's panic was raised in `run` already
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        let pool = Pool::new(4).unwrap();
        for tasks in [0, 1, 2, 7, 1000] {
            let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, |i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_is_raised_in_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        for bad in [57..58, 0..100] {
            let attempt = catch_unwind(AssertUnwindSafe(|| pool.run(100, |i| assert!(!bad.contains(&i)))));
            let text = attempt.unwrap_err();
            assert!(text.downcast_ref::<&str>().is_some_and(|text| text.contains("bad.contains")));
        }
        let sum = AtomicUsize::new(0);
        pool.run(10, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
