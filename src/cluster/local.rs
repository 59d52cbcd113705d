//! Ranks as processes of this machine: rank 0 is the caller, the others are started, told how to join, and ended.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::agent::End;
use super::run::Line;
use super::ticket::{Fabric, Joined, Meeting, Ticket};
use crate::comm::control::Monitor;
use crate::error::{Context, Error, Result};
use crate::transport::{self, shm, tcp};

/// How often it is looked whether a rank's process still runs.
const LOOK: Duration = Duration::from_millis(20);
/// How long a rank's process may take to end after the run.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long one that is asked to end may take to give back what RDMA devices gave it.
const ASKED: Duration = Duration::from_millis(1500);
/// Bytes of a ring between two ranks.
const RING: usize = 1 << 20;

/// The processes of the other ranks. Dropping it ends them.
pub struct Processes {
    children: Arc<Mutex<Vec<Process>>>,
}

struct Process {
    rank: usize,
    child: Child,
    // kept open: its end tells the rank that the launcher is gone
    _line: Line,
    ended: Option<ExitStatus>,
}

/// Starts the ranks 1 to `world_size` − 1 with `command` and joins them as rank 0.
///
/// # Errors
/// If a process cannot be started, ends before it has joined, or does not join in time.
pub fn launch(
    world_size: usize,
    fabric: Fabric,
    command: &dyn Fn() -> Result<Command>,
    fill: &dyn Fn(&mut Ticket),
) -> Result<(Joined, Processes)> {
    let listener = tcp::listen(IpAddr::V4(Ipv4Addr::LOCALHOST))?;
    let mut ticket = Ticket::new(world_size, fabric, Meeting::At(listener.address()))?;
    let segment = (fabric == Fabric::Shm).then(|| shm::Segment::create(world_size, RING, ticket.run)).transpose()?;
    fill(&mut ticket);
    let processes = Processes { children: Arc::default() };
    for rank in 1..world_size {
        let mut command = command()?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let (line, theirs) = Line::new(&mut command)?;
        let segment = segment.as_ref().map(|segment| transport::inherit(segment.fd(), &mut command));
        let child = command.spawn().map_err(|error| Error::from_std(error).context("cannot start a rank"))?;
        drop(theirs);
        line.ticket(&Ticket { rank, segment, share: (rank, world_size), ..ticket.clone() });
        processes.lock().push(Process { rank, child, _line: line, ended: None });
    }
    let connected = ticket.host_while(listener, &|| match processes.newly_ended().first() {
        None => Ok(()),
        Some((rank, end)) => {
            let error = Error::cluster(format!("rank {rank} ended before it joined: {end}"));
            Err(error.hint("its own message is above"))
        }
    })?;
    let joined = ticket.connect(connected, segment.as_ref()).context("rank 0")?;
    processes.watch(Arc::clone(&joined.monitor));
    Ok((joined, processes))
}

impl Processes {
    fn lock(&self) -> MutexGuard<'_, Vec<Process>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn newly_ended(&self) -> Vec<(usize, End)> {
        newly_ended(&mut self.lock())
    }

    /// Tells `monitor` of processes that end, until all have.
    fn watch(&self, monitor: Arc<Monitor>) {
        let children = Arc::clone(&self.children);
        std::thread::spawn(move || {
            loop {
                let (ended, left) = {
                    let mut children = children.lock().unwrap_or_else(PoisonError::into_inner);
                    (newly_ended(&mut children), children.iter().any(|process| process.ended.is_none()))
                };
                // one that ended well said so itself
                for (rank, end) in ended.into_iter().filter(|(_, end)| *end != End::Code(0)) {
                    monitor.exited(rank, end.to_string());
                }
                if !left {
                    return;
                }
                std::thread::sleep(LOOK);
            }
        });
    }

    /// Waits a while for all processes to end, then ends them; `dead` is one that need not be waited for. Returns the
    /// ranks, apart from that one, that did not end by themselves.
    pub fn end(&self, dead: Option<usize>) -> Vec<usize> {
        self.kill(|rank| Some(rank) == dead);
        if self.have_ended(FAREWELL) { Vec::new() } else { self.end_all() }
    }

    /// Asks all processes to end, then does not ask. Returns the ranks that had not ended.
    fn end_all(&self) -> Vec<usize> {
        self.newly_ended();
        let mut running = Vec::new();
        for process in self.lock().iter().filter(|process| process.ended.is_none()) {
            // it may have ended just now
            let _ = kill_process(Pid::from_child(&process.child), Signal::TERM);
            running.push(process.rank);
        }
        if !self.have_ended(ASKED) {
            self.kill(|_| true);
        }
        running
    }

    /// Whether all processes have ended within a time.
    fn have_ended(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            self.newly_ended();
            if self.lock().iter().all(|process| process.ended.is_some()) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill(&self, which: impl Fn(usize) -> bool) {
        for process in self.lock().iter_mut().filter(|process| process.ended.is_none() && which(process.rank)) {
            // it may have ended just now
            let _ = process.child.kill();
            process.ended = process.child.wait().ok();
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.end_all();
    }
}

fn newly_ended(children: &mut [Process]) -> Vec<(usize, End)> {
    let mut ended = Vec::new();
    for process in children.iter_mut().filter(|process| process.ended.is_none()) {
        if let Ok(Some(status)) = process.child.try_wait() {
            process.ended = Some(status);
            ended.push((process.rank, End::from(status)));
        }
    }
    ended
}
