//! Several ranks: the flags that say how many, and how a command's model is spread over them.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::load::{Loaded, ModelArgs, Opened};
use super::table::aligned;
use super::task::{Task, start, time_all_reduce};
use super::{Outcome, rank, ui};
use crate::cluster::local::{self, Processes};
use crate::cluster::ticket::{Fabric, Ticket};
use crate::comm::Communicator;
use crate::comm::Ranks;
use crate::comm::control::Monitor;
use crate::engine::Report;
use crate::error::{Error, Kind, Result};
use crate::partition::{Layout, MAX_RANKS, Plan, Strategy};

/// How a model is spread.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Ranks")]
pub(super) struct RankArgs {
    /// Run N ranks as processes on this machine
    #[arg(long, value_name = "N")]
    local: Option<usize>,
    /// Ranks that share every layer (tensor parallel)
    #[arg(long, value_name = "T", requires = "local")]
    tp: Option<usize>,
    /// Stages of layers (pipeline parallel)
    #[arg(long, value_name = "P", requires = "local")]
    pp: Option<usize>,
    /// What decides where --tp and --pp do not
    #[arg(long, value_enum, requires = "local")]
    strategy: Option<StrategyArg>,
    /// Layers of every stage: 32,20,12
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', requires = "local")]
    split: Option<Vec<usize>>,
    /// What carries activations between ranks of this machine [default: shm]
    #[arg(long, value_enum, requires = "local")]
    transport: Option<FabricArg>,
    /// After so many seconds of silence a rank is dead [default: 5]
    #[arg(long, value_name = "S", requires = "local")]
    heartbeat_timeout: Option<f64>,
    /// Show what every rank loaded, computed, waited for and sent
    #[arg(long)]
    stats: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StrategyArg {
    Auto,
    Tensor,
    Pipeline,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FabricArg {
    Shm,
    Tcp,
    /// TCP in clear, only for `bench all-reduce`
    #[value(skip)]
    Plain,
}

/// The other ranks of a run.
pub(super) struct Others {
    monitor: Arc<Monitor>,
    processes: Processes,
}

impl RankArgs {
    /// `local` ranks that share every layer.
    pub(super) fn tensor(local: Option<usize>, transport: Option<FabricArg>) -> Self {
        Self { local, transport, strategy: local.map(|_| StrategyArg::Tensor), ..Self::default() }
    }

    fn layout(&self, world_size: usize) -> Layout {
        let strategy = match self.strategy {
            None | Some(StrategyArg::Auto) => Strategy::Auto,
            Some(StrategyArg::Tensor) => Strategy::Tensor,
            Some(StrategyArg::Pipeline) => Strategy::Pipeline,
        };
        Layout { world_size, tp: self.tp, pp: self.pp, strategy, split: self.split.clone(), weights: Vec::new() }
    }

    fn silent(&self) -> Result<Duration> {
        let seconds = self.heartbeat_timeout.unwrap_or(5.0);
        if (0.5..=86_400.0).contains(&seconds) {
            return Ok(Duration::from_secs_f64(seconds));
        }
        let error = Error::usage(format!("--heartbeat-timeout {seconds} is not one of 0.5 to 86400 seconds"));
        Err(error.hint("a rank that computes for long still has heartbeats; 5 is plenty on one machine"))
    }

    /// Loads the model on as many ranks as asked for; this process is rank 0.
    pub(super) fn load(&self, model: &ModelArgs) -> Result<Loaded> {
        let world_size = self.local.unwrap_or(1);
        if world_size == 0 || world_size > MAX_RANKS {
            let error = Error::usage(format!("--local {world_size} is not one of 1..={MAX_RANKS}"));
            return Err(error.hint("--local 2 runs two ranks on this machine"));
        }
        let opened = model.open()?;
        let geometry = opened.blueprint.geometry;
        let plan = Plan::new(geometry.layers, geometry.heads, &self.layout(world_size))?;
        if world_size == 1 {
            return opened.load(model, &plan, Ranks::solo(), model.threads()?, &|_| ());
        }
        let threads = model.threads.map(|_| model.threads()).transpose()?;
        let spinner = ui::spinner(format!("starting {world_size} ranks ({})", plan.describe()), model.quiet);
        let (world, others) = self.launch(world_size, threads)?;
        spinner.finish_and_clear();
        let threads = rank::pin((0, world_size), threads)?;
        match lead(opened, model, &plan, world, threads) {
            Ok(mut loaded) => {
                loaded.others = Some(others);
                Ok(loaded)
            }
            Err(error) => Err(others.failed(error)),
        }
    }

    /// Starts the other ranks, each on its share of the processors, and joins them as rank 0.
    fn launch(&self, world_size: usize, threads: Option<usize>) -> Result<(Communicator, Others)> {
        let fabric = match self.transport {
            None | Some(FabricArg::Shm) => Fabric::Shm,
            Some(FabricArg::Tcp) => Fabric::Tcp,
            Some(FabricArg::Plain) => Fabric::Plain,
        };
        let silent = self.silent()?;
        let fill = |ticket: &mut Ticket| (ticket.silent, ticket.threads) = (silent, threads);
        let (joined, processes) = local::launch(world_size, fabric, &rank::command, &fill)?;
        let others = Others { monitor: joined.monitor, processes };
        rank::watch_over_this_process(Arc::clone(&others.monitor));
        Ok((joined.world, others))
    }

    /// The seconds that every one of `reps` sums of each of `sizes` values took on rank 0.
    pub(super) fn time_all_reduce(&self, sizes: &[usize], reps: usize) -> Result<Vec<Vec<f64>>> {
        let world_size = self.local.unwrap_or(2);
        if !(2..=MAX_RANKS).contains(&world_size) {
            let error = Error::usage(format!("--local {world_size} is not one of 2..={MAX_RANKS}"));
            return Err(error.hint("one rank alone has nothing to reduce"));
        }
        let (world, others) = self.launch(world_size, Some(1))?;
        rank::pin((0, world_size), Some(1))?;
        Task::AllReduce { sizes: sizes.to_vec(), reps }.announce(&world)?;
        match time_all_reduce(&world, sizes, reps) {
            Ok(times) => others.finish().map(|()| times),
            Err(error) => Err(others.failed(error)),
        }
    }
}

/// Loads the model as rank 0, and has the other ranks load their parts.
fn lead(opened: Opened, model: &ModelArgs, plan: &Plan, world: Communicator, threads: usize) -> Result<Loaded> {
    // progress is rank 0's to show
    let theirs = ModelArgs { quiet: true, ..model.clone() };
    Task::Model { model: theirs, plan: plan.clone() }.announce(&world)?;
    start(opened, model, plan, world, threads, &|_| ())
}

impl Others {
    /// Tells the other ranks that this one failed; returns the error to show.
    pub(super) fn failed(&self, error: Error) -> Error {
        // a decision that all ranks know is the error already
        let error = if error.kind() == Kind::Cluster && self.monitor.cause().is_some() {
            error
        } else {
            self.monitor.failed(0, error)
        };
        self.monitor.settle();
        self.processes.end();
        error
    }

    fn finish(&self) -> Result<()> {
        self.monitor.finish()?;
        self.processes.end();
        Ok(())
    }
}

impl Loaded {
    /// Ends the run: the other ranks are told, in good order or with the error.
    pub(super) fn end(mut self, args: &RankArgs, result: Result<Outcome>) -> Result<Outcome> {
        let result = result.and_then(|outcome| {
            if args.stats {
                let reports = self.engine.reports()?;
                ui::say(statistics(&reports));
            }
            self.engine.stop()?;
            Ok(outcome)
        });
        let Some(others) = &self.others else { return result };
        match result {
            Ok(outcome) => others.finish().map(|()| outcome),
            Err(error) => Err(others.failed(error)),
        }
    }
}

/// What every rank did, as a table.
fn statistics(reports: &[Report]) -> String {
    let header = ["rank", "weights", "prompt tok/s", "busy", "tok/s", "compute", "wait", "wire", "sent/token"];
    let mut rows = vec![header.map(str::to_owned)];
    for (rank, report) in reports.iter().enumerate() {
        let (prompt, decode) = (report.usage.prompt, report.usage.decode);
        let per = |duration: Duration| format!("{:.2} ms", duration.as_secs_f64() * 1e3 / decode.tokens.max(1) as f64);
        let rate = |tokens: u64, total: Duration| format!("{:.1}", tokens as f64 / total.as_secs_f64().max(1e-9));
        let busy = prompt.computed().as_secs_f64() / prompt.total.as_secs_f64().max(1e-9);
        rows.push([
            rank.to_string(),
            format!("{:.1} MB", report.bytes as f64 / 1e6),
            rate(prompt.tokens, prompt.total),
            format!("{:.0} %", busy * 100.0),
            rate(decode.tokens, decode.total),
            per(decode.computed()),
            per(decode.waited),
            per(decode.wire),
            format!("{:.1} KiB", decode.sent as f64 / decode.tokens.max(1) as f64 / 1024.0),
        ]);
    }
    aligned(&rows, &[1, 2, 3, 4, 5, 6, 7, 8])
}
