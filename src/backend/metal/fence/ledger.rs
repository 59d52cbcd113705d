//! The host's side of the fence without a device: which exchange is how far, and what is to be asked for again.

use std::collections::VecDeque;

/// Bits of a number that cross in a word; its highest says that nothing more will come.
const BITS: u32 = 31;
/// The highest bit of the host's word: nothing more will come.
pub(in crate::backend::metal) const CLOSED: u32 = 1 << BITS;

/// The number after `number`: numbers count exchanges from 1 on, but for those whose word would be 0.
fn next(number: u64) -> u64 {
    let next = number + 1;
    if word(next) == 0 { next + 1 } else { next }
}

/// `number` as it crosses.
pub(in crate::backend::metal) fn word(number: u64) -> u32 {
    (number & u64::from(CLOSED - 1)) as u32
}

/// Whether the exchange `word` is `number` or one after it. Words go round: what is less than half a round ahead is after.
pub(in crate::backend::metal) fn reached(word: u32, number: u64) -> bool {
    word.wrapping_sub(self::word(number)).wrapping_shl(32 - BITS).cast_signed() >= 0
}

/// What the device's words say to who waits for an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend::metal) enum Look {
    /// Its partial sums are there.
    Arrived,
    /// A wait before it has given up, and what comes after that is to be asked for again.
    Again,
    /// Nothing yet.
    Nothing,
}

/// A list of commands that the device has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::backend::metal) struct Flight<L> {
    /// The exchange whose sum it waits for first, if it waits.
    pub(in crate::backend::metal) gate: Option<u64>,
    /// The exchange that it signals last, if it does.
    pub(in crate::backend::metal) signal: Option<u64>,
    /// What is known of it beside.
    pub(in crate::backend::metal) load: L,
}

/// Exchanges and lists.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::backend::metal) struct Ledger<L> {
    posted: u64,
    answered: u64,
    // all that was posted before is over: lists that begin now wait for nothing
    settled: bool,
    flying: VecDeque<Flight<L>>,
}

impl<L> Default for Ledger<L> {
    fn default() -> Self {
        Self { posted: 0, answered: 0, settled: true, flying: VecDeque::new() }
    }
}

impl<L> Ledger<L> {
    #[cfg(test)]
    pub(super) fn starting_at(number: u64) -> Self {
        Self { posted: number, answered: number, ..Self::default() }
    }

    /// The number of a new exchange; none if two have no answer: the one that is served, and the one that the device is on its
    /// way to.
    pub(in crate::backend::metal) fn post(&mut self) -> Option<u64> {
        if self.posted > next(self.answered) {
            return None;
        }
        self.posted = next(self.posted);
        self.settled = false;
        Some(self.posted)
    }

    /// The exchange whose sum a list that begins now waits for first.
    pub(in crate::backend::metal) fn gate(&self) -> Option<u64> {
        (!self.settled).then_some(self.posted)
    }

    /// Whether every exchange has its answer.
    pub(in crate::backend::metal) fn is_quiet(&self) -> bool {
        self.posted == self.answered
    }

    /// Whether the exchange has its answer.
    pub(in crate::backend::metal) fn has_answered(&self, number: u64) -> bool {
        self.answered >= number
    }

    /// Whether `number` is the one to be served: the first without an answer.
    pub(in crate::backend::metal) fn is_next(&self, number: u64) -> bool {
        !self.is_quiet() && number == next(self.answered)
    }

    /// The device was given a list.
    pub(in crate::backend::metal) fn fly(&mut self, flight: Flight<L>) {
        self.flying.push_back(flight);
    }

    /// Lists that the device has, or whose end nobody has heard.
    pub(in crate::backend::metal) fn flying(&self) -> impl Iterator<Item = &Flight<L>> {
        self.flying.iter()
    }

    /// What the words of the device say of exchange `number`, which is waited for. A wait *for* that exchange may have given up
    /// too; its lists are asked for again when somebody waits for what they do.
    pub(in crate::backend::metal) fn look(&self, number: u64, signalled: u32, expired: u32) -> Look {
        match expired {
            _ if reached(signalled, number) => Look::Arrived,
            0 => Look::Nothing,
            _ => Look::Again,
        }
    }

    /// Exchange `number` was signalled, so every list up to the one that did has run: they are handed out.
    pub(in crate::backend::metal) fn passed(&mut self, number: u64) -> impl Iterator<Item = Flight<L>> {
        let through = self.flying.iter().position(|flight| flight.signal == Some(number)).map_or(0, |at| at + 1);
        self.flying.drain(..through)
    }

    /// Exchange `number` has its sum; whether it was its turn.
    pub(in crate::backend::metal) fn answer(&mut self, number: u64) -> bool {
        let turn = self.is_next(number);
        if turn {
            self.answered = number;
        }
        turn
    }

    /// The lists that have done nothing since the wait `expired` gave up, in their order; what is before them has run and is
    /// forgotten. None if that wait is nobody's, or its exchange has no answer. The device has nothing to do meanwhile.
    pub(in crate::backend::metal) fn again(&mut self, expired: u32) -> Option<Vec<Flight<L>>> {
        let gave_up = |flight: &Flight<L>| flight.gate.is_some_and(|gate| word(gate) == expired);
        let from = self.flying.iter().position(gave_up)?;
        if !self.flying[from].gate.is_some_and(|gate| self.has_answered(gate)) {
            return None;
        }
        Some(self.flying.drain(..).skip(from).collect())
    }

    /// Everything has run.
    pub(in crate::backend::metal) fn settle(&mut self) -> impl Iterator<Item = Flight<L>> {
        self.settled = self.is_quiet();
        self.flying.drain(..)
    }
}
