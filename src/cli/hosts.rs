//! `--hosts`: the machines of a run, and an agent on each.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::agent::BUILD;
use super::capture::this_program;
use super::others::{Crew, Keeper, Others};
use super::ranks::Started;
use super::{env, ui};
use crate::cluster::agent::Machine;
use crate::cluster::fleet::{Fleet, Host, Reach, Refusal, Step, Way};
use crate::cluster::ssh::Target;
use crate::cluster::ticket::{Fabric, Meeting, Ticket};
use crate::cluster::{Cluster, Host as Entry, Topology};
use crate::error::{Error, Result};
use crate::transport::rdma::{Cabling, Service};
use crate::transport::tcp;

/// How long an agent may take to speak once ssh has logged in: some hosts read many dotfiles first.
const START: Duration = Duration::from_secs(5);

/// Which machines.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Ranks")]
pub(super) struct HostsArgs {
    /// Run a rank on every host of this cluster file, or of these names: a,b,c
    #[arg(long, value_name = "FILE")]
    pub(super) hosts: Option<String>,
    /// Copy this tbshard to hosts that have none or another one
    #[arg(long, requires = "hosts")]
    pub(super) deploy: bool,
}

/// A cluster, with this machine first if it belongs to it.
pub(super) struct Machines {
    pub(super) cluster: Cluster,
    /// Whether this machine is the first of the hosts.
    pub(super) here: bool,
    /// What RDMA queue pairs are to promise, if the user says.
    pub(super) service: Option<Service>,
}

impl Machines {
    /// Reads what `--hosts` names.
    pub(super) fn open(hosts: &str) -> Result<Self> {
        let mut cluster = Cluster::of_hosts(hosts)?;
        let at = cluster.hosts.iter().position(is_here);
        if let Some(at) = at.filter(|at| *at > 0) {
            cluster.lead(at);
        }
        Ok(Self { cluster, here: at.is_some(), service: None })
    }

    /// Lets RDMA queue pairs promise this.
    #[must_use]
    pub(super) fn with_service(self, service: Option<Service>) -> Self {
        Self { service, ..self }
    }

    /// What carries activations.
    pub(super) fn fabric(&self) -> Fabric {
        if self.cluster.uses_rdma() { Fabric::Rdma } else { Fabric::Tcp }
    }

    /// Says what is done otherwise than the file may suggest.
    pub(super) fn check(&self, quiet: bool) -> Result<()> {
        if self.cluster.topology == Topology::Ring && self.fabric() == Fabric::Tcp && !quiet {
            ui::whisper("over TCP every host connects to every other, also where the cluster file says ring");
        }
        Ok(())
    }

    /// The host names, by rank.
    pub(super) fn names(&self) -> Vec<String> {
        self.cluster.hosts.iter().map(|host| host.name.clone()).collect()
    }

    /// Where the others reach the host `first`, which is not this machine unless the fleet has it; there it listens.
    pub(super) fn rendezvous(&self, fleet: &Fleet, first: usize) -> Result<IpAddr> {
        if let Some(address) = self.cluster.hosts[first].addresses.first() {
            return Ok(*address);
        }
        let in_fleet = fleet.len() == self.cluster.hosts.len();
        if let Some((server, _)) = fleet.machine(first).filter(|_| in_fleet).and_then(|machine| machine.link) {
            return Ok(server);
        }
        // as other hosts see who has connected to them
        let seen = (0..fleet.len()).filter_map(|index| fleet.machine(index)?.link).map(|(_, client)| client).next();
        let all_here = (0..fleet.len()).all(|index| fleet.machine(index).is_some_and(|machine| machine.link.is_none()));
        seen.or(all_here.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST))).ok_or_else(|| {
            let error = Error::usage(format!("where the others reach {} is not known", self.cluster.hosts[first].name));
            error.hint("give the host `addresses:` in the cluster file")
        })
    }

    /// The tickets of all ranks, made of the first; `machine` tells which ranks share processors.
    pub(super) fn tickets(
        &self,
        mut first: Ticket,
        silent: Option<Duration>,
        machine: impl Fn(usize) -> Option<String>,
    ) -> Vec<Ticket> {
        let Cluster { hosts, timeouts, .. } = &self.cluster;
        (first.silent, first.patience) = (silent.unwrap_or(timeouts.heartbeat), timeouts.start);
        first.progress = timeouts.progress;
        first.fabric = self.fabric();
        (first.hosts, first.layout) = (self.names(), Some(self.cluster.layout()));
        let ids: Vec<Option<String>> = (0..hosts.len()).map(machine).collect();
        let same = |rank: usize, other: usize| rank == other || (ids[rank].is_some() && ids[rank] == ids[other]);
        let sharing = |rank: usize, others: Range<usize>| others.filter(|other| same(rank, *other)).count();
        let ticket = |(rank, host): (usize, &Entry)| Ticket {
            rank,
            bind: host.addresses.first().copied(),
            share: (sharing(rank, 0..rank), sharing(rank, 0..hosts.len())),
            threads: host.threads,
            models: host.models.clone(),
            rdma: self.cluster.uses_rdma().then(|| Cabling {
                devices: host.rdma.clone(),
                service: self.service,
                neighbours: self.cluster.neighbours(),
                ..Cabling::default()
            }),
            ..first.clone()
        };
        hosts.iter().enumerate().map(ticket).collect()
    }
}

/// Whether a host of the file is this machine.
fn is_here(entry: &Entry) -> bool {
    // an address can be listened at where it is one's own
    let own = |address: &IpAddr| TcpListener::bind((*address, 0)).is_ok();
    if !entry.addresses.is_empty() {
        return entry.addresses.iter().any(own);
    }
    let hostname = Machine::here(BUILD, None).hostname;
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_lowercase();
    let named = match entry.ssh.parse::<IpAddr>() {
        Ok(address) => own(&address),
        Err(_) => entry.ssh == "localhost" || short(&entry.ssh) == short(&hostname),
    };
    named && entry.port.is_none() && entry.user.is_none()
}

/// The lines that tell how far each host is.
#[derive(Clone)]
pub(super) struct Lines {
    bars: Vec<ProgressBar>,
    // keeps the bars together
    _all: MultiProgress,
    alive: Arc<()>,
}

impl Lines {
    pub(super) fn new(names: &[String], quiet: bool) -> Self {
        use std::io::IsTerminal;
        let hidden = quiet || !std::io::stderr().is_terminal();
        let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let all = MultiProgress::with_draw_target(target);
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let style = ProgressStyle::with_template("{spinner} {prefix} {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner()).tick_chars("|/-\\ ");
        let bar = |name: &String| {
            let bar = all.add(ProgressBar::new_spinner().with_style(style.clone()));
            bar.set_prefix(format!("{name:width$}"));
            bar.set_message("connecting");
            if !hidden {
                bar.enable_steady_tick(Duration::from_millis(200));
            }
            bar
        };
        Self { bars: names.iter().map(bar).collect(), _all: all, alive: Arc::default() }
    }

    pub(super) fn say(&self, index: usize, text: String) {
        self.bars.get(index).into_iter().for_each(|bar| bar.set_message(text.clone()));
    }

    pub(super) fn clear(&self) {
        self.bars.iter().for_each(ProgressBar::finish_and_clear);
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // the last of the clones takes them away
        if self.bars.first().is_some_and(|bar| Arc::strong_count(&self.alive) == 1 && !bar.is_finished()) {
            self.clear();
        }
    }
}

/// Starts an agent on the hosts `from` and after, each with this build of tbshard; all of them, or none.
pub(super) fn muster(machines: &Machines, from: usize, deploy: bool, lines: &Lines) -> Result<Fleet> {
    let (fleet, refused) = enlist(machines, from, deploy, lines)?;
    let mut errors = refused.iter().map(|(index, refusal)| refusal.error(fleet.name(*index)));
    let Some(first) = errors.next() else { return Ok(fleet) };
    lines.clear();
    errors.for_each(|error| ui::say(format_args!("also: {error}")));
    Err(first)
}

/// As [`muster`], with the hosts that cannot be used and why.
pub(super) fn enlist(
    machines: &Machines,
    from: usize,
    deploy: bool,
    lines: &Lines,
) -> Result<(Fleet, Vec<(usize, Refusal)>)> {
    let program = std::env::current_exe().map_err(|error| Error::from_std(error).context("where this program is"))?;
    let patience = machines.cluster.timeouts.connect;
    let reach = Reach { ssh: env::ssh(patience)?, program, build: BUILD.to_owned(), patience: patience + START };
    let host = |(rank, entry): (usize, &Entry)| {
        let target = Target { destination: entry.ssh.clone(), user: entry.user.clone(), port: entry.port };
        let here = (rank == 0 && machines.here) || is_here(entry);
        let way = if here { Way::Here } else { Way::Ssh(target, entry.binary.clone()) };
        Host { name: entry.name.clone(), way }
    };
    let hosts: Vec<Host> = machines.cluster.hosts.iter().enumerate().skip(from).map(host).collect();
    let told = &mut |index: usize, step: Step<'_>| {
        lines.say(
            from + index,
            match step {
                Step::Answered(machine) => format!("tbshard {} on {}", machine.version, machine.system),
                Step::Refused(error) => error.to_string(),
            },
        );
    };
    let (fleet, refused) = Fleet::connect(hosts.clone(), &reach, told)?;
    let copy = |(_, refusal): &(usize, Refusal)| !matches!(refusal, Refusal::Failed(_));
    if !deploy || !refused.iter().any(copy) {
        return Ok((fleet, refused));
    }
    drop(fleet);
    for (index, refusal) in refused.iter().filter(|refused| copy(refused)) {
        let told =
            &mut |sent, of| lines.say(from + index, format!("copying tbshard {} %", sent * 100 / u64::max(of, 1)));
        reach.deploy(&hosts[*index], refusal, told)?;
    }
    Fleet::connect(hosts, &reach, told)
}

/// Starts a rank on every host but this one, and joins them as rank 0.
pub(super) fn start(
    machines: &Machines,
    deploy: bool,
    silent: Option<Duration>,
    threads: Option<usize>,
    quiet: bool,
) -> Result<Started> {
    machines.check(quiet)?;
    let (cluster, names) = (&machines.cluster, machines.names());
    let lines = Lines::new(&names, quiet);
    lines.say(0, "this machine".to_owned());
    let fleet = muster(machines, 1, deploy, &lines)?;
    let listener = tcp::listen(machines.rendezvous(&fleet, 0)?)?;
    let meeting = Meeting::At(listener.address());
    let first = Ticket::new(cluster.hosts.len(), Fabric::Tcp, meeting)?;
    let own = Machine::here(BUILD, None).id;
    let machine = |rank: usize| if rank == 0 { Some(&own) } else { fleet.machine(rank - 1).map(|machine| &machine.id) };
    let tickets = machines.tickets(first, silent, |rank| machine(rank).cloned());
    for ticket in &tickets[1..] {
        let own = Ticket { threads: threads.or(ticket.threads), ..ticket.clone() };
        fleet.start(ticket.rank - 1, this_program(&["rank"], &cluster.hosts[ticket.rank].env, Some(own)));
    }
    let keeper = Keeper::start(fleet, &names, lines)?;
    let ticket = tickets[0].clone();
    let connected = ticket.host_while(listener, &|| keeper.failure().map_or(Ok(()), Err))?;
    let joined = ticket.connect(connected, None)?;
    keeper.watch(&joined.monitor);
    let others = Others { monitor: joined.monitor, crew: Crew::Hosts(keeper), noticed: Arc::default() };
    Ok(Started { world: joined.world, others, share: ticket.share, threads: threads.or(ticket.threads) })
}

/// A moment from now.
pub(super) fn soon(patience: Duration) -> Instant {
    Instant::now() + patience
}
