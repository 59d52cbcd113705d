//! The launcher's side of a run on many hosts: an agent on each, their reports, and the end of all of them.

mod remote;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::agent::wire::{Order, PIECE, Report};
use super::agent::{End, Machine, SILENT, Start};
use super::run::Status;
use super::ssh::{self, Ssh, Target};
use crate::error::{Error, Result};
use remote::{Heard, Remote};

/// How long agents may take to end their ranks and themselves.
const FAREWELL: Duration = Duration::from_secs(5);

/// Longer than an agent that ends its rank is silent.
const LEAVING: Duration = Duration::from_secs(3);

/// Where a copy of this program goes.
const USUAL: &str = "~/.local/bin/tbshard";

/// How a host is reached.
#[derive(Debug, Clone)]
pub enum Way {
    /// It is this machine.
    Here,
    /// Over SSH; the path of tbshard there, if it is not where it is looked for.
    Ssh(Target, Option<String>),
}

/// A host of a fleet.
#[derive(Debug, Clone)]
pub struct Host {
    /// What people call it.
    pub name: String,
    /// How it is reached.
    pub way: Way,
}

/// How hosts are reached, and what runs on them.
#[derive(Debug, Clone)]
pub struct Reach {
    /// How `ssh` is called.
    pub ssh: Ssh,
    /// This program.
    pub program: PathBuf,
    /// Its build, which every host must have too.
    pub build: String,
    /// How long connecting may take.
    pub patience: Duration,
}

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

/// What is told while hosts are connected.
#[derive(Debug)]
pub enum Step<'a> {
    /// The agent has answered.
    Answered(&'a Machine),
    /// The host cannot be used, and why.
    Refused(&'a Error),
}

/// Why a host cannot be used.
#[derive(Debug)]
pub enum Refusal {
    /// It has no tbshard; this is what `uname -sm` says there.
    Missing(String),
    /// It has another build of tbshard.
    Other(Machine),
    /// Anything else.
    Failed(Error),
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
    /// Starts an agent on every host, all at once, and waits until all have answered or cannot be used: those come with
    /// the reason.
    ///
    /// # Errors
    /// If this machine cannot start processes or threads.
    pub fn connect(
        hosts: Vec<Host>,
        reach: &Reach,
        told: &mut dyn FnMut(usize, Step<'_>),
    ) -> Result<(Self, Vec<(usize, Refusal)>)> {
        let (sender, heard) = channel();
        let count = hosts.len();
        let mut fleet = Self {
            hosts,
            ssh: reach.ssh.clone(),
            remotes: Vec::new(),
            machines: vec![None; count],
            heard,
            pending: VecDeque::new(),
            signs: vec![Instant::now(); count],
            gone: vec![false; count],
        };
        for (index, host) in fleet.hosts.iter().enumerate() {
            let remote = Remote::start(reach.command(host), index, &sender)?;
            fleet.remotes.push(Some(remote));
        }
        drop(sender);
        let mut refused = Vec::new();
        let until = Instant::now() + reach.patience;
        while fleet.machines.iter().zip(&fleet.gone).any(|(machine, gone)| machine.is_none() && !gone) {
            let left = until.saturating_duration_since(Instant::now());
            let (index, refusal) = match fleet.heard.recv_timeout(left) {
                Ok((index, Heard::Report(Report::Hello(machine)))) if machine.build == reach.build => {
                    told(index, Step::Answered(&machine));
                    (fleet.machines[index], fleet.signs[index]) = (Some(machine), Instant::now());
                    continue;
                }
                Ok((index, Heard::Report(Report::Hello(machine)))) => (index, Refusal::Other(machine)),
                Ok((_, Heard::Report(_))) => continue,
                Ok((index, Heard::Lost)) => (index, fleet.refusal(index)),
                Err(_) => {
                    for index in 0..count {
                        if fleet.machines[index].is_none() && !fleet.gone[index] {
                            let refusal = fleet.late(index, reach.patience);
                            fleet.refuse(index, refusal, &mut refused, told);
                        }
                    }
                    break;
                }
            };
            fleet.refuse(index, refusal, &mut refused, told);
        }
        Ok((fleet, refused))
    }

    fn refuse(
        &mut self,
        index: usize,
        refusal: Refusal,
        refused: &mut Vec<(usize, Refusal)>,
        told: &mut dyn FnMut(usize, Step<'_>),
    ) {
        self.gone[index] = true;
        // it was told already when it was lost before
        if refused.iter().all(|(other, _)| *other != index) {
            told(index, Step::Refused(&refusal.error(&self.hosts[index].name)));
            refused.push((index, refusal));
        }
    }

    /// Why a host's agent has not spoken.
    fn refusal(&mut self, index: usize) -> Refusal {
        let Some(remote) = &mut self.remotes[index] else {
            return Refusal::Failed(Error::cluster("it was lost before"));
        };
        let status = remote.end(Instant::now() + Duration::from_secs(1));
        if let Some(system) = remote.noise().lines().find_map(ssh::missing) {
            return Refusal::Missing(system.to_owned());
        }
        Refusal::Failed(explain(&self.ssh, &self.hosts[index], status, remote))
    }

    fn late(&mut self, index: usize, patience: Duration) -> Refusal {
        let name = &self.hosts[index].name;
        let error = Error::cluster(format!("{name} did not answer within {:.0} s", patience.as_secs_f64()));
        Refusal::Failed(
            error.hint(format!("see what `ssh {name} true` does; timeouts: connect: in the file allows more")),
        )
    }

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

impl Reach {
    /// Copies this program to a host that has none, or another one.
    ///
    /// # Errors
    /// If the host is of another kind, or the copy fails.
    pub fn deploy(&self, host: &Host, refusal: &Refusal, told: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let there = match refusal {
            Refusal::Missing(system) => system,
            Refusal::Other(machine) => &machine.system,
            Refusal::Failed(error) => return Err(Error::cluster(error)),
        };
        let here = Machine::here(&self.build, None).system;
        if *there != here {
            let error =
                Error::cluster(format!("{} is {there}, this machine {here}: this binary cannot run there", host.name));
            return Err(error.hint("build tbshard there, and say where it is with `binary:` in the cluster file"));
        }
        let Way::Ssh(target, binary) = &host.way else { return Ok(()) };
        let to = binary.as_deref().unwrap_or(USUAL);
        self.ssh.upload((&host.name, target), &self.program, to, told)
    }

    /// The command whose standard input and output are the host's agent's.
    fn command(&self, host: &Host) -> Command {
        use std::os::unix::process::CommandExt;
        match &host.way {
            Way::Here => {
                let mut command = Command::new(&self.program);
                command.arg("agent").process_group(0);
                command
            }
            Way::Ssh(target, binary) => self.ssh.command(target, &ssh::tbshard(binary.as_deref(), &["agent"])),
        }
    }
}

impl Refusal {
    /// The error that a person reads.
    pub fn error(&self, host: &str) -> Error {
        match self {
            Self::Missing(system) => Error::cluster(format!("{host} ({system}) has no tbshard"))
                .hint("--deploy copies this one there, or `binary:` in the cluster file says where it is"),
            Self::Other(machine) => {
                let Machine { version, build, .. } = machine;
                let error = format!("{host} has another tbshard: {version}, build {build}");
                Error::cluster(error).hint("--deploy copies this one there")
            }
            Self::Failed(error) => Error::cluster(error).hint(error.hint_text().unwrap_or("see its output")),
        }
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
