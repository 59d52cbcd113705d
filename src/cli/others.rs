//! The other ranks of a run, as rank 0 sees them: processes of this machine or of others, and their one end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::console::{Console, Stream};
use super::hosts::{Lines, soon};
use super::ui;
use crate::cluster::agent::End;
use crate::cluster::fleet::{Event, Fleet};
use crate::cluster::local::Processes;
use crate::cluster::run::{Loading, Reporter, Status};
use crate::comm::control::{CauseKind, Monitor};
use crate::error::{Error, Kind, Result};

/// The other ranks of a run.
pub(super) struct Others {
    pub(super) monitor: Arc<Monitor>,
    pub(super) crew: Crew,
    /// Whether this process knows how the run ended.
    pub(super) noticed: Arc<AtomicBool>,
}

/// What the other ranks run in.
pub(super) enum Crew {
    /// Processes of this machine.
    Local(Processes),
    /// Processes of other machines.
    Hosts(Keeper),
    /// A launcher looks after all ranks.
    Launched(Reporter),
}

impl Others {
    /// Tells the other ranks that this one failed; returns the error to show.
    pub(super) fn failed(&self, error: Error) -> Error {
        let error = self.monitor.failed(0, error);
        self.monitor.settle();
        let cause = self.monitor.cause();
        // one that is silent will not end by itself
        let silent = cause.as_ref().filter(|cause| cause.kind == CauseKind::Silent).map(|cause| cause.rank);
        // of a panic the rank is worth knowing
        let mut error = if error.kind() == Kind::Panicked { cause.map_or(error, Error::from) } else { error };
        if let Crew::Hosts(keeper) = &self.crew {
            // to end what a dead host had takes longer than to know that it is dead
            keeper.lines.clear();
            super::report(&error);
            error = error.shown();
        }
        self.crew.end(silent);
        if let Crew::Launched(launcher) = &self.crew {
            launcher.say(Status::Explained);
        }
        self.noticed.store(true, Ordering::SeqCst);
        error
    }

    /// Ends the run in good order.
    pub(super) fn finish(&self) -> Result<()> {
        self.monitor.finish()?;
        self.crew.end(None);
        Ok(())
    }
}

impl Crew {
    /// Shows how much of rank 0's weights is there, if more than its own bar is to show it.
    pub(super) fn loading(&self, loading: Loading) {
        match self {
            Self::Local(_) => {}
            Self::Hosts(keeper) => keeper.lines.say(0, loading.to_string()),
            Self::Launched(launcher) => launcher.say(Status::Loading(loading)),
        }
    }

    /// Shows that rank 0, and with it every rank, is ready.
    pub(super) fn ready(&self) {
        match self {
            Self::Local(_) => {}
            Self::Hosts(keeper) => keeper.lines.clear(),
            Self::Launched(launcher) => launcher.say(Status::Ready),
        }
    }

    /// Ends the other ranks; of `dead` it is known that it will not end by itself.
    fn end(&self, dead: Option<usize>) {
        match self {
            Self::Local(processes) => {
                for rank in processes.end(dead) {
                    ui::whisper(format_args!("rank {rank} did not end by itself and was killed"));
                }
            }
            Self::Hosts(keeper) => keeper.end(),
            Self::Launched(_) => {}
        }
    }
}

/// What a keeper and the threads that ask it share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    monitor: Option<Arc<Monitor>>,
    // the first that went wrong: which rank, and how
    failed: Option<(usize, String, Error)>,
}

/// Listens to the agents of a fleet, whose first host has rank 1, and ends them with the run.
pub(super) struct Keeper {
    lines: Lines,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    /// Takes over `fleet`; `lines` show how far its hosts are until all are ready.
    pub(super) fn start(fleet: Fleet, names: &[String], lines: Lines) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let hosts: Vec<&str> = names.iter().map(String::as_str).collect();
        let console = Console::prefixed(&hosts);
        let for_lines = lines.clone();
        let run = move || keep(fleet, console, &for_lines, &for_thread);
        let thread = std::thread::Builder::new().name("tbshard-hosts".to_owned()).spawn(run);
        let thread = thread.map_err(|error| Error::from_std(error).context("cannot start a thread"))?;
        Ok(Self { lines, shared, thread: Mutex::new(Some(thread)) })
    }

    /// From now on `monitor` is told of ranks that end.
    pub(super) fn watch(&self, monitor: &Arc<Monitor>) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((rank, how, _)) = &state.failed {
            monitor.exited(*rank, how.clone());
        }
        state.monitor = Some(Arc::clone(monitor));
    }

    /// What went wrong before there was a monitor.
    pub(super) fn failure(&self) -> Option<Error> {
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.failed.as_ref().map(|(_, _, error)| {
            let hint = error.hint_text().unwrap_or("see that host");
            Error::cluster(error).hint(hint)
        })
    }

    fn end(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // one that panicked has ended too
        let _ = thread.map(JoinHandle::join);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end();
    }
}

fn keep(mut fleet: Fleet, mut console: Console, lines: &Lines, shared: &Shared) {
    let mut left = fleet.len();
    while left > 0 && !shared.stop.load(Ordering::SeqCst) {
        let Some((index, event)) = fleet.next(soon(Duration::from_millis(50))) else { continue };
        let rank = index + 1;
        let (how, error) = match event {
            Event::Stdout(bytes) | Event::Stderr(bytes) => {
                console.print(rank, Stream::Err, &bytes);
                continue;
            }
            Event::Status(Status::Loading(loading)) => {
                lines.say(rank, loading.to_string());
                continue;
            }
            Event::Status(Status::Ready) => {
                lines.say(rank, "ready".to_owned());
                continue;
            }
            Event::Status(Status::Explained) | Event::Hungry => continue,
            Event::Exited(End::Code(0)) => {
                left -= 1;
                continue;
            }
            Event::Exited(end) => {
                let error = Error::cluster(format!("rank {rank} ({}) ended: {end}", fleet.name(index)));
                (end.to_string(), error.hint("what it printed is above"))
            }
            Event::Lost(error) => {
                let hint = error.hint_text().unwrap_or("see that host").to_owned();
                (error.to_string(), Error::cluster(format!("rank {rank}: {error}")).hint(hint))
            }
        };
        left -= 1;
        lines.clear();
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(monitor) = &state.monitor {
            monitor.exited(rank, how.clone());
        }
        state.failed.get_or_insert((rank, how, error));
    }
    lines.clear();
    fleet.end();
    console.finish();
}
