//! How the hosts of a fleet are reached, and why one cannot be used.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::remote::{Heard, Remote};
use super::{Fleet, explain};
use crate::cluster::agent::Machine;
use crate::cluster::agent::wire::Report;
use crate::cluster::ssh::{self, Ssh, Target};
use crate::error::{Error, Result};

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
                Ok((index, Heard::Report(_))) => {
                    // the others may take longer than one may be silent
                    fleet.signs[index] = Instant::now();
                    continue;
                }
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
