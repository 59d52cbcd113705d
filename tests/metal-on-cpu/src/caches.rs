//! What stands between kernels and the host while a list of commands runs: each sees its own memory, and Metal promises only
//! when one is shown the other's.
//!
//! A list begins with the host's memory as it is then. What kernels write the host is shown when it hears that the list has
//! ended, by waiting for it or for an event. In between only what is coherent with the system crosses, and fences of that scope
//! are needed for it, more of them than any one machine may ask for: a thread's read sees what the host wrote, but the next read
//! of the same word sees the same again until there is a fence; a write is shown by the next fence of its thread, but those of
//! calls of several threadgroups only by a fence in a later call, after the thread's own, and what that call wrote before its
//! fence overtakes them.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::fault::place;
use crate::group::Runner;
use crate::memory::Memory;

/// A thread with so many fences and coherent accesses waits for the host; it lets others run after every so many.
const WAITS: usize = 8;
const YIELDS: usize = 1024;

/// How long the host sees what overtook something else.
const EARLY: Duration = Duration::from_millis(20);

/// Words whose bits are together.
const BITS: usize = 64;

/// Words that kernels have written and the host has not been shown, a bit each.
#[derive(Debug)]
pub(crate) struct Unseen {
    // by the list that runs
    current: Vec<AtomicU64>,
    // by lists before, which the host has not heard the end of
    ended: Mutex<Vec<u64>>,
}

/// The two copies of some memory.
pub(crate) struct Sides {
    pub(crate) host: *mut u8,
    pub(crate) kernels: *mut u8,
}

impl Sides {
    /// The word `at` of both.
    fn word(&self, at: usize) -> [&AtomicU32; 2] {
        // SAFETY: callers stay inside of the pages, whose words nobody frees meanwhile; the host and kernels may write them
        [self.host, self.kernels].map(|start| unsafe { &*start.cast::<AtomicU32>().add(at) })
    }

    fn show_host(&self, at: usize) {
        let [host, kernels] = self.word(at);
        host.store(kernels.load(Ordering::Relaxed), Ordering::Release);
    }

    fn show_kernels(&self, at: usize) {
        let [host, kernels] = self.word(at);
        kernels.store(host.load(Ordering::Acquire), Ordering::Relaxed);
    }
}

impl Unseen {
    pub(crate) fn new(bytes: usize) -> Self {
        let count = (bytes / 4).div_ceil(BITS);
        Self { current: (0..count).map(|_| AtomicU64::new(0)).collect(), ended: Mutex::new(vec![0; count]) }
    }

    fn ended(&self) -> MutexGuard<'_, Vec<u64>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A list begins: kernels are shown what the host has, but for what they wrote themselves.
    pub(crate) fn begin(&self, sides: &Sides) {
        for (index, bits) in self.ended().iter().enumerate() {
            (0..BITS).filter(|bit| bits >> bit & 1 == 0).for_each(|bit| sides.show_kernels(index * BITS + bit));
        }
    }

    /// A list ends.
    pub(crate) fn end(&self) {
        for (ended, current) in self.ended().iter_mut().zip(&self.current) {
            *ended |= current.swap(0, Ordering::Relaxed);
        }
    }

    /// The host hears that lists have ended, and is shown what they wrote.
    pub(crate) fn show(&self, sides: &Sides) {
        for (index, bits) in self.ended().iter_mut().enumerate() {
            while *bits != 0 {
                sides.show_host(index * BITS + bits.trailing_zeros() as usize);
                *bits &= *bits - 1;
            }
        }
    }
}

/// A word of a memory, and what writes it.
struct Stored {
    thread: usize,
    word: usize,
    code: usize,
}

/// How long a list of commands may wait for the host.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    pub(crate) deadline: Option<Instant>,
    /// Fences and coherent accesses of the current fiber, which never lets another run between them.
    pub(crate) looks: usize,
}

/// Words that have a fence of their thread behind them and wait for another, and the call that wrote them. Those who run
/// kernels side by side share them.
pub(crate) type Late = Arc<Mutex<Vec<(usize, usize)>>>;

/// The memory of one device, as a thread that runs kernels knows it.
pub(crate) struct Caches {
    memories: Vec<Arc<Memory>>,
    // coherent, and no fence after them
    stored: Vec<Stored>,
    late: Late,
    // the words that threads have read since their last fence
    seen: HashSet<(usize, usize)>,
    // the call that runs, and whether it has several threadgroups
    call: usize,
    many: bool,
}

impl Caches {
    pub(crate) fn new(memories: &[Arc<Memory>], late: Late) -> Self {
        let (stored, seen) = (Vec::new(), HashSet::new());
        Self { memories: memories.to_vec(), stored, late, seen, call: 0, many: false }
    }

    /// A call of so many threadgroups begins, after all before it.
    pub(crate) fn begin(&mut self, groups: usize) {
        (self.call, self.many) = (self.call + 1, groups > 1);
    }

    /// Does `to` each word of what kernels see at `at`, given which of its memory it is.
    fn words(&self, at: Range<usize>, mut to: impl FnMut(&Unseen, &Sides, usize)) {
        let found = self.memories.iter().find_map(|memory| {
            let (unseen, sides) = memory.apart()?;
            let start = sides.kernels as usize;
            (start..start + unseen.current.len() * BITS * 4).contains(&at.start).then_some((unseen, sides))
        });
        let Some((unseen, sides)) = found else { return };
        let start = sides.kernels as usize;
        ((at.start - start) / 4..(at.end - start).div_ceil(4)).for_each(|word| to(unseen, &sides, word));
    }

    /// Kernels write `at`.
    pub(crate) fn written(&self, at: Range<usize>) {
        self.words(at, |unseen, _, word| {
            unseen.current[word / BITS].fetch_or(1 << (word % BITS), Ordering::Relaxed);
        });
    }

    /// `thread` is about to read or write `at` coherently.
    pub(crate) fn coherent(&mut self, at: Range<usize>, writes: bool, thread: usize, code: usize) {
        if writes {
            let words = at.start / 4..at.end.div_ceil(4);
            self.stored.extend(words.map(|word| Stored { thread, word, code }));
            return;
        }
        let words = at.start / 4..at.end.div_ceil(4);
        if words.filter(|word| self.seen.insert((thread, *word))).count() == 0 {
            return;
        }
        self.words(at, |unseen, sides, word| {
            let bits = unseen.current[word / BITS].load(Ordering::Relaxed) | unseen.ended()[word / BITS];
            if bits >> (word % BITS) & 1 == 0 {
                sides.show_kernels(word);
            }
        });
    }

    /// A fence of `thread`.
    pub(crate) fn fence(&mut self, thread: usize) {
        self.seen.retain(|(reader, _)| *reader != thread);
        let own: Vec<usize> =
            self.stored.extract_if(.., |stored| stored.thread == thread).map(|stored| stored.word).collect();
        let late = self.late.clone();
        let mut late = late.lock().unwrap_or_else(PoisonError::into_inner);
        let before: Vec<usize> = late.extract_if(.., |(call, _)| *call < self.call).map(|(_, word)| word).collect();
        if self.many {
            late.extend(own.into_iter().map(|word| (self.call, word)));
        } else {
            own.iter().for_each(|word| self.show(*word));
            // no fence stands between what was written and what was late then: the host may see the one without the other
            if !own.is_empty() && !before.is_empty() {
                std::thread::sleep(EARLY);
            }
        }
        before.into_iter().for_each(|word| self.show(word));
    }

    fn show(&self, word: usize) {
        self.words(word * 4..word * 4 + 4, |unseen, sides, word| {
            unseen.current[word / BITS].fetch_and(!(1 << (word % BITS)), Ordering::Relaxed);
            unseen.ended()[word / BITS] &= !(1 << (word % BITS));
            sides.show_host(word);
        });
    }

    /// What `thread`, which ends, stored without a fence after it.
    pub(crate) fn unfenced(&mut self, thread: usize) -> Option<String> {
        self.seen.retain(|(reader, _)| *reader != thread);
        let at = self.stored.iter().position(|stored| stored.thread == thread)?;
        let code = self.stored.swap_remove(at).code;
        self.stored.clear();
        Some(format!("no fence of the system's scope comes after thread {thread} writes at {}", place(code)))
    }
}

impl Runner {
    /// The current fiber reads or writes.
    pub(crate) fn access(&mut self, at: usize, size: usize, writes: bool, code: usize) {
        if writes && let Some(caches) = &self.caches {
            caches.written(at..at + size);
        }
        let thread = self.current();
        if let Some(problem) = self.races.as_mut().and_then(|races| races.access(thread, at..at + size, writes, code)) {
            self.fail(problem);
        }
    }

    /// The current fiber reads or writes what is coherent with the host.
    pub(crate) fn coherent(&mut self, at: usize, size: usize, writes: bool, code: usize) {
        self.access(at, size, writes, code);
        let thread = self.current();
        if let Some(caches) = &mut self.caches {
            caches.coherent(at..at + size, writes, thread, code);
        }
        self.looks_on();
    }

    /// What the current fiber has written coherently, the host now sees.
    pub(crate) fn fence(&mut self) {
        let thread = self.current();
        if let Some(caches) = &mut self.caches {
            caches.fence(thread);
        }
        self.looks_on();
    }

    /// The current fiber may wait for the host.
    fn looks_on(&mut self) {
        self.patience.looks += 1;
        if self.patience.looks < WAITS {
            return;
        }
        if self.patience.deadline.is_some_and(|deadline| Instant::now() > deadline) {
            self.fail("the watchdog ends a list of commands that waits too long".to_owned());
        }
        // there may be fewer processors than kernels and hosts
        if self.patience.looks.is_multiple_of(YIELDS) {
            std::thread::yield_now();
        }
    }
}
