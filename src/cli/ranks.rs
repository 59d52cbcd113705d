//! Several ranks: the flags that say how many, and how a command's model is spread over them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::caught::caught;
use super::fault::{Fault, JOIN};
use super::hosts::{self, HostsArgs, Machines};
use super::load::{Loaded, ModelArgs, Opened, threads};
use super::loading::Means;
use super::others::{Crew, Others};
use super::rdma::RdmaArgs;
use super::table::aligned;
use super::task::{Task, start};
use super::{Outcome, rank, room, ui};
use crate::cluster::local;
use crate::cluster::run::Run;
use crate::cluster::ticket::{Fabric, Ticket};
use crate::comm::{Communicator, Ranks};
use crate::engine::Report;
use crate::error::{Error, Result};
use crate::partition::{Layout, MAX_RANKS, Plan, Strategy};

/// How many times the silence that makes a rank dead ranks may take to find each other: half a minute, if nothing is asked.
const MEETING: u32 = 6;

/// How a model is spread.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Ranks")]
pub(super) struct RankArgs {
    /// Run N ranks as processes on this machine
    #[arg(long, value_name = "N", conflicts_with = "hosts")]
    pub(super) local: Option<usize>,
    /// Threads of every rank [default: all cores, shared out]
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<usize>,
    #[command(flatten)]
    pub(super) hosts: HostsArgs,
    /// Ranks that share every layer (tensor parallel)
    #[arg(long, value_name = "T")]
    pub(super) tp: Option<usize>,
    /// Stages of layers (pipeline parallel)
    #[arg(long, value_name = "P")]
    pub(super) pp: Option<usize>,
    /// What decides where --tp and --pp do not
    #[arg(long, value_enum)]
    pub(super) strategy: Option<StrategyArg>,
    /// Layers of every stage: 32,20,12
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    pub(super) split: Option<Vec<usize>>,
    /// What carries activations between ranks of this machine [default: shm]
    #[arg(long, value_enum, requires = "local")]
    pub(super) transport: Option<FabricArg>,
    #[command(flatten)]
    pub(super) rdma: RdmaArgs,
    /// After so many seconds of silence a rank is dead [default: 5]
    #[arg(long, value_name = "S")]
    pub(super) heartbeat_timeout: Option<f64>,
    /// Fail on purpose, for tests: see fault.rs
    #[arg(long, value_name = "RANK:STEP[#N]:KIND", requires = "local", hide = true)]
    pub(super) fault: Option<String>,
    /// Show what every rank loaded, computed, waited for and sent
    #[arg(long)]
    pub(super) stats: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum StrategyArg {
    Auto,
    Tensor,
    Pipeline,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FabricArg {
    Shm,
    Tcp,
    Rdma,
    /// TCP in clear, only for `bench all-reduce`
    #[value(skip)]
    Plain,
}

/// A run that has not begun: what it is of, and who takes part.
pub(super) struct Prepared {
    party: Party,
    // what was asked for, and where this machine has it
    asked: ModelArgs,
    model: ModelArgs,
    pub(super) opened: Opened,
    pub(super) plan: Plan,
    threads: Option<usize>,
}

/// What rank 0 leads.
enum Party {
    /// So many processes of this machine.
    Local(usize),
    /// This machine and others.
    Hosts(Box<Machines>),
    /// A launcher has started all ranks.
    Launched(Box<Run>),
}

impl Prepared {
    /// Whether other machines are reached by RDMA.
    pub(super) fn uses_rdma(&self) -> bool {
        matches!(&self.party, Party::Hosts(machines) if machines.cluster.uses_rdma())
    }
}

/// A run that has begun.
pub(super) struct Started {
    pub(super) world: Communicator,
    pub(super) others: Others,
    /// The how manieth this rank is of how many on this machine.
    pub(super) share: (usize, usize),
    pub(super) threads: Option<usize>,
}

impl Party {
    /// Where models are on this machine.
    fn models(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        match self {
            Self::Local(_) => &NONE,
            Self::Hosts(machines) => &machines.cluster.hosts[0].models,
            Self::Launched(run) => &run.ticket().models,
        }
    }
}

impl RankArgs {
    /// The machines of `--hosts`, if this is none of them: the command runs on the first then.
    pub(super) fn elsewhere(&self) -> Result<Option<Machines>> {
        let Some(hosts) = &self.hosts.hosts else { return Ok(None) };
        let machines = Machines::open(hosts)?.with_service(self.rdma.service());
        Ok((!machines.here).then_some(machines))
    }

    /// What there is to be rank 0 of.
    fn party(&self) -> Result<Party> {
        if let Some(run) = Run::inherited()? {
            if self.local.is_some() || self.heartbeat_timeout.is_some() {
                let error =
                    Error::usage("--local and --heartbeat-timeout are not for a rank that `launch` has started");
                return Err(error.hint("`heartbeat:` in the cluster file is for all of its ranks"));
            }
            return Ok(Party::Launched(Box::new(run)));
        }
        if let Some(hosts) = &self.hosts.hosts {
            self.rdma.check(None)?;
            return Ok(Party::Hosts(Box::new(Machines::open(hosts)?.with_service(self.rdma.service()))));
        }
        let asks = [
            ("--tp", self.tp.is_some()),
            ("--pp", self.pp.is_some()),
            ("--strategy", self.strategy.is_some()),
            ("--split", self.split.is_some()),
            ("--heartbeat-timeout", self.heartbeat_timeout.is_some()),
        ];
        if let Some((flag, _)) = asks.iter().find(|(_, asked)| *asked && self.local.is_none()) {
            let error = Error::usage(format!("{flag} is about several ranks"));
            return Err(error.hint("--local N runs them on this machine, --hosts FILE on others"));
        }
        let ranks = self.local.unwrap_or(1);
        if ranks == 0 || ranks > MAX_RANKS {
            let error = Error::usage(format!("--local {ranks} is not one of 1..={MAX_RANKS}"));
            return Err(error.hint("--local 2 runs two ranks on this machine"));
        }
        self.rdma.check(self.transport)?;
        if let Some(rank) = self.fault()?.as_ref().map(Fault::rank).filter(|rank| *rank >= ranks) {
            return Err(Error::usage(format!("--fault names rank {rank} of {ranks}")));
        }
        Ok(Party::Local(ranks))
    }

    /// The party's own layout, with what the command line says about it.
    fn layout(&self, party: &Party) -> Layout {
        let own = match party {
            Party::Local(ranks) => Layout { world_size: *ranks, ..Layout::default() },
            Party::Hosts(machines) => machines.cluster.layout(),
            Party::Launched(run) => {
                let ticket = run.ticket();
                let even = || Layout { world_size: ticket.world_size, ..Layout::default() };
                ticket.layout.clone().unwrap_or_else(even)
            }
        };
        let strategy = match self.strategy {
            None => own.strategy,
            Some(StrategyArg::Auto) => Strategy::Auto,
            Some(StrategyArg::Tensor) => Strategy::Tensor,
            Some(StrategyArg::Pipeline) => Strategy::Pipeline,
        };
        // one of these on the command line is meant without the file's others
        if self.tp.is_some() || self.pp.is_some() || self.split.is_some() || self.strategy.is_some() {
            return Layout { tp: self.tp, pp: self.pp, strategy, split: self.split.clone(), ..own };
        }
        own
    }

    /// What is to go wrong.
    fn fault(&self) -> Result<Option<Fault>> {
        self.fault.as_deref().map(str::parse).transpose()
    }

    /// After so much silence a rank is dead, where the command line says so.
    pub(super) fn silent(&self) -> Result<Option<Duration>> {
        let Some(seconds) = self.heartbeat_timeout else { return Ok(None) };
        if (0.5..=86_400.0).contains(&seconds) {
            return Ok(Some(Duration::from_secs_f64(seconds)));
        }
        let error = Error::usage(format!("--heartbeat-timeout {seconds} is not one of 0.5 to 86400 seconds"));
        Err(error.hint("a rank that computes for long still has heartbeats; 5 is plenty on one machine"))
    }

    /// Finds the model and plans its ranks; nothing is started.
    pub(super) fn prepare(&self, model: &ModelArgs) -> Result<Prepared> {
        let (party, threads) = (self.party()?, threads(self.threads)?);
        let mut own = model.clone();
        own.place(party.models());
        let (opened, layout) = (own.open()?, self.layout(&party));
        let ranks_here = if let Party::Local(ranks) = &party { *ranks } else { 1 };
        own.fencing(ranks_here)?;
        room::settle(&mut own, &opened, &layout, ranks_here)?;
        let room = opened.room(&own)?;
        let plan = opened.blueprint.plan(&layout, room.pages, room.states())?;
        let asked = ModelArgs { cache_tokens: own.cache_tokens, ..model.clone() };
        Ok(Prepared { party, asked, model: own, opened, plan, threads })
    }

    /// Loads the model on as many ranks as asked for; this process is rank 0.
    pub(super) fn load(&self, model: &ModelArgs) -> Result<Loaded> {
        self.start(self.prepare(model)?)
    }

    /// Starts the ranks of what was prepared, and loads the model.
    pub(super) fn start(&self, prepared: Prepared) -> Result<Loaded> {
        let Prepared { party, asked: model, model: mut own, opened, plan, threads } = prepared;
        if let Party::Local(1) = party {
            let texts = opened.texts()?;
            return opened.load(texts, &own, &plan, Ranks::solo(), Means::whole(threads), &|_| ());
        }
        let spinner = ui::spinner(format!("starting {} ranks ({})", plan.world_size(), plan.describe()), model.quiet);
        if matches!(party, Party::Hosts(_)) {
            spinner.finish_and_clear();
        }
        let Started { world, others, share, threads } = caught(|| self.assemble(party, threads, model.quiet))?;
        spinner.finish_and_clear();
        // progress is rank 0's to show
        let theirs = ModelArgs { quiet: true, ..model.for_elsewhere() };
        let task = Task::Model { model: theirs, plan: plan.clone() };
        // where lines tell of all ranks, no bar tells of this one
        own.quiet |= matches!(others.crew, Crew::Hosts(_));
        let told = |loading| others.crew.loading(loading);
        // others are there: from here on what fails ends them
        let begun = caught(|| {
            let means = Means::shared(rank::pin(share, threads)?, share.1);
            task.announce(&world)?;
            start(opened, &own, &plan, world, means, &told)
        });
        match begun {
            Ok(mut loaded) => {
                others.crew.ready();
                loaded.others = Some(others);
                Ok(loaded)
            }
            Err(error) => Err(others.failed(error)),
        }
    }

    /// Starts ranks on this machine that run `task`, and `own` as rank 0.
    pub(super) fn run<T>(&self, ranks: usize, task: &Task, own: impl FnOnce(&Communicator) -> Result<T>) -> Result<T> {
        let Started { world, others, share, threads } = self.assemble(Party::Local(ranks), Some(1), true)?;
        let result = caught(|| {
            rank::pin(share, threads)?;
            task.announce(&world)?;
            own(&world)
        });
        match result {
            Ok(result) => {
                drop(world);
                others.finish().map(|()| result)
            }
            Err(error) => Err(others.failed(error)),
        }
    }

    /// Starts the other ranks, unless they are there, and joins them as rank 0.
    fn assemble(&self, party: Party, threads: Option<usize>, quiet: bool) -> Result<Started> {
        let started = match party {
            Party::Local(ranks) => self.start_here(ranks, threads)?,
            Party::Hosts(machines) => hosts::start(&machines, self.hosts.deploy, self.silent()?, threads, quiet)?,
            Party::Launched(run) => {
                let (ticket, launcher) = (run.ticket().clone(), run.reporter()?);
                let joined = run.join(|| rank::end_with_the_starter(&AtomicBool::new(true)))?;
                let others =
                    Others { monitor: joined.monitor, crew: Crew::Launched(launcher), noticed: Arc::default() };
                let threads = threads.or(ticket.threads);
                Started { world: joined.world, others, share: ticket.share, threads }
            }
        };
        let others = &started.others;
        rank::watch_over_this_process(Arc::clone(&others.monitor), Arc::clone(&others.noticed));
        Ok(started)
    }

    /// Starts processes of this machine, each with its share of the processors.
    fn start_here(&self, ranks: usize, threads: Option<usize>) -> Result<Started> {
        let fabric = match self.transport {
            None | Some(FabricArg::Shm) => Fabric::Shm,
            Some(FabricArg::Tcp) => Fabric::Tcp,
            Some(FabricArg::Plain) => Fabric::Plain,
            Some(FabricArg::Rdma) => Fabric::Rdma,
        };
        let cabling = (fabric == Fabric::Rdma).then(|| self.rdma.local(ranks)).transpose()?;
        let silent = self.silent()?;
        let fill = |ticket: &mut Ticket| {
            ticket.silent = silent.unwrap_or(ticket.silent);
            ticket.patience = ticket.silent.saturating_mul(MEETING);
            (ticket.threads, ticket.fault) = (threads, self.fault.clone());
            ticket.rdma = cabling.clone();
        };
        let fault = self.fault()?;
        let begun = Cell::new(false);
        let begin = || {
            if !begun.replace(true) {
                Fault::at(fault.as_ref(), 0, JOIN)?;
            }
            rank::command()
        };
        let (joined, processes) = local::launch(ranks, fabric, &begin, &fill)?;
        Fault::arm(fault.as_ref(), &joined.world, &joined.monitor);
        let others = Others { monitor: joined.monitor, crew: Crew::Local(processes), noticed: Arc::default() };
        Ok(Started { world: joined.world, others, share: (0, ranks), threads })
    }
}

impl Loaded {
    /// Ends the run: the other ranks are told, in good order or with the error.
    pub(super) fn end(mut self, args: &RankArgs, result: Result<Outcome>) -> Result<Outcome> {
        let result = caught(|| {
            let outcome = result?;
            if args.stats {
                let reports = self.engine.reports()?;
                ui::say(statistics(&reports));
            }
            self.engine.stop()?;
            Ok(outcome)
        });
        let Self { engine, others: Some(others), .. } = self else { return result };
        match result {
            Ok(outcome) => {
                // a rank passes on what others send each other until all have let go
                drop(engine);
                others.finish().map(|()| outcome)
            }
            Err(error) => Err(others.failed(error)),
        }
    }
}

/// What every rank did, as a table.
fn statistics(reports: &[Report]) -> String {
    let header =
        ["rank", "weights", "cache/token", "prompt tok/s", "busy", "tok/s", "compute", "wait", "wire", "sent/token"];
    let mut rows = vec![header.map(str::to_owned)];
    for (rank, report) in reports.iter().enumerate() {
        let (prompt, decode) = (report.usage.prompt, report.usage.decode);
        let per = |duration: Duration| format!("{:.2} ms", duration.as_secs_f64() * 1e3 / decode.tokens.max(1) as f64);
        let rate = |tokens: u64, total: Duration| format!("{:.1}", tokens as f64 / total.as_secs_f64().max(1e-9));
        let busy = prompt.computed().as_secs_f64() / prompt.total.as_secs_f64().max(1e-9);
        rows.push([
            rank.to_string(),
            format!("{:.1} MB", report.bytes as f64 / 1e6),
            format!("{:.1} KiB", report.position as f64 / 1024.0),
            rate(prompt.tokens, prompt.total),
            format!("{:.0} %", busy * 100.0),
            rate(decode.tokens, decode.total),
            per(decode.computed()),
            per(decode.waited),
            per(decode.wire),
            format!("{:.1} KiB", decode.sent as f64 / decode.tokens.max(1) as f64 / 1024.0),
        ]);
    }
    let mut text = aligned(&rows, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let (held, whole) = (reports.iter().map(|report| report.bytes).sum::<u64>(), reports[0].whole);
    if held > whole {
        let (more, part) = ((held - whole) as f64, (held - whole) as f64 * 100.0 / whole as f64);
        text.push_str(&format!("\n{:.1} MB ({part:.1} %) of weights are held more than once", more / 1e6));
    }
    text
}
