//! Every interleaving of the host, a device's kernels and a peer: waits that give up at any look, peers that die and hosts
//! that give up at any step. The host's decisions are the [`Ledger`]'s, as they are in `crossing.rs`; the device's steps are
//! those of `kernels/fence.metal`, each access of a shared word a step of its own.

mod state;

use std::collections::HashSet;

use self::state::{Host, Peer, State};
use super::ledger::{CLOSED, Ledger, reached, word};

/// What is done wrong, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// The host reads what was signalled before it reads what gave up.
    SignalledFirst,
    /// The host says that a sum is there before it is.
    AnswersEarly,
    /// The host does not take back that a wait gave up.
    NotRenewed,
    /// A wait looks for ever.
    WithoutEnd,
    /// What comes after a wait that gave up runs.
    RunsRegardless,
    /// A wait that finds that one before it gave up waits all the same.
    WaitsRegardless,
}

/// How much is explored.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Exchanges of a pass, and passes.
    exchanges: usize,
    passes: usize,
    /// Looks of a wait at most.
    looks: u8,
    /// Whether lists are cut in two.
    cuts: bool,
    /// The exchange before the first.
    before: u64,
    mistake: Mistake,
}

const SMALL: Bounds = Bounds { exchanges: 2, passes: 2, looks: 2, cuts: false, before: 0, mistake: Mistake::None };

/// What was found of all interleavings.
#[derive(Debug, Default)]
struct Found {
    states: usize,
    done: usize,
    failed: usize,
    resubmissions: usize,
}

fn explore(bounds: Bounds) -> Found {
    let mut known = HashSet::new();
    let mut open = vec![State::new(&bounds)];
    let mut found = Found::default();
    while let Some(state) = open.pop() {
        if !known.insert(state.clone()) {
            continue;
        }
        state.check(&bounds);
        found.states += 1;
        found.resubmissions = found.resubmissions.max(state.resubmissions);
        match state.host {
            Host::Done => found.done += 1,
            Host::Failed => found.failed += 1,
            _ => {
                let moves: Vec<State> =
                    state.device(&bounds).into_iter().chain(state.host(&bounds)).chain(state.peer()).collect();
                // a peer that may still die is no way out for those who wait for one that does not
                let stuck = moves.iter().all(|next| next.peer == Peer::Dead) && state.peer == Peer::Lives;
                assert!(!moves.is_empty() && !stuck, "nothing can happen any more: {state:?}");
                open.extend(moves);
                open.extend(state.gives_up());
            }
        }
    }
    found
}

#[test]
fn every_interleaving_ends_with_every_list_run_once_or_an_error_and_an_empty_queue() {
    for bounds in [
        SMALL,
        Bounds { exchanges: 4, passes: 3, looks: 3, ..SMALL },
        Bounds { exchanges: 3, passes: 2, looks: 3, cuts: true, ..SMALL },
        // numbers that go round
        Bounds { exchanges: 5, passes: 1, before: u64::from(CLOSED) - 2, ..SMALL },
    ] {
        let found = explore(bounds);
        let whole = found.states > 1000 && found.done > 0 && found.failed > 0 && found.resubmissions > 1;
        assert!(whole, "{bounds:?}: {found:?}");
    }
}

#[test]
fn mistakes_are_found() {
    for mistake in [
        Mistake::SignalledFirst,
        Mistake::AnswersEarly,
        Mistake::NotRenewed,
        Mistake::WithoutEnd,
        Mistake::RunsRegardless,
        Mistake::WaitsRegardless,
    ] {
        let bounds = Bounds { exchanges: 3, mistake, ..SMALL };
        assert!(std::panic::catch_unwind(|| explore(bounds)).is_err(), "{mistake:?} is not found");
    }
}

#[test]
fn words_go_round() {
    for before in [0, 5, u64::from(CLOSED) - 3, 3 * u64::from(CLOSED) - 2] {
        let mut ledger = Ledger::<()>::starting_at(before);
        let mut last = word(before);
        for _ in 0..6 {
            let number = ledger.post().unwrap();
            assert!(word(number) != 0 && word(number) < CLOSED);
            assert!(!reached(last, number) && reached(word(number), number));
            last = word(number);
            assert!(reached(last, before.max(1)) && ledger.is_next(number) && ledger.answer(number));
        }
    }
}

#[test]
fn a_third_exchange_and_a_wrong_turn_are_refused() {
    let mut ledger = Ledger::<()>::starting_at(u64::from(CLOSED) - 2);
    let (first, second) = (ledger.post().unwrap(), ledger.post().unwrap());
    assert_eq!((ledger.post(), ledger.answer(second), ledger.gate()), (None, false, Some(second)));
    assert!(ledger.answer(first) && ledger.answer(second) && !ledger.answer(second) && ledger.is_quiet());
}
