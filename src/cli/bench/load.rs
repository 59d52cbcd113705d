//! `tbshard bench load`: how long it takes from the start of the program to the first token, cold and warm.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::Serialize;

use super::cache;
use super::first::{Ask, PHASES, Phase, Told};
use super::output::{Format, Writer};
use super::statistics::mean_and_sd;
use crate::cli::load::{ModelArgs, all_cores, threads};
use crate::cli::numbers::Weights;
use crate::cli::{Outcome, interrupt, table, ui};
use crate::error::{Error, Result};

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
This program is started anew for every repetition, and timed from before its start until it has said its first token. Cold is \
after the system was asked to forget the model's files and the program (posix_fadvise, which needs no privileges and spares \
what other processes map; the caches of a disk, or of a host of virtual machines, are beyond it). Warm is again, once they are in \
memory. Where a system cannot be asked (macOS), or does not do it, that is said.

Keys of a row, a phase, in json, jsonl and csv (which leaves the samples out): bench, version, build, model, n_threads, cache \
(cold, warm), phase (start, open, tokenizer, load, prefill, first token, total), prompt_tokens, reps, samples_s, avg_s, \
stddev_s, bytes (of files, read or mapped into the process, the mean), gb_per_s (that by avg_s), disk_bytes (what of it came from a \
disk), token (the first token).")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Bench")]
    threads: Option<usize>,
    /// The prompt; a model without a tokenizer has eight tokens instead
    #[arg(long, value_name = "TEXT", default_value = "Tell me a story.", help_heading = "Bench")]
    prompt: String,
    /// Starts, cold and again warm; one more start comes before the warm ones and is not counted
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "Bench")]
    reps: usize,
    /// How the result is written
    #[arg(long, short, value_enum, default_value_t = Format::Md, help_heading = "Bench")]
    output: Format,
}

/// One phase of cold or warm starts.
#[derive(Debug, Clone, Serialize)]
struct Row {
    bench: &'static str,
    version: &'static str,
    build: &'static str,
    model: String,
    n_threads: usize,
    cache: &'static str,
    phase: &'static str,
    prompt_tokens: usize,
    reps: usize,
    samples_s: Vec<f64>,
    avg_s: f64,
    stddev_s: f64,
    bytes: Option<f64>,
    gb_per_s: Option<f64>,
    disk_bytes: Option<f64>,
    token: u32,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    if args.reps == 0 {
        return Err(Error::usage("--reps 0 measures nothing").hint("5 is the default"));
    }
    if args.model.weights == Weights::Random {
        let error = Error::usage("random weights are on no disk to be loaded from");
        return Err(error.hint("leave out --weights random, or measure with `bench tokens-per-sec`"));
    }
    if args.prompt.is_empty() {
        return Err(Error::usage("the prompt is empty").hint("give it some text"));
    }
    let threads = threads(args.threads)?.unwrap_or_else(all_cores);
    interrupt::listen()?;
    // nothing of it stays mapped here, which would keep it in the page cache
    let opened = args.model.open()?;
    let files = cache::files(opened.directory())?;
    let mut model = ModelArgs { quiet: true, ..args.model.for_elsewhere() };
    if let Some(dir) = opened.directory() {
        let dir = std::path::absolute(dir).ok().and_then(|dir| dir.to_str().map(str::to_owned));
        // found already, in the hub's cache for instance
        (model.model, model.revision) = (dir.or(model.model), None);
    }
    drop(opened);
    let ask = Ask { model, threads, prompt: args.prompt.clone() };
    let bar = ui::bar(2 * args.reps as u64 + 1, "{msg} {bar:20} {pos}/{len}", args.model.quiet);
    let mut writer = Writer::new(args.output);
    let cold = starts(&ask, args.reps, &mut || {
        bar.set_message("cold");
        bar.inc(1);
        cache::forget(&files)
    })?;
    match &cold {
        Some(starts) => rows(&ask, args, "cold", starts).into_iter().try_for_each(|row| writer.push(row))?,
        None => ui::say(
            "note: this system cannot be asked to forget files, so nothing is cold (on macOS, `sudo purge` does it)",
        ),
    }
    once(&ask)?;
    let warm = starts(&ask, args.reps, &mut || {
        bar.set_message("warm");
        bar.inc(1);
        Ok(true)
    })?;
    bar.finish_and_clear();
    rows(&ask, args, "warm", warm.iter().flatten()).into_iter().try_for_each(|row| writer.push(row))?;
    let all = cold.iter().chain(&warm).flatten();
    let tokens: Vec<u32> = all.map(|start| start.told.token).collect();
    cold.iter().for_each(|starts| say_what_stayed(starts, &files));
    writer.finish(markdown)?;
    if tokens.iter().any(|token| *token != tokens[0]) {
        let error = Error::msg(format!("the first token is not always the same: {tokens:?}"));
        return Err(error.hint("this is a bug or a broken machine; if it happens again, report it with this command"));
    }
    Ok(Outcome::Done)
}

/// One start.
struct Start {
    seconds: f64,
    told: Told,
}

/// Starts the program `reps` times; `before` makes ready, and says whether it can.
fn starts(ask: &Ask, reps: usize, before: &mut dyn FnMut() -> Result<bool>) -> Result<Option<Vec<Start>>> {
    let mut all = Vec::new();
    for _ in 0..reps {
        if !before()? {
            return Ok(None);
        }
        all.push(once(ask)?);
    }
    Ok(Some(all))
}

fn once(ask: &Ask) -> Result<Start> {
    let program = std::env::current_exe().map_err(|error| Error::from_std(error).context("where this program is"))?;
    let ask = serde_json::to_string(ask).map_err(Error::from_std)?;
    let mut command = Command::new(program);
    command.args(["bench", "first-token", &ask]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let wrong = |error: std::io::Error| Error::from_std(error).context("cannot start this program");
    let start = Instant::now();
    let mut child = command.spawn().map_err(wrong)?;
    let (mut line, mut said) = (String::new(), String::new());
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(wrong)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said).map_err(wrong)?;
    }
    let status = child.wait().map_err(wrong)?;
    match serde_json::from_str(&line) {
        Ok(told) if status.success() => Ok(Start { seconds, told }),
        _ => {
            let find = |prefix: &str| said.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned);
            let error = find("error: ").unwrap_or_else(|| format!("the program that was timed ended: {status}"));
            Err(Error::msg(error).hint(find("hint: ").unwrap_or_else(|| "see what `tbshard generate` says".to_owned())))
        }
    }
}

/// A row for every phase, and one for all of them.
fn rows<'a>(ask: &Ask, args: &Args, cache: &'static str, starts: impl IntoIterator<Item = &'a Start>) -> Vec<Row> {
    let starts: Vec<&Start> = starts.into_iter().collect();
    let phase = |start: &Start, index: usize| {
        let mut phase = start.told.phases.get(index).copied().unwrap_or_default();
        if index == 0 {
            phase.seconds = start.seconds - start.told.phases.iter().map(|phase| phase.seconds).sum::<f64>();
        }
        phase
    };
    let total = |start: &Start| {
        let sum = |value: fn(&Phase) -> Option<u64>| start.told.phases.iter().map(value).sum::<Option<u64>>();
        Phase { seconds: start.seconds, bytes: sum(|phase| phase.bytes), disk: sum(|phase| phase.disk) }
    };
    let row = |name: &'static str, phases: Vec<Phase>| {
        let samples_s: Vec<f64> = phases.iter().map(|phase| phase.seconds).collect();
        let (avg_s, stddev_s) = mean_and_sd(&samples_s);
        let mean = |value: fn(&Phase) -> Option<u64>| {
            let sum = phases.iter().map(value).sum::<Option<u64>>();
            sum.map(|sum| sum as f64 / phases.len() as f64)
        };
        let bytes = mean(|phase| phase.bytes);
        Row {
            bench: "load",
            version: env!("CARGO_PKG_VERSION"),
            build: crate::cli::agent::BUILD,
            model: args.model.label(),
            n_threads: ask.threads,
            cache,
            phase: name,
            prompt_tokens: starts.first().map_or(0, |start| start.told.prompt_tokens),
            reps: starts.len(),
            samples_s,
            avg_s,
            stddev_s,
            bytes,
            gb_per_s: bytes.map(|bytes| bytes / avg_s / 1e9),
            disk_bytes: mean(|phase| phase.disk),
            token: starts.first().map_or(0, |start| start.told.token),
        }
    };
    let of = |index: usize| starts.iter().map(|start| phase(start, index)).collect();
    let mut rows: Vec<Row> = PHASES.iter().enumerate().map(|(index, name)| row(name, of(index))).collect();
    rows.push(row("total", starts.iter().map(|start| total(start)).collect()));
    rows
}

/// Says if cold starts found most of what they read in memory nevertheless.
fn say_what_stayed(cold: &[Start], files: &[PathBuf]) {
    let sum = |value: fn(&Phase) -> Option<u64>| -> Option<u64> {
        cold.iter().flat_map(|start| &start.told.phases).map(value).sum()
    };
    let Some((bytes, disk)) = sum(|phase| phase.bytes).zip(sum(|phase| phase.disk)) else {
        return ui::say(
            "note: this system does not tell what came from a disk, so nobody knows how cold the cold starts were",
        );
    };
    if disk < bytes / 2 {
        ui::say(format_args!(
            "note: only {:.0} % of what cold starts read came from a disk: the system did not forget `{}` when it was asked \
             to (another process has it mapped, or it is in a file system of memory)",
            100.0 * disk as f64 / bytes.max(1) as f64,
            files.last().map(|file| file.display().to_string()).unwrap_or_default()
        ));
    }
}

fn markdown(rows: &[Row]) -> String {
    let heading = ["model", "cache", "phase", "ms", "MB", "GB/s", "MB from disk"];
    let mut lines = vec![heading.map(str::to_owned)];
    let or = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    for row in rows {
        lines.push([
            row.model.clone(),
            row.cache.to_owned(),
            row.phase.to_owned(),
            format!("{:.2} ± {:.2}", row.avg_s * 1e3, row.stddev_s * 1e3),
            or(row.bytes.map(|bytes| format!("{:.1}", bytes / 1e6))),
            or(row.gb_per_s.map(|rate| format!("{rate:.2}"))),
            or(row.disk_bytes.map(|bytes| format!("{:.1}", bytes / 1e6))),
        ]);
    }
    table::markdown(&lines, &[3, 4, 5, 6])
}
