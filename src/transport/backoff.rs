//! How to wait for a peer: spin while an answer is likely near, then yield the core, then sleep until woken.

use std::time::{Duration, Instant};

/// How long the core is offered to others between spinning and sleeping.
const YIELD: Duration = Duration::from_micros(50);

/// Turns of a spinning wait between two looks at the clock, which cost as much as a turn.
const STRIDE: u32 = 16;

/// The longest sleep. Wake-ups are reliable; this bounds what a lost one could cost.
pub(super) const LONGEST_NAP: Duration = Duration::from_millis(50);

/// How long ranks of one machine should spin before they yield: not at all where they outnumber its cores, because
/// the rank that is waited for may need this very core.
pub fn default_spin(local_ranks: usize) -> Duration {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if local_ranks > cores { Duration::ZERO } else { Duration::from_micros(20) }
}

/// How long an endpoint spins: at most what it was told, and less while spinning is seen to be in vain.
///
/// Two ranks that the system has put on one core, because another program keeps the others busy, make each other wait
/// for as long as they spin; then the first yield brings the answer. Where that happens the budget shrinks; a full one
/// is tried now and then, and kept if it succeeds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spin {
    most: Duration,
    budget: Duration,
    waits: u32,
}

impl Spin {
    /// Every how many waits a shrunk budget is forgotten for once.
    const PROBE: u32 = 64;
    /// An answer after so few yields was only waiting for the core.
    const FEW: u32 = 2;

    pub(super) fn new(most: Duration) -> Self {
        Self { most, budget: most, waits: 0 }
    }

    /// The budget of the next wait.
    fn next(&mut self) -> Duration {
        self.waits = self.waits.wrapping_add(1);
        if self.waits.is_multiple_of(Self::PROBE) { self.most } else { self.budget }
    }

    /// Learns from a wait that was answered after so many yields, without sleeping.
    fn learn(&mut self, yields: u32) {
        match yields {
            0 => self.budget = self.most,
            1..=Self::FEW => self.budget /= 2,
            _ => {}
        }
    }
}

/// What a waiting rank does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Look again.
    Again,
    /// Sleep, at most for this long and until something happens, then look again.
    Park(Duration),
    /// The deadline has passed.
    Over,
}

/// One wait.
pub(super) struct Backoff {
    spin: Spin,
    deadline: Instant,
    started: Option<Instant>,
    budget: Duration,
    /// Turns since the clock was last read.
    turns: u32,
    yields: u32,
    parked: bool,
}

impl Backoff {
    /// Starts a wait that ends at `deadline`.
    pub(super) fn new(spin: Spin, deadline: Instant) -> Self {
        Self { spin, deadline, started: None, budget: Duration::ZERO, turns: 0, yields: 0, parked: false }
    }

    /// Starts to wait anew, because something moved; returns what was learned about spinning.
    pub(super) fn reset(&mut self) -> Spin {
        if self.started.take().is_some() && !self.parked {
            self.spin.learn(self.yields);
        }
        self.spin
    }

    /// Spins or yields once, or says to sleep or to give up.
    pub(super) fn step(&mut self) -> Step {
        if self.started.is_some() && self.turns < STRIDE {
            self.turns += 1;
            std::hint::spin_loop();
            return Step::Again;
        }
        let now = Instant::now();
        let Some(left) = self.deadline.checked_duration_since(now).filter(|left| !left.is_zero()) else {
            return Step::Over;
        };
        if self.started.is_none() {
            (self.budget, self.yields, self.parked) = (self.spin.next(), 0, false);
        }
        let waited = now.saturating_duration_since(*self.started.get_or_insert(now));
        if waited < self.budget {
            self.turns = 0;
            std::hint::spin_loop();
            return Step::Again;
        }
        // from here on the clock is read at every turn
        self.turns = STRIDE;
        if waited < self.budget + YIELD {
            self.yields += 1;
            std::thread::yield_now();
            return Step::Again;
        }
        self.parked = true;
        Step::Park(left.min(LONGEST_NAP))
    }
}
