//! `tbshard rank`: one of the ranks that another process started. Not for people.

use std::ops::Range;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::bench::time_all_reduce;
use super::caught::caught;
use super::fault::{FINISH, Fault, JOIN};
use super::leave::leave;
use super::loading::Means;
use super::task::{Task, start};
use super::{LOST, Outcome, terminal, ui};
use crate::cluster::run::{Loading, Reporter, Run, Status};
use crate::cluster::ticket::Ticket;
use crate::comm::Communicator;
use crate::comm::control::Monitor;
use crate::error::{Error, Kind, Result};

/// How long a run may take to end once it is decided; then the process ends itself.
const LAST_RESORT: Duration = Duration::from_secs(3);

/// What a process that outlives its run is given beyond that: it may be in the middle of a long computation.
const STAYS: Duration = Duration::from_secs(60);

/// How long a rank may take to end once its starter is gone.
const ORPHANED: Duration = Duration::from_secs(3);

/// How long a rank whose starter is gone may take to find the others, if it is about to.
const MEETING: Duration = Duration::from_secs(1);

/// How this program starts another rank of itself.
pub(super) fn command() -> Result<Command> {
    use std::os::unix::process::CommandExt;
    let program = std::env::current_exe().map_err(|error| Error::from_std(error).context("where this program is"))?;
    let mut command = Command::new(program);
    // a Ctrl-C in the terminal is rank 0's business
    command.arg("rank").process_group(0);
    Ok(command)
}

/// The processors that this process may use.
pub(super) fn cpus() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    if let Ok(set) = rustix::thread::sched_getaffinity(None) {
        return (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
    }
    (0..std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)).collect()
}

/// Gives this process its share of the processors, the how manieth of how many, where there are enough of them; returns
/// how many threads it is to have.
pub(super) fn pin((index, of): (usize, usize), threads: Option<usize>) -> Result<usize> {
    let cpus = cpus();
    let own = &cpus[share(index, of, cpus.len())];
    let threads = threads.unwrap_or(own.len().max(1));
    // more threads than processors are left to the system
    if of > 1 && !own.is_empty() && threads <= own.len() {
        stay_on(own)?;
    }
    Ok(threads)
}

/// The processors out of `cpus` that belong to the how manieth rank of how many.
pub(super) fn share(index: usize, of: usize, cpus: usize) -> Range<usize> {
    index * cpus / of..(index + 1) * cpus / of
}

/// From now on this thread, and those that it starts, run on these processors only, where the system can be told so.
pub(super) fn stay_on(cpus: &[usize]) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        let mut set = rustix::thread::CpuSet::new();
        cpus.iter().for_each(|cpu| set.set(*cpu));
        let set = rustix::thread::sched_setaffinity(None, &set);
        set.map_err(|error| Error::from_std(error).context(format!("cannot run on processors {cpus:?}")))?;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = cpus;
    Ok(())
}

/// Whether this process outlives its run.
static STAYING: AtomicBool = AtomicBool::new(false);

/// From now on a run that ends does not end this process, unless nobody notices for long.
pub(super) fn stay() {
    STAYING.store(true, Ordering::SeqCst);
}

/// Ends this process if nobody has `noticed` in time that the run was ended.
pub(super) fn watch_over_this_process(monitor: Arc<Monitor>, noticed: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let Some(cause) = monitor.join() else { return };
        monitor.settle();
        terminal::await_asking(LAST_RESORT);
        let until = Instant::now() + STAYS;
        while STAYING.load(Ordering::SeqCst) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            if noticed.load(Ordering::SeqCst) {
                return;
            }
        }
        terminal::restore();
        super::report(&Error::from(cause));
        leave(LOST);
    });
}

/// Takes part as a rank that is not 0.
pub(super) fn run() -> Result<Outcome> {
    let run = Run::inherited()?.ok_or_else(|| {
        Error::usage("`tbshard rank` is started by other commands").hint("`tbshard generate --local 2` runs two ranks")
    })?;
    let (ticket, reporter) = (run.ticket().clone(), run.reporter()?);
    let (rank, fault) = (ticket.rank, ticket.fault.as_deref().map(str::parse).transpose()?);
    let means = Means::shared(pin(ticket.share, ticket.threads)?, ticket.share.1);
    Fault::at(fault.as_ref(), rank, JOIN)?;
    let watched = Arc::new(AtomicBool::new(false));
    let orphan = Arc::clone(&watched);
    let joined = run.join(move || end_with_the_starter(&orphan))?;
    let monitor = joined.monitor;
    watch_over_this_process(Arc::clone(&monitor), Arc::default());
    watched.store(true, Ordering::SeqCst);
    let world = joined.world;
    Fault::arm(fault.as_ref(), &world, &monitor);
    let result = caught(|| {
        follow(&ticket, &world, means, &reporter)?;
        Fault::at(fault.as_ref(), rank, FINISH)
    });
    let finished = result.and_then(|()| {
        drop(world);
        monitor.finish()
    });
    let error = match finished {
        Ok(()) => return Ok(Outcome::Done),
        Err(error) => monitor.failed(rank, error),
    };
    monitor.settle();
    // what was agreed on is rank 0's to say
    if monitor.cause().is_some_and(|cause| cause.agreed) {
        return Ok(Outcome::Lost);
    }
    Err(if error.kind() == Kind::Cluster { error } else { error.context(format!("rank {rank}")) })
}

/// Hears from rank 0 what is to be done, and does it.
fn follow(ticket: &Ticket, world: &Communicator, means: Means, reporter: &Reporter) -> Result<()> {
    match Task::hear(world)? {
        Task::Model { mut model, plan } => {
            model.place(&ticket.models);
            let told = |loading: Loading| reporter.say(Status::Loading(loading));
            let mut loaded = start(model.open()?, &model, &plan, world.clone(), means, &told)?;
            reporter.say(Status::Ready);
            loaded.engine.follow()
        }
        Task::AllReduce { sizes, reps } => time_all_reduce(world, &sizes, reps).map(drop),
    }
}

/// Ends the process, whose starter is gone: soon, or, if the run is `watched` by then, after the control connection could
/// have ended it better.
pub(super) fn end_with_the_starter(watched: &AtomicBool) {
    std::thread::sleep(MEETING);
    if watched.load(Ordering::SeqCst) {
        std::thread::sleep(ORPHANED);
    }
    ui::say("error: the process that started this rank is gone");
    leave(LOST);
}
