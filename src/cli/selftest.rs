//! `tbshard selftest`: does this machine compute what it should, and how fast is it?

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::device::Computing;
use super::load::{ModelArgs, all_cores};
use super::numbers::Rounding;
use super::table::scaled;
use super::{Outcome, interrupt, ui};
use crate::backend::cpu::Isa;
use crate::backend::{Backend, Cpu};
use crate::cluster::facts::Facts;
use crate::engine::{Event, Request, Sampler, Sampling, generate};
use crate::error::{Error, Result};
use crate::selftest;

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

pub(super) fn run(args: &Args) -> Result<Outcome> {
    interrupt::listen()?;
    // an instruction set is compared with none at all
    let (device, reference) = (args.device.backend(Rounding::Exact, all_cores())?, Cpu::with_isa(1, Isa::Scalar)?);
    let report_path = args.report.as_ref();
    if let Some(path) = report_path {
        // better now than after all the work
        std::fs::write(path, "").map_err(|error| Error::io(path, error))?;
    }
    let found = cases(args, &*device, &reference)?;
    let all = args.only.is_none();
    let answer = if all { Some(answers(args.device)) } else { None };
    let measured: Option<(Measured, Measured)> = all.then(|| {
        let said = |result: Result<f64>| result.map_err(|error| error.to_string());
        (said(selftest::bandwidth(&*device)), said(selftest::crossing(&*device)))
    });
    let failed = found.iter().filter(|found| found.error.is_some()).count();
    let wrong = answer.as_ref().is_some_and(Result::is_err)
        || measured.as_ref().is_some_and(|(bandwidth, crossing)| bandwidth.is_err() || crossing.is_err());
    let told = |result: &Measured| result.as_ref().map_or_else(|error| json!({ "error": error }), |value| json!(value));
    // nothing of its networks: the report is for others
    let facts = Facts::here();
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "build": env!("TBSHARD_BUILD"),
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "cpu": facts.cpu,
        "cores": facts.cores,
        "memory": facts.memory,
        "wired_limit": facts.wired_limit,
        "device": device.name(),
        "cases": found,
        "failed": failed,
        "demo": answer.as_ref().map(|answer| answer.as_ref().map_or_else(|error| error.to_string(), |()| "same".into())),
        "bytes_per_second": measured.as_ref().map(|(bandwidth, _)| told(bandwidth)),
        "crossing_seconds": measured.as_ref().map(|(_, crossing)| told(crossing)),
    });
    if let Some(path) = report_path {
        let text = serde_json::to_string_pretty(&report).map_err(Error::from_std)?;
        std::fs::write(path, text + "\n").map_err(|error| Error::io(path, error))?;
    }
    let mut lines = Vec::new();
    if args.json {
        lines.push(report.to_string());
    } else {
        let worst = found.iter().filter_map(|found| found.difference).fold(0.0f32, f32::max);
        lines.push(format!(
            "{}: {} of {} cases failed, largest difference {worst:.1e}",
            device.name(),
            failed,
            found.len()
        ));
        match &answer {
            Some(Ok(())) => lines.push(format!("demo: the same {ANSWER} tokens")),
            Some(Err(error)) => lines.push(format!("demo: {error}")),
            None => {}
        }
        if let Some((bandwidth, crossing)) = &measured {
            let bandwidth = bandwidth.as_ref().map(|rate| scaled(*rate, &["B/s", "kB/s", "MB/s", "GB/s", "TB/s"]));
            let crossing = crossing.as_ref().map(|seconds| format!("{:.1} µs", seconds * 1e6));
            lines.push(format!("weights are read at {}", bandwidth.unwrap_or_else(Clone::clone)));
            lines.push(format!("from asking to having takes {}", crossing.unwrap_or_else(Clone::clone)));
        }
        lines.extend(report_path.map(|path| format!("report: {}", path.display())));
    }
    ui::print(&(lines.join("\n") + "\n"))?;
    if failed > 0 || wrong {
        let error = Error::msg("this machine does not compute what it should");
        return Err(error.hint("please report it with the file that --report writes; another --device may do"));
    }
    Ok(Outcome::Done)
}

fn cases(args: &Args, device: &dyn Backend, reference: &dyn Backend) -> Result<Vec<Found>> {
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
        let compared = case.compare(device, reference);
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
