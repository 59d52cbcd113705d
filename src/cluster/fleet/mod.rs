//! The launcher's side of a run on many hosts: an agent on each, their reports, and the end of all of them.

mod connect;
mod remote;

pub use connect::{Host, Reach, Refusal, Step, Way};

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitStatus;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::agent::wire::{Order, PIECE, Report};
use super::agent::{End, Machine, SILENT, Start};
use super::run::Status;
use super::ssh::Ssh;
use crate::error::{Error, Result};
use remote::{Heard, Remote};

/// How long agents may take to end their ranks and themselves.
const FAREWELL: Duration = Duration::from_secs(5);

/// Longer than an agent that ends its rank is silent.
const LEAVING: Duration = Duration::from_secs(3);

/// What has happened on a host.
#[derive(Debug)]
pub enum Event {
    /// The rank says how far it is.
    Status(Status),
    /// The rank has printed something.
    Stdout(Vec<u8>),
    /// The rank has printed something on standard error.
    Stderr(Vec<u8>),
    /// It takes another piece of standard input.
    Hungry,
    /// The rank's process has ended.
    Exited(End),
    /// The host is lost, or cannot do what it was told.
    Lost(Error),
}

/// The agents of a run. Dropping it ends them, and what they have started.
pub struct Fleet {
    hosts: Vec<Host>,
    ssh: Ssh,
    remotes: Vec<Option<Remote>>,
    machines: Vec<Option<Machine>>,
    heard: Receiver<(usize, Heard)>,
    pending: VecDeque<(usize, Event)>,
    // when each was heard last
    signs: Vec<Instant>,
    // which have been lost, or have ended as they should
    gone: Vec<bool>,
}

impl Fleet {
    /// How many hosts there are.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether there is no host.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// What a host is called.
    pub fn name(&self, index: usize) -> &str {
        &self.hosts[index].name
    }

    /// What a host's agent said of it, once it has answered.
    pub fn machine(&self, index: usize) -> Option<&Machine> {
        self.machines[index].as_ref()
    }

    /// Has a host listen for the rank that is started on it next.
    ///
    /// # Errors
    /// If it cannot, or is lost.
    pub fn listen(&mut self, index: usize, address: IpAddr) -> Result<SocketAddr> {
        self.order(index, Order::Listen(address));
        let until = Instant::now() + SILENT;
        loop {
            let (from, report) = match self.heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(heard) => heard,
                Err(_) => return Err(Error::cluster(format!("{} does not answer", self.hosts[index].name))),
            };
            match report {
                Heard::Report(Report::Listening(address)) if from == index => return Ok(address),
                other => match self.event(from, other) {
                    Some(Event::Lost(error)) if from == index => return Err(error),
                    Some(event) => self.pending.push_back((from, event)),
                    None => {}
                },
            }
        }
    }

    /// Starts a process on a host.
    pub fn start(&self, index: usize, start: Start) {
        self.order(index, Order::Start(Box::new(start)));
    }

    /// Gives a host's process a piece of standard input, after [`Event::Hungry`] said that the last one was taken.
    pub fn input(&self, index: usize, piece: Option<Vec<u8>>) {
        debug_assert!(piece.as_ref().is_none_or(|piece| piece.len() <= PIECE));
        self.order(index, piece.map_or(Order::InputEnd, Order::Input));
    }

    /// Tells all other hosts that a rank's process has ended.
    pub fn exited(&self, index: usize, rank: usize, how: &str) {
        for other in (0..self.hosts.len()).filter(|other| *other != index && !self.gone[*other]) {
            self.order(other, Order::Exited(rank, how.to_owned()));
        }
    }

    /// What has happened next, if anything does until then.
    pub fn next(&mut self, until: Instant) -> Option<(usize, Event)> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            // what has come already counts: this machine may have been the one that was slow
            if let Ok((index, heard)) = self.heard.try_recv() {
                match self.event(index, heard) {
                    Some(event) => return Some((index, event)),
                    None => continue,
                }
            }
            let now = Instant::now();
            let silent = (0..self.hosts.len()).find(|index| self.is_silent(*index, now));
            if let Some(index) = silent {
                self.gone[index] = true;
                let error = format!("{} sent nothing for {:.1} s", self.hosts[index].name, SILENT.as_secs_f64());
                let hint = "check that it is up and awake and that the network to it works";
                return Some((index, Event::Lost(Error::cluster(error).hint(hint))));
            }
            let patience = until.saturating_duration_since(now).min(SILENT / 10);
            match self.heard.recv_timeout(patience) {
                Ok((index, heard)) => {
                    if let Some(event) = self.event(index, heard) {
                        return Some((index, event));
                    }
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
                Err(_) => return None,
            }
        }
    }

    fn is_silent(&self, index: usize, now: Instant) -> bool {
        let busy = self.remotes[index].as_ref().is_none_or(|remote| remote.seen.busy.load(Ordering::Relaxed));
        !self.gone[index] && !busy && now.saturating_duration_since(self.signs[index]) > SILENT
    }

    fn event(&mut self, index: usize, heard: Heard) -> Option<Event> {
        self.signs[index] = Instant::now();
        match heard {
            Heard::Report(report) => match report {
                Report::Hello(_) | Report::Alive | Report::Listening(_) => None,
                Report::Status(status) => Some(Event::Status(status)),
                Report::Stdout(bytes) => Some(Event::Stdout(bytes)),
                Report::Stderr(bytes) => Some(Event::Stderr(bytes)),
                Report::Taken => Some(Event::Hungry),
                Report::Exited(end) => Some(Event::Exited(end)),
                Report::Failed(why) => Some(Event::Lost(Error::cluster(format!("{}: {why}", self.hosts[index].name)))),
            },
            Heard::Lost if self.gone[index] => None,
            Heard::Lost => {
                self.gone[index] = true;
                let remote = self.remotes[index].as_mut()?;
                let status = remote.end(Instant::now() + Duration::from_secs(1));
                // ssh says why a connection ended, and nothing where only the program at its other end did
                if remote.errors().trim().is_empty() {
                    let name = &self.hosts[index].name;
                    let hint = format!("it was killed, or {name} ran out of memory or was shut down");
                    return Some(Event::Lost(Error::cluster("its agent is gone").hint(hint)));
                }
                Some(Event::Lost(explain(&self.ssh, &self.hosts[index], status, remote)))
            }
        }
    }

    fn order(&self, index: usize, order: Order) {
        self.remotes[index].iter().for_each(|remote| remote.order(order.clone()));
    }

    /// Whether a host is at its end and not there yet. One that has not been heard for long cannot be waited for.
    fn is_leaving(&mut self, index: usize) -> bool {
        let heard = self.signs[index].elapsed() < LEAVING;
        heard && self.remotes[index].as_mut().is_some_and(|remote| remote.ended().is_none())
    }

    /// Ends everything on all hosts, and waits until it is done.
    pub fn end(&mut self) {
        for remote in self.remotes.iter_mut().flatten() {
            remote.order(Order::Stop);
            remote.close();
        }
        // what is still said is read, so that nobody waits for us to listen
        let until = Instant::now() + FAREWELL;
        while Instant::now() < until && (0..self.remotes.len()).any(|index| self.is_leaving(index)) {
            if let Ok((index, _)) = self.heard.recv_timeout(Duration::from_millis(10)) {
                self.signs[index] = Instant::now();
            }
        }
        let until = Instant::now();
        self.remotes.iter_mut().flatten().for_each(|remote| {
            let _ = remote.end(until);
        });
        self.remotes.iter_mut().for_each(|remote| *remote = None);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.end();
    }
}

/// Why the connection with a host ended.
fn explain(ssh: &Ssh, host: &Host, status: Option<ExitStatus>, remote: &Remote) -> Error {
    match (&host.way, status) {
        (Way::Ssh(target, _), Some(status)) => ssh.explain((&host.name, target), status, &remote.errors()),
        (_, status) => {
            let how = status.map_or_else(|| "it was ended".to_owned(), |status| End::from(status).to_string());
            Error::cluster(format!("the agent on {} ended: {how} {}", host.name, remote.errors().trim()))
        }
    }
}
