//! `tbshard selftest`: does this machine compute what it should, and how fast is it?

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::device::{Computing, Fencing, Opened};
use super::load::{ModelArgs, all_cores};
use super::numbers::Rounding;
use super::table::scaled;
use super::{Outcome, interrupt, ui};
use crate::backend::cpu::Isa;
use crate::backend::{Cpu, Metal};
use crate::cluster::facts::Facts;
use crate::engine::{Event, Request, Sampler, Sampling, generate};
use crate::error::{Error, Result};
use crate::selftest;
use crate::transport::rdma::{Examination, Examined, examine};

/// What both devices are asked.
const PROMPT: &str = "Once upon a time";
/// Tokens of the answers that must be the same.
const ANSWER: usize = 48;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What is tested: the GPU on a Mac (auto, metal), or the processor's widest instructions
    #[arg(long, value_enum, default_value_t = Computing::Auto)]
    device: Computing,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Write everything that was found to this file, to be sent to whoever asks for it
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print only what fails, and the summary
    #[arg(long, short)]
    quiet: bool,
}

/// What became of one case.
#[derive(Debug, Serialize)]
struct Found {
    name: String,
    tolerance: f32,
    /// As a part of the largest result; none if it failed.
    difference: Option<f32>,
    values: usize,
    seconds: f64,
    error: Option<String>,
}

/// A measurement, or what kept it from being made.
type Measured = std::result::Result<f64, String>;

/// What became of a GPU's kernels.
#[derive(Debug, Default, Serialize)]
struct Kernels {
    compiled: usize,
    /// What was said of those that were not.
    refused: Vec<String>,
}

/// What became of a GPU's sums over ranks, by one fence.
#[derive(Debug, Serialize)]
struct Fenced {
    fence: &'static str,
    /// From one sum to the next; none if they failed.
    seconds: Option<f64>,
    /// Waits that gave up and were asked for again.
    resubmissions: u64,
    error: Option<String>,
}

/// Everything that was found. Nothing of networks and paths: it is for others.
#[derive(Debug, Default, Serialize)]
struct Report {
    version: &'static str,
    build: &'static str,
    os: &'static str,
    arch: &'static str,
    cpu: String,
    cores: usize,
    memory: Option<u64>,
    wired_limit: Option<u64>,
    /// What kept the device from being opened.
    error: Option<String>,
    device: String,
    kernels: Kernels,
    cases: Vec<Found>,
    failed: usize,
    /// Whether the demo says the same as on the processor.
    demo: Option<std::result::Result<&'static str, String>>,
    bytes_per_second: Option<Measured>,
    crossing_seconds: Option<Measured>,
    fences: Vec<Fenced>,
    /// What the RDMA devices say, and the layout of the C interface to them.
    rdma: Option<Examined>,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    interrupt::listen()?;
    let mut report = Report::begin();
    // better now than after all the work
    report.write(args)?;
    let opened =
        args.device.open(Rounding::Exact, all_cores()).inspect_err(|error| report.error = Some(error.to_string()));
    report.write(args)?;
    report.fill(args, &opened?)?;
    report.write(args)?;
    let text = if args.json { json!(report).to_string() } else { report.lines(args).join("\n") };
    ui::print(&(text + "\n"))?;
    if report.is_right() {
        return Ok(Outcome::Done);
    }
    let error = Error::msg("this machine does not compute what it should");
    Err(error.hint("please report it with the file that --report writes; another --device may do"))
}

impl Report {
    fn begin() -> Self {
        let facts = Facts::here();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            build: env!("TBSHARD_BUILD"),
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            cpu: facts.cpu,
            cores: facts.cores,
            memory: facts.memory,
            wired_limit: facts.wired_limit,
            ..Self::default()
        }
    }

    fn fill(&mut self, args: &Args, opened: &Opened) -> Result<()> {
        let device = opened.backend(Fencing::Event)?;
        self.device = device.name();
        self.kernels = compile(opened);
        self.cases = cases(args, opened)?;
        self.failed = self.kernels.refused.len() + self.cases.iter().filter(|case| case.error.is_some()).count();
        if args.only.is_none() {
            let said = |result: Result<f64>| result.map_err(|error| error.to_string());
            self.demo = Some(answers(args.device).map(|()| "same").map_err(|error| error.to_string()));
            self.bytes_per_second = Some(said(selftest::bandwidth(&*device)));
            self.crossing_seconds = Some(said(selftest::crossing(&*device)));
            self.fences = fences(opened);
            self.rdma = Some(examine(None));
        }
        Ok(())
    }

    fn is_right(&self) -> bool {
        let measured = [&self.bytes_per_second, &self.crossing_seconds];
        // a GPU that may not wait can still compute, by another fence
        let fenced = self.fences.iter().all(|found| found.error.is_none() || found.fence == SPIN);
        let wrong = self.demo.as_ref().is_some_and(std::result::Result::is_err) || !fenced;
        self.failed == 0 && !wrong && !measured.iter().any(|value| matches!(value, Some(Err(_))))
    }

    fn write(&self, args: &Args) -> Result<()> {
        let Some(path) = &args.report else { return Ok(()) };
        let text = serde_json::to_string_pretty(self).map_err(Error::from_std)?;
        std::fs::write(path, text + "\n").map_err(|error| Error::io(path, error))
    }

    fn lines(&self, args: &Args) -> Vec<String> {
        let worst = self.cases.iter().filter_map(|case| case.difference).fold(0.0f32, f32::max);
        let (device, count, refused) = (&self.device, self.cases.len(), self.kernels.refused.len());
        let failed = self.failed - refused;
        let mut lines = vec![format!("{device}: {failed} of {count} cases failed, largest difference {worst:.1e}")];
        if self.kernels.compiled + refused > 0 {
            lines.push(format!("kernels: {} compiled, {refused} refused", self.kernels.compiled));
        }
        lines.extend(self.demo.as_ref().map(|demo| match demo {
            Ok(_) => format!("demo: the same {ANSWER} tokens"),
            Err(error) => format!("demo: {error}"),
        }));
        let told = |value: &Measured, text: &dyn Fn(f64) -> String| {
            value.as_ref().map_or_else(Clone::clone, |value| text(*value))
        };
        let rate = |rate| scaled(rate, &["B/s", "kB/s", "MB/s", "GB/s", "TB/s"]);
        lines.extend(self.bytes_per_second.as_ref().map(|value| format!("weights are read at {}", told(value, &rate))));
        let time = |seconds: f64| format!("{:.1} µs", seconds * 1e6);
        let crossing = self.crossing_seconds.as_ref();
        lines.extend(crossing.map(|value| format!("from asking to having takes {}", told(value, &time))));
        lines.extend(self.fences.iter().map(|found| match (&found.error, found.seconds) {
            (None, Some(seconds)) => format!("--fence {}: {} a sum over ranks", found.fence, time(seconds)),
            (error, _) => format!("--fence {}: {}", found.fence, error.as_deref().unwrap_or("nothing")),
        }));
        lines.extend(self.rdma.as_ref().map(rdma));
        lines.extend(args.report.as_ref().map(|path| format!("report: {}", path.display())));
        lines
    }
}

/// The one fence that asks for what Apple does not document.
const SPIN: &str = "spin";

/// Sums over ranks as the GPU sees them, by every fence.
fn fences(opened: &Opened) -> Vec<Fenced> {
    let Some(gpu) = opened.gpu() else { return Vec::new() };
    let ways = [("drain", Fencing::Drain), ("event", Fencing::Event), (SPIN, Fencing::Spin)];
    let tried = ways.map(|(fence, way)| {
        let metal = Metal::with_fence(gpu.clone(), way.into());
        match selftest::crossings(&metal) {
            Ok(found) => {
                let (seconds, resubmissions) = (Some(found.seconds), found.resubmissions);
                Fenced { fence, seconds, resubmissions, error: None }
            }
            Err(error) => Fenced { fence, seconds: None, resubmissions: 0, error: Some(error.to_string()) },
        }
    });
    tried.into()
}

/// What there is of RDMA, in a line.
fn rdma(found: &Examined) -> String {
    if let Some(why) = &found.absent {
        return format!("rdma: {why}");
    }
    let device = |device: &Examination| match (&device.error, device.port) {
        (Some(error), _) => error.clone(),
        (None, None) => format!("{} (no cable)", device.name),
        (None, Some(_)) => device.name.clone(),
    };
    let devices: Vec<String> = found.devices.iter().map(device).collect();
    format!("rdma: {}", if devices.is_empty() { "no devices".to_owned() } else { devices.join(", ") })
}

/// Compiles all kernels, also those that no case needs.
fn compile(opened: &Opened) -> Kernels {
    let mut kernels = Kernels::default();
    let Some(gpu) = opened.gpu() else { return kernels };
    for name in gpu.kernels() {
        match gpu.kernel(&name) {
            Ok(_) => kernels.compiled += 1,
            Err(error) => {
                ui::say(format_args!("FAILED  {error}"));
                kernels.refused.push(error.to_string());
            }
        }
    }
    kernels
}

fn cases(args: &Args, opened: &Opened) -> Result<Vec<Found>> {
    // an instruction set is compared with none at all
    let reference = Cpu::with_isa(1, Isa::Scalar)?;
    let chosen = |name: &str| args.only.as_deref().is_none_or(|only| name.contains(only));
    let cases: Vec<_> = selftest::all().into_iter().filter(|case| chosen(&case.name)).collect();
    if cases.is_empty() {
        return Err(Error::usage("no case has such a name").hint("without --only all are run, by their names"));
    }
    let answering = interrupt::Answering::begin();
    let mut found = Vec::with_capacity(cases.len());
    for case in cases {
        answering.check()?;
        let start = Instant::now();
        // a backend of its own: a GPU's error stays
        let compared = opened.backend(Fencing::Event).and_then(|device| case.compare(&*device, &reference));
        let (difference, values) = compared.as_ref().map_or((None, 0), |found| (Some(found.largest), found.values));
        let error = compared.err().map(|error| error.to_string());
        let row = Found {
            name: case.name,
            tolerance: case.tolerance,
            difference,
            values,
            seconds: start.elapsed().as_secs_f64(),
            error,
        };
        match (&row.error, row.difference) {
            (Some(error), _) => ui::say(format_args!("FAILED  {error}")),
            (None, Some(difference)) if !args.quiet && !args.json => {
                ui::say(format_args!("ok {difference:>9.1e}  {}", row.name));
            }
            _ => {}
        }
        found.push(row);
    }
    Ok(found)
}

/// Whether the demo says the same on the device as on the processor.
fn answers(device: Computing) -> Result<()> {
    let (theirs, ours) = (answer(Computing::Cpu)?, answer(device)?);
    match ours.iter().zip(&theirs).position(|(a, b)| a != b) {
        None if ours.len() == theirs.len() => Ok(()),
        at => {
            Err(Error::msg(format!("the answer differs from token {} on", at.unwrap_or(ours.len().min(theirs.len())))))
        }
    }
}

fn answer(device: Computing) -> Result<Vec<u32>> {
    let model = ModelArgs { device, ..ModelArgs::of(None, None, true) };
    let mut loaded = model.load(None)?;
    let prompt = loaded.tokenizer()?.encode(PROMPT, true)?;
    let mut sequence = loaded.engine.start()?;
    let request = Request { prompt, max_tokens: ANSWER, eos: Vec::new(), sampling: Sampling::default() };
    let mut sampler = Sampler::new(Sampling::default(), 0);
    let mut go_on = |_: Event| ControlFlow::Continue(());
    let answer = generate(&mut loaded.engine, &mut sequence, &request, &mut sampler, &mut go_on)?;
    Ok(answer.tokens)
}
