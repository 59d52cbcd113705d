//! Several ranks: the flags that say how many, and how a command's model is spread over them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::caught::caught;
use super::fault::{Fault, HELLO, JOIN, LOADING, SELF_TEST};
use super::load::{Loaded, ModelArgs, Opened};
use super::table::aligned;
use super::{Outcome, rank, ui};
use crate::backend::ARITHMETIC;
use crate::cluster::local::{self, Fabric, Processes, Ticket};
use crate::comm::control::{CauseKind, Monitor};
use crate::comm::{Communicator, Hello, Ranks, self_test};
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
    /// Fail on purpose, for tests: see fault.rs
    #[arg(long, value_name = "RANK:STEP[#N]:KIND", requires = "local", hide = true)]
    fault: Option<Fault>,
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

/// What another rank is told to do, beside how to join.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) ticket: Ticket,
    pub(super) cpus: Vec<usize>,
    pub(super) fault: Option<Fault>,
    pub(super) task: Task,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) enum Task {
    /// Run a part of a model.
    Model { model: ModelArgs, plan: Plan, threads: usize },
    /// Reduce vectors of these many values, so often each.
    AllReduce { sizes: Vec<usize>, reps: usize },
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
        if let Some(rank) = self.fault.as_ref().map(Fault::rank).filter(|rank| *rank >= world_size) {
            return Err(Error::usage(format!("--fault names rank {rank} of {world_size}")));
        }
        let opened = model.open()?;
        let geometry = opened.blueprint.geometry;
        let plan = Plan::new(geometry.layers, geometry.heads, &self.layout(world_size))?;
        if world_size == 1 {
            return opened.load(model, &plan, Ranks::solo(), model.threads()?);
        }
        let threads = model.threads.map(|_| model.threads()).transpose()?;
        let shares = shares(threads, world_size);
        let spinner = ui::spinner(format!("starting {world_size} ranks ({})", plan.describe()), model.quiet);
        // progress is rank 0's to show
        let theirs = ModelArgs { quiet: true, ..model.clone() };
        let task = |rank: usize| Task::Model { model: theirs.clone(), plan: plan.clone(), threads: shares[rank].1 };
        let (world, others) = caught(|| self.launch(world_size, &shares, &task))?;
        spinner.finish_and_clear();
        match caught(|| start(opened, model, &plan, world, shares[0].1)) {
            Ok(mut loaded) => {
                loaded.others = Some(others);
                Ok(loaded)
            }
            Err(error) => Err(others.failed(error)),
        }
    }

    /// Starts the other ranks, each on its share of the processors, and joins them as rank 0.
    fn launch(
        &self,
        world_size: usize,
        shares: &[(Vec<usize>, usize)],
        task: &dyn Fn(usize) -> Task,
    ) -> Result<(Communicator, Others)> {
        let fabric = match self.transport {
            None | Some(FabricArg::Shm) => Fabric::Shm,
            Some(FabricArg::Tcp) => Fabric::Tcp,
            Some(FabricArg::Plain) => Fabric::Plain,
        };
        let job = |ticket: &Ticket| {
            if ticket.rank + 1 == world_size {
                Fault::at(self.fault.as_ref(), 0, JOIN)?;
            }
            let (cpus, fault) = (shares[ticket.rank].0.clone(), self.fault.clone());
            let job = Job { ticket: ticket.clone(), cpus, fault, task: task(ticket.rank) };
            serde_json::to_string(&job).map_err(Error::from_std)
        };
        let (joined, processes) = local::launch((world_size, fabric, self.silent()?), &|_| rank::command(), &job)?;
        let others = Others { monitor: joined.monitor, processes };
        rank::watch_over_this_process(Arc::clone(&others.monitor));
        Fault::arm(self.fault.as_ref(), &joined.world, &others.monitor);
        rank::pin(&shares[0].0)?;
        Ok((joined.world, others))
    }

    /// The seconds that every one of `reps` sums of each of `sizes` values took on rank 0.
    pub(super) fn time_all_reduce(&self, sizes: &[usize], reps: usize) -> Result<Vec<Vec<f64>>> {
        let world_size = self.local.unwrap_or(2);
        if !(2..=MAX_RANKS).contains(&world_size) {
            let error = Error::usage(format!("--local {world_size} is not one of 2..={MAX_RANKS}"));
            return Err(error.hint("one rank alone has nothing to reduce"));
        }
        let shares = shares(Some(1), world_size);
        let task = |_| Task::AllReduce { sizes: sizes.to_vec(), reps };
        let (world, others) = self.launch(world_size, &shares, &task)?;
        match caught(|| time_all_reduce(&world, sizes, reps)) {
            Ok(times) => others.finish().map(|()| times),
            Err(error) => Err(others.failed(error)),
        }
    }
}

/// Compares notes with the other ranks, tests the links, and loads this rank's part; returns when all are ready.
pub(super) fn start(
    opened: Opened,
    model: &ModelArgs,
    plan: &Plan,
    world: Communicator,
    threads: usize,
) -> Result<Loaded> {
    let hello = Hello::new([
        ("version of tbshard", env!("CARGO_PKG_VERSION").to_owned()),
        ("model", opened.blueprint.digest.clone()),
        ("plan", plan.describe()),
        ("context", opened.context(model).to_string()),
        ("arithmetic", ARITHMETIC.to_owned()),
    ]);
    world.starting(HELLO)?;
    hello.exchange(&world)?;
    world.starting(SELF_TEST)?;
    self_test(&world)?;
    world.starting(LOADING)?;
    let ranks = Ranks::new(world.clone(), plan)?;
    let loaded = opened.load(model, plan, ranks, threads)?;
    world.barrier()?;
    world.busy(false)?;
    Ok(loaded)
}

/// The processors and threads of every rank: each its own share of the processors where there are enough.
fn shares(threads: Option<usize>, world_size: usize) -> Vec<(Vec<usize>, usize)> {
    let cpus = rank::cpus();
    let share = |rank: usize| cpus[rank * cpus.len() / world_size..(rank + 1) * cpus.len() / world_size].to_vec();
    (0..world_size)
        .map(|rank| {
            let own = share(rank);
            let threads = threads.unwrap_or(own.len().max(1));
            // more threads than processors are left to the system
            if own.is_empty() || threads > own.len() { (Vec::new(), threads) } else { (own, threads) }
        })
        .collect()
}

/// Sums vectors of each of `sizes` values `reps` times, after a tenth as many that are not timed; before each, a barrier.
pub(super) fn time_all_reduce(world: &Communicator, sizes: &[usize], reps: usize) -> Result<Vec<Vec<f64>>> {
    let mut all = Vec::new();
    for size in sizes {
        let (mut values, mut times) = (vec![1.0; *size], Vec::new());
        for rep in 0..reps + reps / 10 {
            world.barrier()?;
            let start = Instant::now();
            world.all_reduce(&mut values)?;
            if rep >= reps / 10 {
                times.push(start.elapsed().as_secs_f64());
            }
            values.fill(1.0);
        }
        all.push(times);
    }
    Ok(all)
}

impl Others {
    /// Tells the other ranks that this one failed; returns the error to show.
    pub(super) fn failed(&self, error: Error) -> Error {
        let error = self.monitor.failed(0, error);
        self.monitor.settle();
        let cause = self.monitor.cause();
        // one that is silent will not end by itself
        let silent = cause.as_ref().filter(|cause| cause.kind == CauseKind::Silent).map(|cause| cause.rank);
        self.end(silent);
        // of a panic the rank is worth knowing
        if error.kind() == Kind::Panicked { cause.map_or(error, Error::from) } else { error }
    }

    fn finish(&self) -> Result<()> {
        self.monitor.finish()?;
        self.end(None);
        Ok(())
    }

    fn end(&self, dead: Option<usize>) {
        for rank in self.processes.end(dead) {
            ui::whisper(format_args!("rank {rank} did not end by itself and was killed"));
        }
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
