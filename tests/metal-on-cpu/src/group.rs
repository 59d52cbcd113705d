//! Runs a threadgroup: a fiber a thread, which hands over to another one where it waits.

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::fmt::Write;
use std::ptr::null_mut;

use crate::Order;
use crate::caches::{Caches, Patience};
use crate::fiber::{self, Stacks};
use crate::host::{Exchange, Function, Grid, Site, Thread, text};
use crate::memory::{release_guarded, reserve_guarded};
use crate::order::Random;
use crate::races::Races;

/// Threads of a SIMD-group.
pub(crate) const LANES: usize = 32;
/// Bytes of threadgroup memory.
const MEMORY: usize = 32 << 10;

struct Fiber {
    thread: Thread,
    noted: *mut u8,
    site: Site,
    stack: Option<usize>,
}

/// A SIMD-group: what its lanes do, a bit each.
struct Simd {
    ready: u32,
    waiting: u32,
    at_barrier: u32,
    ended: u32,
    all: u32,
    site: Site,
    turn: usize,
    flags: u32,
    exchanges: [Exchange; 2],
}

/// What one thread of the host needs to run threadgroups.
pub(crate) struct Runner {
    order: Order,
    random: Random,
    stacks: Stacks,
    fibers: Vec<Fiber>,
    simds: Vec<Simd>,
    live: usize,
    at_barrier: usize,
    current: usize,
    main: *mut u8,
    left: *mut u8,
    function: Option<Function>,
    memory: *mut u8,
    taken: usize,
    known: Vec<(*const c_void, *mut u8)>,
    error: Option<String>,
    flags: u32,
    /// Accesses of the call, where races are looked for.
    pub(crate) races: Option<Races>,
    /// What stands between kernels and the host, if something does.
    pub(crate) caches: Option<Caches>,
    /// For waits for the host.
    pub(crate) patience: Patience,
    /// What address the processor stopped a thread at, in what code, and whether it was writing.
    pub(crate) fault: Option<(usize, usize, Option<bool>)>,
}

// SAFETY: all its pointers are to what it owns, or to what lives as long as the grid that it runs
unsafe impl Send for Runner {}

thread_local! {
    /// The runner whose threadgroup this thread is in.
    pub(crate) static RUNNING: Cell<*mut Runner> = const { Cell::new(null_mut()) };
}

impl Runner {
    pub(crate) fn new(order: Order) -> Self {
        Self {
            order,
            random: Random::new(order.seed()),
            stacks: Stacks::default(),
            fibers: Vec::new(),
            simds: Vec::new(),
            live: 0,
            at_barrier: 0,
            current: 0,
            main: null_mut(),
            left: null_mut(),
            function: None,
            memory: reserve_guarded(MEMORY),
            taken: 0,
            known: Vec::new(),
            error: None,
            flags: 0,
            races: None,
            caches: None,
            patience: Patience::default(),
            fault: None,
        }
    }

    /// Runs the threadgroup at `group`.
    pub(crate) fn run(&mut self, grid: &Grid<'_>, group: [u32; 3]) -> Result<(), String> {
        self.prepare(grid, group);
        RUNNING.set(self);
        if let Some(first) = self.pick() {
            let (runner, to) = (&raw mut *self, self.enter(first));
            // SAFETY: a fiber comes back here when none is left or one has failed
            unsafe { fiber::switch(&raw mut (*runner).main, to) };
        }
        RUNNING.set(null_mut());
        if self.error.is_some() || self.fault.is_some() {
            self.stacks.reset();
        }
        self.error.take().map_or(Ok(()), Err)
    }

    /// The thread of the threadgroup that ran last.
    pub(crate) fn current(&self) -> usize {
        self.current
    }

    /// What to go on with where a threadgroup is given up.
    pub(crate) fn main(&self) -> *mut u8 {
        self.main
    }

    fn prepare(&mut self, grid: &Grid<'_>, group: [u32; 3]) {
        let count = grid.threads.iter().product::<u32>() as usize;
        let simds = count.div_ceil(LANES);
        self.function = Some(grid.function);
        (self.live, self.at_barrier, self.taken) = (count, 0, 0);
        self.current = if self.order == Order::Reverse { count - 1 } else { 0 };
        self.known.clear();
        if let Some(races) = &mut self.races {
            races.begin_group(simds, self.memory as usize..self.memory as usize + MEMORY);
        }
        (self.error, self.fault) = (None, None);
        let [wide, high, _] = grid.threads;
        self.fibers.clear();
        self.fibers.extend((0..count as u32).map(|index| Fiber {
            thread: Thread {
                position: [index % wide, index / wide % high, index / wide / high],
                group,
                threads: grid.threads,
                groups: grid.groups,
                index,
                lane: index % LANES as u32,
                simdgroup: index / LANES as u32,
                simdgroups: simds as u32,
                bound: grid.bound.as_ptr(),
            },
            noted: null_mut(),
            site: Site::NONE,
            stack: None,
        }));
        let empty = Exchange { slots: [0xff; LANES * 32], result: [0xff; 16], active: 0, has_result: 0 };
        let (mut before, fresh) = (0, || Simd {
            ready: 0,
            waiting: 0,
            at_barrier: 0,
            ended: 0,
            all: 0,
            site: Site::NONE,
            turn: 0,
            flags: 0,
            exchanges: [empty; 2],
        });
        self.simds.resize_with(simds, fresh);
        for simd in &mut self.simds {
            let lanes = (count - before).min(LANES);
            before += lanes;
            simd.all = u32::MAX >> (LANES - lanes);
            (simd.ready, simd.waiting, simd.at_barrier, simd.ended) = (simd.all, 0, 0, 0);
        }
    }

    /// The fiber whose turn it is; none if all have ended or there is an error.
    fn pick(&mut self) -> Option<usize> {
        if self.error.is_some() || self.live == 0 {
            return None;
        }
        if self.at_barrier == self.live {
            self.pass_barrier();
            if self.error.is_some() {
                return None;
            }
        }
        let own = self.current / LANES;
        let ready = |simd: &usize| self.simds[*simd].ready != 0;
        let simd = match self.order {
            Order::Forward if own < self.simds.len() && ready(&own) => Some(own),
            Order::Reverse if own < self.simds.len() && ready(&own) => Some(own),
            Order::Forward => (0..self.simds.len()).find(ready),
            Order::Reverse => (0..self.simds.len()).rev().find(ready),
            Order::Random(_) => {
                let start = self.random.below(self.simds.len());
                (0..self.simds.len()).map(|simd| (simd + start) % self.simds.len()).find(ready)
            }
        };
        let Some(simd) = simd else {
            self.error.get_or_insert_with(|| stuck(&self.fibers, &self.simds));
            return None;
        };
        let ready = self.simds[simd].ready;
        let lane = match self.order {
            Order::Forward => ready.trailing_zeros(),
            Order::Reverse => ready.ilog2(),
            Order::Random(_) => {
                let turned = self.random.below(LANES) as u32;
                (ready.rotate_right(turned).trailing_zeros() + turned) % LANES as u32
            }
        };
        self.simds[simd].ready &= !(1 << lane);
        Some(simd * LANES + lane as usize)
    }

    /// Makes `fiber` the current one and returns what to go on with.
    fn enter(&mut self, fiber: usize) -> *mut u8 {
        self.current = fiber;
        if self.fibers[fiber].stack.is_none() {
            let stack = self.stacks.take();
            self.fibers[fiber].stack = Some(stack);
            self.fibers[fiber].noted = self.stacks.begin(stack, thread_main);
        }
        self.fibers[fiber].noted
    }

    /// Lets others run until it is this fiber's turn again.
    fn wait(&mut self) {
        let own = self.current;
        match self.pick() {
            Some(next) if next == own => {}
            next => {
                let to = next.map_or(self.main, |next| self.enter(next));
                let save = &raw mut self.fibers[own].noted;
                // SAFETY: `to` is the main stack, a fiber that waits or one that begins
                unsafe { fiber::switch(save, to) };
            }
        }
    }

    pub(crate) fn fail(&mut self, problem: String) -> ! {
        self.error.get_or_insert(problem);
        // SAFETY: the main stack waits for a fiber to end
        unsafe { fiber::resume(self.main) };
        unreachable!("a failed fiber does not go on")
    }

    /// The current fiber waits for the lanes of its SIMD-group, and is given what they hand in.
    pub(crate) fn exchange(&mut self, value: &[u8], flags: u32, site: Site) -> *mut Exchange {
        let (own, lane) = (self.current / LANES, self.current % LANES);
        self.fibers[self.current].site = site;
        let simd = &mut self.simds[own];
        if simd.waiting != 0 && !simd.site.is(site) {
            let (here, there) = (site.name(), simd.site.name());
            self.fail(format!("lanes of one SIMD-group are at {there} and at {here}"));
        }
        (simd.site, simd.flags) = (site, flags);
        simd.waiting |= 1 << lane;
        let exchange = &raw mut simd.exchanges[simd.turn];
        simd.exchanges[simd.turn].slots[lane * value.len()..][..value.len()].copy_from_slice(value);
        self.meet(own);
        self.wait();
        exchange
    }

    /// Lets the lanes of a SIMD-group go on if all that run are there.
    fn meet(&mut self, index: usize) {
        let simd = &mut self.simds[index];
        if simd.waiting != 0 && simd.waiting == simd.all & !simd.ended {
            simd.exchanges[simd.turn].active = simd.waiting;
            simd.exchanges[simd.turn].has_result = 0;
            simd.turn ^= 1;
            simd.ready |= simd.waiting;
            simd.waiting = 0;
            if let Some(races) = &mut self.races {
                races.pass_simd(index, simd.flags);
            }
        }
    }

    fn pass_barrier(&mut self) {
        let waits =
            |fiber: &&Fiber| self.simds[fiber.thread.simdgroup as usize].at_barrier >> fiber.thread.lane & 1 == 1;
        let mut sites = self.fibers.iter().filter(waits).map(|fiber| fiber.site);
        let first = sites.next().unwrap_or(Site::NONE);
        if let Some(other) = sites.find(|site| !site.is(first)) {
            self.error = Some(format!("threads of one threadgroup are at {} and at {}", first.name(), other.name()));
        } else if self.live < self.fibers.len() {
            let ended = self.fibers.len() - self.live;
            self.error = Some(format!("{ended} threads have ended while {} are at {}", self.live, first.name()));
        }
        self.at_barrier = 0;
        if let Some(races) = &mut self.races {
            races.pass_group(self.flags);
        }
        for simd in &mut self.simds {
            simd.ready |= simd.at_barrier;
            simd.at_barrier = 0;
        }
    }

    pub(crate) fn barrier(&mut self, flags: u32, site: Site) {
        self.flags = flags;
        self.fibers[self.current].site = site;
        self.simds[self.current / LANES].at_barrier |= 1 << (self.current % LANES);
        self.at_barrier += 1;
        self.wait();
    }

    fn end(&mut self) {
        let own = self.current / LANES;
        self.patience.looks = 0;
        if let Some(problem) = self.caches.as_mut().and_then(|caches| caches.unfenced(self.current)) {
            self.error.get_or_insert(problem);
        }
        self.simds[own].ended |= 1 << (self.current % LANES);
        self.live -= 1;
        self.meet(own);
    }

    pub(crate) fn memory(&mut self, key: *const c_void, size: usize, align: usize, name: *const c_char) -> *mut u8 {
        if let Some((_, at)) = self.known.iter().find(|(known, _)| *known == key) {
            return *at;
        }
        let taken = (self.taken + size).next_multiple_of(align.max(16));
        if taken > MEMORY {
            self.fail(format!("{taken} bytes of threadgroup memory with `{}`: there are {MEMORY}", text(name)));
        }
        self.taken = taken;
        // the first one ends at the guard page
        let at = self.memory.wrapping_add(MEMORY - taken);
        // SAFETY: the bytes are this runner's, and no thread has been given them
        unsafe { at.write_bytes(0xff, size) };
        self.known.push((key, at));
        at
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        release_guarded(self.memory, MEMORY);
    }
}

/// What all threads of a threadgroup wait for that nothing can end.
fn stuck(fibers: &[Fiber], simds: &[Simd]) -> String {
    let mut out = "the threadgroup is stuck:".to_owned();
    let mut sites: Vec<(String, usize)> = Vec::new();
    for fiber in fibers {
        let ended = simds[fiber.thread.simdgroup as usize].ended >> fiber.thread.lane & 1 == 1;
        let name = if ended { "their end".to_owned() } else { fiber.site.name() };
        match sites.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => sites.push((name, 1)),
        }
    }
    for (index, (site, count)) in sites.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(out, "{comma} {count} threads at {site}");
    }
    out
}

/// What runs on a stack: one thread, and those that have not begun when it ends.
extern "C" fn thread_main() -> ! {
    let runner = RUNNING.get();
    loop {
        // SAFETY: only the fiber that runs uses the runner, and no reference to it is held over a kernel's code
        let (function, thread) = unsafe {
            let runner = &*runner;
            (runner.function, &raw const runner.fibers[runner.current].thread)
        };
        if let Some(function) = function {
            // SAFETY: the kernel is given what it declares
            unsafe { function(thread) };
        }
        // SAFETY: as above
        let runner = unsafe { &mut *runner };
        let stack = runner.fibers[runner.current].stack.take();
        runner.end();
        let next = runner.pick();
        match next {
            Some(next) if runner.fibers[next].stack.is_none() => {
                runner.fibers[next].stack = stack;
                runner.current = next;
            }
            next => {
                stack.into_iter().for_each(|stack| runner.stacks.give_back(stack));
                let to = next.map_or(runner.main, |next| runner.enter(next));
                // SAFETY: `to` is the main stack or a fiber that waits; nobody comes back to this one
                unsafe { fiber::switch(&raw mut runner.left, to) };
            }
        }
    }
}
