//! `tbshard rank`: one of the ranks that another process started. Not for people.

use std::io::BufRead;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::caught::caught;
use super::fault::{FINISH, Fault, JOIN};
use super::ranks::{Job, Task, start, time_all_reduce};
use super::{LOST, Outcome, terminal, ui};
use crate::comm::control::Monitor;
use crate::error::{Error, Kind, Result};
use crate::transport::shm::Segment;

/// How long a run may take to end once it is decided; then the process ends itself.
const LAST_RESORT: Duration = Duration::from_secs(3);

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

/// Keeps this thread, and those that it starts, on these processors; with none the system chooses.
pub(super) fn pin(cpus: &[usize]) -> Result<()> {
    #[cfg(target_os = "linux")]
    if !cpus.is_empty() {
        let mut set = rustix::thread::CpuSet::new();
        cpus.iter().for_each(|cpu| set.set(*cpu));
        let pinned = rustix::thread::sched_setaffinity(None, &set);
        return pinned.map_err(|error| Error::from_std(error).context(format!("cannot run on processors {cpus:?}")));
    }
    let _ = cpus;
    Ok(())
}

/// Ends this process if its main thread does not notice in time that the run was ended.
#[allow(clippy::exit, reason = "the main thread does not answer")]
pub(super) fn watch_over_this_process(monitor: Arc<Monitor>) {
    std::thread::spawn(move || {
        let Some(cause) = monitor.join() else { return };
        monitor.settle();
        terminal::await_asking(LAST_RESORT);
        terminal::restore();
        super::report(&Error::from(cause));
        std::process::exit(i32::from(LOST));
    });
}

pub(super) fn run() -> Result<Outcome> {
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| Error::io("standard input".as_ref(), error))?;
    let job: Job = serde_json::from_str(&line).map_err(|_| {
        Error::usage("`tbshard rank` is started by other commands").hint("`tbshard generate --local 2` runs two ranks")
    })?;
    let watched = Arc::new(AtomicBool::new(false));
    end_with_the_launcher(Arc::clone(&watched));
    pin(&job.cpus)?;
    let rank = job.ticket.rank;
    let segment = job.ticket.segment().map(|fd| Segment::inherited(fd, job.ticket.world_size, job.ticket.run()));
    let fault = job.fault.as_ref();
    Fault::at(fault, rank, JOIN)?;
    let joined = job.ticket.join(segment.transpose()?)?;
    let monitor = joined.monitor;
    watch_over_this_process(Arc::clone(&monitor));
    watched.store(true, Ordering::SeqCst);
    let world = joined.world;
    Fault::arm(fault, &world, &monitor);
    let result = caught(|| {
        match &job.task {
            Task::Model { model, plan, threads } => {
                let mut loaded = start(model.open()?, model, plan, world.clone(), *threads)?;
                loaded.engine.follow()?;
            }
            Task::AllReduce { sizes, reps } => drop(time_all_reduce(&world, sizes, *reps)?),
        }
        Fault::at(fault, rank, FINISH)
    });
    let error = match result.and_then(|()| monitor.finish()) {
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

/// Ends the process when its launcher is gone: at once, or, if the run is `watched`, after the control connection could
/// have ended it better.
#[allow(clippy::exit, reason = "nobody is left to return to")]
fn end_with_the_launcher(watched: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        // returns at the end of the pipe, which only the launcher's end brings
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        if watched.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_secs(8));
        }
        ui::say("error: the process that started this rank is gone");
        std::process::exit(i32::from(LOST));
    });
}
