//! `--fault`: a rank that fails on purpose, so that the program that ships is the one whose ends are tested.
//!
//! A flag and no variable: nobody inherits it by accident, the process list shows it, and it is refused without
//! `--local`. It is in no help text. `1:compute#3:panic` lets rank 1 panic in its third pass, `0:hello:kill` rank 0 be
//! killed while the ranks compare notes. Steps are the operations as errors call them and the parts of the start-up.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

use super::ui;
use crate::backend::cpu::Pool;
use crate::comm::control::{Monitor, Operation};
use crate::comm::{Communicator, Place, Watch};
use crate::error::{Error, Result};

/// The step before a rank finds the others.
pub(super) const JOIN: &str = "join";
/// The part of the start-up where ranks compare what they were told.
pub(super) const HELLO: &str = "hello";
/// The part of the start-up where every collective runs on known values.
pub(super) const SELF_TEST: &str = "self-test";
/// The part of the start-up where weights are loaded.
pub(super) const LOADING: &str = "loading";
/// The step before a rank says that it has finished.
pub(super) const FINISH: &str = "finish";

/// How long a slow rank does nothing.
const SLOW: Duration = Duration::from_secs(3);

/// What to do, where, and who.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Fault {
    rank: usize,
    step: String,
    // the how manieth time the step begins, from 1
    nth: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, ValueEnum, Serialize, Deserialize)]
enum Kind {
    /// As by `kill -9`.
    Kill,
    /// As by `kill -STOP`.
    Stop,
    Abort,
    Panic,
    /// A panic in a thread of a pool.
    Worker,
    Error,
    /// An end in good order, too early.
    Exit,
    /// Nothing for three seconds, then on.
    Slow,
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |what: String| Error::usage(what).hint("RANK:STEP[#N]:KIND, for instance 1:compute#3:panic");
        let &[rank, step, kind] = &text.split(':').collect::<Vec<_>>()[..] else {
            return Err(wrong(format!("`{text}` has not three parts")));
        };
        let (step, nth) = step.split_once('#').unwrap_or((step, "1"));
        let operations = Operation::ALL.iter().map(ToString::to_string);
        let steps: Vec<_> = operations.chain([JOIN, HELLO, SELF_TEST, LOADING, FINISH].map(str::to_owned)).collect();
        if !steps.iter().any(|known| known == step) {
            return Err(wrong(format!("`{step}` is none of the steps {}", steps.join(", "))));
        }
        Ok(Self {
            rank: rank.parse().map_err(|_| wrong(format!("`{rank}` is no rank")))?,
            step: step.to_owned(),
            nth: nth.parse().ok().filter(|nth| *nth > 0).ok_or_else(|| wrong(format!("`{nth}` is no count")))?,
            kind: Kind::from_str(kind, false).map_err(wrong)?,
        })
    }
}

impl Fault {
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// Strikes if rank `rank` is at its step, for the first time.
    pub(super) fn at(fault: Option<&Self>, rank: usize, step: &str) -> Result<()> {
        match fault {
            Some(fault) if fault.rank == rank && fault.step == step && fault.nth == 1 => fault.strike(),
            _ => Ok(()),
        }
    }

    /// Lets the fault wait for its step in all that `world` does, if it is this rank's.
    pub(super) fn arm(fault: Option<&Self>, world: &Communicator, monitor: &Arc<Monitor>) {
        if let Some(fault) = fault.filter(|fault| fault.rank == world.rank()) {
            let watch = Armed { fault: fault.clone(), seen: AtomicU64::new(0), monitor: Arc::clone(monitor) };
            world.watch(Arc::new(watch));
        }
    }

    #[allow(clippy::exit, clippy::panic, reason = "it is asked for")]
    fn strike(&self) -> Result<()> {
        let Self { rank, step, nth, kind } = self;
        ui::say(format_args!("fault: rank {rank} at {step} #{nth}: {kind:?}"));
        match kind {
            Kind::Kill => signal(Signal::KILL),
            Kind::Stop => signal(Signal::STOP),
            Kind::Abort => std::process::abort(),
            Kind::Panic => panic!("a fault was asked for"),
            Kind::Worker => in_a_worker()?,
            Kind::Error => return Err(Error::msg("a fault was asked for")),
            Kind::Exit => std::process::exit(0),
            Kind::Slow => std::thread::sleep(SLOW),
        }
        Ok(())
    }
}

fn signal(signal: Signal) {
    // a process may always signal itself
    let _ = kill_process(getpid(), signal);
}

#[allow(clippy::panic, reason = "it is asked for")]
fn in_a_worker() -> Result<()> {
    let caller = std::thread::current().id();
    // so that each thread has one task
    let both = std::sync::Barrier::new(2);
    Pool::new(2)?.run(2, |_| {
        both.wait();
        if std::thread::current().id() != caller {
            panic!("a fault was asked for in a worker");
        }
    });
    Ok(())
}

/// What a rank with a fault is watched by.
struct Armed {
    fault: Fault,
    seen: AtomicU64,
    monitor: Arc<Monitor>,
}

impl Watch for Armed {
    fn begins(&self, operation: Operation, part: &'static str) -> Result<()> {
        self.monitor.begins(operation, part)?;
        let here = self.fault.step == part || self.fault.step == operation.to_string();
        if here && self.seen.fetch_add(1, Ordering::Relaxed) + 1 == self.fault.nth {
            return self.fault.strike();
        }
        Ok(())
    }
    fn waiting(&self, operation: Operation, number: u64, place: Place, peer: usize) {
        self.monitor.waiting(operation, number, place, peer);
    }
    fn working(&self, operation: Operation, part: &'static str) {
        self.monitor.working(operation, part);
    }
    fn ended(&self) -> Option<Error> {
        self.monitor.ended()
    }
    fn report(&self, peer: usize, error: Error) -> Error {
        self.monitor.report(peer, error)
    }
}
