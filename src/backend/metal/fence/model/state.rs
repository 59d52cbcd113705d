//! The host, the device and the peer as one state, and what may happen next in it.

use std::collections::VecDeque;

use super::super::ledger::{CLOSED, Flight, Ledger, Look, reached, word};
use super::{Bounds, Mistake};

/// What a list does where its wait does not keep it from it: it changes state in place once, and shows what came of it.
type List = Flight<()>;

/// Where the device is in the first list of its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kernel {
    Begin,
    Looks(u8),
    GivesUp,
    Runs,
    Skips,
    Signals,
}

/// What the host does next. Numbers are of exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Host {
    Posts,
    /// Commits what came after a post and is too long for one list.
    Cuts,
    ReadsExpired,
    ReadsSignalled(u32),
    /// Asks again when the device has nothing to do, then does what comes after.
    Rests(Then),
    Sums,
    Answers,
    Ends,
    Closes,
    /// Waits for the device after it has closed.
    Leaves,
    Done,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Then {
    Look,
    Settle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    Lives,
    Dead,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    // words
    signalled: u32,
    answered: u32,
    expired: u32,
    // the device: its queue, where it is, and what it has changed in place
    queue: VecDeque<List>,
    kernel: Kernel,
    lists_run: usize,
    // by exchange: partial sums that landed (as how many lists had run), sums that the host wrote
    landed: Vec<usize>,
    sums: Vec<bool>,
    // the host
    pub(super) host: Host,
    ledger: Ledger<()>,
    numbers: Vec<u64>,
    // lists that had been asked for when an exchange was, so that its partial sums are theirs
    asked: Vec<usize>,
    served: usize,
    committed: usize,
    pub(super) resubmissions: usize,
    // the peer, and its partial sums: sent, and delivered by the network
    pub(super) peer: Peer,
    sent: usize,
    delivered: usize,
}

impl State {
    pub(super) fn new(bounds: &Bounds) -> Self {
        Self {
            signalled: word(bounds.before),
            answered: word(bounds.before),
            expired: 0,
            queue: VecDeque::new(),
            kernel: Kernel::Begin,
            lists_run: 0,
            landed: Vec::new(),
            sums: Vec::new(),
            host: Host::Posts,
            ledger: Ledger::starting_at(bounds.before),
            numbers: Vec::new(),
            asked: Vec::new(),
            served: 0,
            committed: 0,
            resubmissions: 0,
            peer: Peer::Lives,
            sent: 0,
            delivered: 0,
        }
    }

    /// The exchange that is served.
    fn number(&self) -> u64 {
        self.numbers[self.served]
    }

    fn index(&self, number: u64) -> usize {
        self.numbers.iter().position(|known| *known == number).expect("an exchange that was posted")
    }

    fn commit(&mut self, gate: Option<u64>, signal: Option<u64>) {
        let list = Flight { gate, signal, load: () };
        self.queue.push_back(list.clone());
        self.ledger.fly(list);
        self.committed += 1;
    }

    /// What may happen next on the device.
    pub(super) fn device(&self, bounds: &Bounds) -> Vec<Self> {
        let Some(list) = self.queue.front() else { return Vec::new() };
        let mut next = self.clone();
        match self.kernel {
            Kernel::Begin if list.gate.is_none() => next.kernel = Kernel::Runs,
            Kernel::Begin if self.expired != 0 && bounds.mistake != Mistake::WaitsRegardless => {
                next.kernel = Kernel::Skips;
            }
            Kernel::Begin => next.kernel = Kernel::Looks(0),
            Kernel::Looks(looks) => {
                if looks == bounds.looks && bounds.mistake != Mistake::WithoutEnd {
                    next.kernel = Kernel::GivesUp;
                    return vec![next];
                }
                let here = self.answered & CLOSED == 0 && list.gate.is_some_and(|gate| reached(self.answered, gate));
                next.kernel = match (self.answered & CLOSED != 0, here) {
                    (true, _) => Kernel::GivesUp,
                    (false, true) => Kernel::Runs,
                    (false, false) => Kernel::Looks(bounds.looks.min(looks + 1)),
                };
            }
            Kernel::GivesUp => {
                next.expired = list.gate.map_or(0, word);
                next.kernel = Kernel::Skips;
            }
            Kernel::Skips if bounds.mistake == Mistake::RunsRegardless => next.kernel = Kernel::Runs,
            Kernel::Skips => {
                next.queue.pop_front();
                next.kernel = Kernel::Begin;
            }
            Kernel::Runs => {
                if let Some(gate) = list.gate {
                    assert!(self.sums[self.index(gate)], "a sum is taken that is not there");
                }
                next.lists_run += 1;
                if let Some(signal) = list.signal {
                    let at = self.index(signal);
                    next.landed[at] = next.lists_run;
                }
                next.kernel = Kernel::Signals;
            }
            Kernel::Signals => {
                next.signalled = list.signal.map_or(self.signalled, word);
                next.queue.pop_front();
                next.kernel = Kernel::Begin;
            }
        }
        vec![next]
    }

    /// What may happen next elsewhere: the peer sends or dies, the network delivers or loses.
    pub(super) fn peer(&self) -> Vec<Self> {
        let mut all = Vec::new();
        if self.peer == Peer::Lives {
            all.push(Self { peer: Peer::Dead, ..self.clone() });
            // a peer is as far ahead as it has sums
            if self.sent <= self.served && self.sent < self.numbers.len() {
                all.push(Self { sent: self.sent + 1, ..self.clone() });
            }
        }
        if self.delivered < self.sent {
            all.push(Self { delivered: self.delivered + 1, ..self.clone() });
            if self.peer == Peer::Dead {
                all.push(Self { sent: self.delivered, ..self.clone() });
            }
        }
        all
    }

    /// What the host may do next, but for giving up.
    pub(super) fn host(&self, bounds: &Bounds) -> Option<Self> {
        let mut next = self.clone();
        let posted = self.numbers.len();
        let pass_ends = posted.is_multiple_of(bounds.exchanges);
        match self.host {
            Host::Posts => {
                let gate = next.ledger.gate();
                let number = next.ledger.post().expect("at most two have no answer");
                next.numbers.push(number);
                next.commit(gate, Some(number));
                next.asked.push(next.committed);
                next.landed.push(0);
                next.sums.push(false);
                next.host = if bounds.cuts { Host::Cuts } else { Self::after_post(&next, bounds) };
            }
            Host::Cuts => {
                next.commit(self.ledger.gate(), None);
                next.host = Self::after_post(self, bounds);
            }
            Host::ReadsExpired if bounds.mistake == Mistake::SignalledFirst => {
                next.host = Host::ReadsSignalled(self.signalled);
            }
            Host::ReadsExpired => next.host = Host::ReadsSignalled(self.expired),
            Host::ReadsSignalled(before) => {
                assert!(self.ledger.is_next(self.number()));
                let (signalled, expired) = match bounds.mistake {
                    Mistake::SignalledFirst => (before, self.expired),
                    _ => (self.signalled, before),
                };
                next.host = match self.ledger.look(self.number(), signalled, expired) {
                    Look::Arrived => {
                        next.ledger.passed(self.number()).for_each(drop);
                        let landed = self.landed[self.served];
                        assert_eq!(landed, self.asked[self.served], "a partial sum is read that is not there");
                        Host::Sums
                    }
                    Look::Nothing => Host::ReadsExpired,
                    Look::Again => Host::Rests(Then::Look),
                };
            }
            Host::Rests(then) => {
                if !self.queue.is_empty() {
                    return None;
                }
                if self.expired != 0 {
                    let lists = next.ledger.again(self.expired).expect("a wait that gave up has its answer by now");
                    if bounds.mistake != Mistake::NotRenewed {
                        next.expired = 0;
                    }
                    next.resubmissions += 1;
                    for list in lists {
                        next.queue.push_back(list.clone());
                        next.ledger.fly(list);
                    }
                    if then == Then::Look {
                        next.host = Host::ReadsExpired;
                    }
                    return Some(next);
                }
                next.host = match then {
                    Then::Look => Host::ReadsExpired,
                    Then::Settle => {
                        next.ledger.settle().for_each(drop);
                        assert_eq!(self.lists_run, self.committed, "a list did not run once");
                        if posted == bounds.exchanges * bounds.passes { Host::Done } else { Host::Posts }
                    }
                };
            }
            Host::Sums if self.delivered > self.served => {
                match bounds.mistake {
                    Mistake::AnswersEarly => next.answered = word(self.number()),
                    _ => next.sums[self.served] = true,
                }
                next.host = Host::Answers;
            }
            Host::Sums if self.peer == Peer::Dead && self.sent <= self.served => next.host = Host::Closes,
            Host::Sums => return None,
            Host::Answers => {
                assert!(next.ledger.answer(self.number()));
                next.answered = word(self.number());
                next.sums[self.served] = true;
                next.served += 1;
                next.host = match (pass_ends, next.served == posted) {
                    (true, true) => Host::Ends,
                    (true, false) => Host::ReadsExpired,
                    (false, _) => Host::Posts,
                };
            }
            Host::Ends => {
                next.commit(self.ledger.gate(), None);
                next.host = Host::Rests(Then::Settle);
            }
            Host::Closes => {
                next.answered = CLOSED;
                next.host = Host::Leaves;
            }
            Host::Leaves if self.queue.is_empty() => next.host = Host::Failed,
            Host::Leaves | Host::Done | Host::Failed => return None,
        }
        Some(next)
    }

    fn after_post(state: &Self, bounds: &Bounds) -> Host {
        let posted = state.numbers.len();
        match (posted - state.served, posted.is_multiple_of(bounds.exchanges)) {
            (2, _) | (_, true) => Host::ReadsExpired,
            _ => Host::Posts,
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.host, Host::Done | Host::Failed)
    }

    /// The host's own will: it gives up, unless it already has or waits for the device.
    pub(super) fn gives_up(&self) -> Option<Self> {
        let waits = matches!(self.host, Host::Closes | Host::Leaves | Host::Rests(_)) || self.has_ended();
        let promised = !self.ledger.is_quiet();
        (!waits && promised).then(|| Self { host: Host::Closes, ..self.clone() })
    }

    pub(super) fn check(&self, bounds: &Bounds) {
        // alone, the device comes to an end: no wait is without bound
        let mut alone = self.clone();
        for _ in 0..self.queue.len() * (usize::from(bounds.looks) + 6) {
            alone = alone.device(bounds).pop().unwrap_or(alone);
        }
        assert!(alone.queue.is_empty(), "the device waits on: {self:?}");
        assert!(self.resubmissions <= self.numbers.len(), "an exchange is asked for again and again: {self:?}");
        if self.has_ended() {
            assert!(self.queue.is_empty(), "something is left in the queue");
        }
        if self.host == Host::Done {
            assert!(self.ledger.is_quiet() && self.delivered == self.served, "an end without all sums");
        }
    }
}
