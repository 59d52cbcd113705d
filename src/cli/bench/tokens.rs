//! `tbshard bench tokens-per-sec`: tokens a second of prompts and of answers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use indicatif::ProgressBar;

use super::answers::Answers;
use super::bandwidth::memory_bandwidth;
use super::compare::Comparison;
use super::measure::{Kind, Measured, Test, Work, measure};
use super::output::{Format, Writer};
use super::row::{self, Row};
use super::shape::Shape;
use super::spread::{Setting, Spread};
use super::statistics::mean_and_sd;
use crate::cli::agent::BUILD;
use crate::cli::caught::caught;
use crate::cli::load::{Loaded, ModelArgs, all_cores};
use crate::cli::ranks::RankArgs;
use crate::cli::{Outcome, env, interrupt, rank, ui};
use crate::cluster::facts::Facts;
use crate::error::{Error, Result};
use crate::partition::Plan;

/// Sequences at once at most: more are a slip of the finger.
const MOST_SEQUENCES: usize = 4096;

#[derive(Debug, clap::Args)]
#[command(after_long_help = row::KEYS)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt lengths, in tokens; 0 is no prompt
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "512", help_heading = "Bench")]
    pp: Vec<usize>,
    /// Answer lengths, in tokens; 0 is no answer
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "128", help_heading = "Bench")]
    tg: Vec<usize>,
    /// Tokens that are there before, and not timed
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "0", help_heading = "Bench")]
    depth: Vec<usize>,
    /// Sequences at once; tokens of all are counted
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1", help_heading = "Bench")]
    batch: Vec<usize>,
    /// Repetitions; one more, not counted, warms up
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "Bench")]
    reps: usize,
    /// Compare with what an earlier run wrote with -o json or -o jsonl: exit code 1 if something is significantly slower
    #[arg(long, value_name = "OLD.json", help_heading = "Bench")]
    compare: Option<PathBuf>,
    /// Changes of so many percent or fewer are none
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0, requires = "compare", help_heading = "Bench")]
    threshold: f64,
    /// How the result is written
    #[arg(long, short, value_enum, default_value_t = Format::Md, help_heading = "Bench")]
    output: Format,
    #[command(flatten)]
    spread: Spread,
}

impl Args {
    /// How a run over machines is asked for.
    pub(super) fn on_hosts(&self) -> RankArgs {
        self.spread.on_hosts()
    }

    /// Refuses what the first of other machines cannot do.
    pub(super) fn check_relayed(&self, first: &str) -> Result<()> {
        if self.compare.is_some() {
            let error = Error::usage("--compare names a file of this machine, and the benchmark runs on another");
            return Err(error.hint("write both with -o json, then `tbshard bench compare OLD.json NEW.json`"));
        }
        self.spread.check_once(&format!("on {first} the ranks are started once"))
    }

    /// Every combination of lengths, depths and batches.
    fn tests(&self) -> Result<Vec<Test>> {
        let mut tests = Vec::new();
        for depth in &self.depth {
            for batch in &self.batch {
                let prompts = self.pp.iter().map(|tokens| (Kind::Prompt, *tokens));
                for (kind, tokens) in prompts.chain(self.tg.iter().map(|tokens| (Kind::Answer, *tokens))) {
                    tests.push(Test { kind, tokens, depth: *depth, batch: *batch });
                }
            }
        }
        tests.retain(|test| test.tokens > 0);
        if let Some(batch) = self.batch.iter().find(|batch| !(1..=MOST_SEQUENCES).contains(*batch)) {
            let error = Error::usage(format!("--batch {batch} is not one of 1..={MOST_SEQUENCES}"));
            return Err(error.hint("1 is the default"));
        }
        if tests.is_empty() {
            return Err(Error::usage("--pp 0 and --tg 0 leave nothing to measure").hint("give one of them a length"));
        }
        Ok(tests)
    }

    /// The model with room for all tests.
    fn model(&self, tests: &[Test]) -> Result<ModelArgs> {
        let longest = tests.iter().filter_map(|test| test.depth.checked_add(test.tokens)).max().unwrap_or(usize::MAX);
        let ctx = self.model.ctx.unwrap_or(longest);
        if longest > ctx {
            return Err(Error::usage(format!("{longest} tokens do not fit --ctx {ctx}"))
                .hint("without --ctx the context is as long as needed"));
        }
        let sequences = tests.iter().map(|test| test.batch).max().unwrap_or(1);
        Ok(ModelArgs { ctx: Some(ctx), sequences, ..self.model.clone() })
    }
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    if args.reps == 0 {
        return Err(Error::usage("--reps 0 measures nothing").hint("5 is the default"));
    }
    let tests = args.tests()?;
    let comparison = args.compare.as_ref().map(|path| Comparison::with(path, args.threshold, args.reps)).transpose()?;
    if env::rank().is_some() {
        args.spread.check_once("ranks that `launch` has started run once")?;
    }
    interrupt::listen()?;
    let mut model = args.model(&tests)?;
    let local = args.spread.hosts.hosts.is_none() && env::rank().is_none();
    if local {
        // the hub is asked once
        model.settle()?;
    }
    let settings = args.spread.settings(&model)?;
    let answers_are_timed = tests.iter().any(|test| test.kind == Kind::Answer);
    // what several machines read is not measured
    let bandwidth = (local && answers_are_timed).then(|| memory_bandwidth(all_cores())).transpose()?;
    let mut bench = Bench {
        args,
        tests: &tests,
        cpu: Facts::here().cpu,
        bandwidth,
        comparison,
        answers: Answers::default(),
        alone: BTreeMap::new(),
        writer: Writer::new(args.output),
    };
    let shown = settings.iter().filter(|setting| setting.shown).count() * tests.len();
    if let Some(comparison) = &mut bench.comparison {
        comparison.expect(shown);
    }
    let cpus = rank::cpus();
    let steps = settings.len() * tests.len() * (args.reps + 1);
    let bar = ui::bar(steps as u64, "{msg} {bar:20} {pos}/{len} eta {eta}", args.model.quiet);
    for setting in settings {
        let Setting { ranks, prepared, transport, shown, .. } = setting;
        let shape = Shape::of(&prepared.opened, &model)?;
        let on = On { shape, plan: prepared.plan.clone(), transport, shown };
        let mut loaded = ranks.start(prepared)?;
        let result = caught(|| bench.run(&mut loaded, &on, &bar).map(|()| Outcome::Done));
        loaded.end(&ranks, result)?;
        // as rank 0 it had a share of the processors
        rank::stay_on(&cpus)?;
    }
    bar.finish_and_clear();
    let rows = bench.writer.finish(row::markdown)?;
    bench.comparison.map_or(Ok(()), |comparison| comparison.judge(&rows))?;
    Ok(Outcome::Done)
}

/// A benchmark that runs.
struct Bench<'a> {
    args: &'a Args,
    tests: &'a [Test],
    cpu: String,
    bandwidth: Option<f64>,
    comparison: Option<Comparison>,
    answers: Answers,
    // what one rank of so many threads reaches in a test, in tokens a second
    alone: BTreeMap<(usize, String), f64>,
    writer: Writer<Row>,
}

/// What the tests run on.
struct On {
    shape: Shape,
    plan: Plan,
    transport: Option<&'static str>,
    shown: bool,
}

impl Bench<'_> {
    /// Runs all tests on a loaded model.
    fn run(&mut self, loaded: &mut Loaded, on: &On, bar: &ProgressBar) -> Result<()> {
        let place = format!("{}, {} threads", layout(&on.plan), loaded.threads);
        for test in self.tests {
            bar.set_message(format!("{test}, {place}"));
            let answers = (&mut self.answers, &place[..]);
            let measured = measure(&mut loaded.engine, test, self.args.reps, answers, &|| bar.inc(1))?;
            let mut row = self.row(loaded, on, test, measured);
            if on.plan.world_size() == 1 {
                self.alone.insert((row.n_threads, row.test.clone()), row.avg_ts);
            } else if let Some(alone) = self.alone.get(&(row.n_threads, row.test.clone())) {
                row.speedup = Some(row.avg_ts / alone);
                row.efficiency_percent = Some(100.0 * row.avg_ts / alone / row.n_ranks as f64);
            }
            if !on.shown {
                continue;
            }
            if let Some(comparison) = &self.comparison {
                comparison.compare(&mut row);
            }
            bar.suspend(|| self.writer.push(row))?;
        }
        Ok(())
    }

    fn row(&self, loaded: &Loaded, on: &On, test: &Test, measured: Measured) -> Row {
        let tokens = (test.tokens * test.batch) as f64;
        let samples_ns: Vec<u64> = measured.seconds.iter().map(|seconds| (seconds * 1e9) as u64).collect();
        let samples_ts: Vec<f64> = measured.seconds.iter().map(|seconds| tokens / seconds).collect();
        let (avg_ns, stddev_ns) = mean_and_sd(&samples_ns.iter().map(|ns| *ns as f64).collect::<Vec<_>>());
        let (avg_ts, stddev_ts) = mean_and_sd(&samples_ts);
        let bytes_per_token = on.shape.bytes_per_token(test);
        let percent = |bandwidth: f64| Some(100.0 * bytes_per_token? * avg_ts / bandwidth);
        let backend = loaded.engine.backend_name();
        let threads = format!(" {} threads", loaded.threads);
        let length = |kind| if test.kind == kind { test.tokens } else { 0 };
        let work = |value: fn(&Work) -> f64| measured.work.iter().map(value).collect::<Vec<_>>();
        Row {
            bench: row::BENCH.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build: BUILD.to_owned(),
            cpu_info: self.cpu.clone(),
            model: self.args.model.label(),
            model_digest: loaded.engine.model().digest.clone(),
            model_size: on.shape.bytes,
            model_n_params: on.shape.parameters,
            arithmetic: self.args.model.arithmetic_id().to_owned(),
            // threads have a column of their own
            backend: backend.strip_suffix(&threads).unwrap_or(&backend).to_owned(),
            n_threads: loaded.threads,
            n_ranks: on.plan.world_size(),
            layout: layout(&on.plan),
            transport: on.transport.map(str::to_owned),
            test: test.to_string(),
            n_prompt: length(Kind::Prompt),
            n_gen: length(Kind::Answer),
            n_depth: test.depth,
            batch: test.batch,
            samples_ns,
            samples_ts,
            avg_ns,
            stddev_ns,
            avg_ts,
            stddev_ts,
            weights_bytes: measured.work.iter().map(|work| work.weights).collect(),
            compute_seconds: work(|work| work.compute),
            wire_seconds: work(|work| work.wire),
            wait_seconds: work(|work| work.wait),
            sent_bytes: measured.work.iter().map(|work| work.sent as u64).collect(),
            bytes_per_token,
            memory_bandwidth: self.bandwidth,
            bandwidth_percent: self.bandwidth.and_then(percent),
            speedup: None,
            efficiency_percent: None,
            checksum: measured.checksum,
            old_avg_ts: None,
            change_percent: None,
            p_value: None,
            verdict: None,
        }
    }
}

/// The plan in a word: `alone`, `tp2`, `pp2`, `tp2×pp2`; the layers of stages that differ by more than one follow.
fn layout(plan: &Plan) -> String {
    let layers: Vec<usize> = plan.stages().iter().map(ExactSizeIterator::len).collect();
    let mut text = match (plan.tp(), layers.len()) {
        (1, 1) => "alone".to_owned(),
        (tp, 1) => format!("tp{tp}"),
        (1, pp) => format!("pp{pp}"),
        (tp, pp) => format!("tp{tp}×pp{pp}"),
    };
    if layers.iter().any(|count| layers.iter().any(|other| count.abs_diff(*other) > 1)) {
        let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
        text += &format!(" {}", layers.join("+"));
    }
    text
}
