//! `tbshard bench`: how fast a model runs here.

use std::time::Instant;

use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use super::caught::caught;
use super::load::{Loaded, ModelArgs};
use super::ranks::{FabricArg, RankArgs};
use super::{Outcome, interrupt, table, ui};
use crate::engine::Wanted;
use crate::error::{Error, Result};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Tokens a second of prompts and of answers.
    TokensPerSec(TokensPerSec),
    /// How long ranks of this machine take to sum a vector
    AllReduce(AllReduce),
}

#[derive(Debug, clap::Args)]
struct AllReduce {
    /// Ranks
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Ranks")]
    local: usize,
    /// What carries the vectors [default: shm]
    #[arg(long, value_enum, help_heading = "Ranks")]
    transport: Option<FabricArg>,
    /// Do not encrypt TCP, to see what encryption costs
    #[arg(long, conflicts_with = "transport", help_heading = "Ranks")]
    plain: bool,
    /// KiB of f32 a vector
    #[arg(long, value_name = "KIB,…", value_delimiter = ',', default_value = "4,20,64", help_heading = "Bench")]
    sizes: Vec<usize>,
    /// Repetitions
    #[arg(long, value_name = "N", default_value_t = 2000, help_heading = "Bench")]
    reps: usize,
    /// How the result is written
    #[arg(long, short, value_enum, default_value_t = Format::Md, help_heading = "Bench")]
    output: Format,
}

#[derive(Debug, clap::Args)]
struct TokensPerSec {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt lengths
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "512", help_heading = "Bench")]
    pp: Vec<usize>,
    /// Answer lengths
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "128", help_heading = "Bench")]
    tg: Vec<usize>,
    /// Repetitions; one more, not counted, warms up
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "Bench")]
    reps: usize,
    /// Run N ranks as processes on this machine, sharing every layer
    #[arg(long, value_name = "N", help_heading = "Ranks")]
    local: Option<usize>,
    /// What carries activations between them [default: shm]
    #[arg(long, value_enum, requires = "local", help_heading = "Ranks")]
    transport: Option<FabricArg>,
    /// How the result is written
    #[arg(long, short, value_enum, default_value_t = Format::Md, help_heading = "Bench")]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Md,
    Json,
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Line {
    model: String,
    backend: String,
    test: String,
    tokens: usize,
    tokens_per_second: Vec<f64>,
    mean: f64,
    sd: f64,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    match &args.what {
        What::TokensPerSec(args) => tokens_per_sec(args),
        What::AllReduce(args) => all_reduce(args),
    }
}

fn all_reduce(args: &AllReduce) -> Result<Outcome> {
    if args.reps == 0 || args.sizes.iter().any(|kib| !(1..=65_536).contains(kib)) {
        let error = Error::usage("bench all-reduce needs --reps above 0 and --sizes of 1 to 65536 KiB");
        return Err(error.hint("without them 4, 20 and 64 KiB are reduced 2000 times"));
    }
    let ranks = RankArgs::tensor(Some(args.local), if args.plain { Some(FabricArg::Plain) } else { args.transport });
    let sizes: Vec<usize> = args.sizes.iter().map(|kib| kib * 256).collect();
    let times = ranks.time_all_reduce(&sizes, args.reps)?;
    let mut rows = vec![["all_reduce", "ranks", "median", "p99"].map(str::to_owned)];
    let mut lines = Vec::new();
    for (kib, mut times) in args.sizes.iter().zip(times) {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] * 1e6;
        let (median, p99) = (at(0.5), at(0.99));
        rows.push([format!("{kib} KiB"), args.local.to_string(), format!("{median:.1} µs"), format!("{p99:.1} µs")]);
        lines.push(serde_json::json!({"kib": kib, "ranks": args.local, "median_us": median, "p99_us": p99}));
    }
    ui::print(&match args.output {
        Format::Md => table::markdown(&rows, &[1, 2, 3]) + "\n",
        Format::Json => serde_json::Value::from(lines).to_string() + "\n",
    })?;
    Ok(Outcome::Done)
}

fn tokens_per_sec(args: &TokensPerSec) -> Result<Outcome> {
    if args.reps == 0 {
        return Err(Error::usage("--reps 0 measures nothing").hint("5 is the default"));
    }
    interrupt::listen()?;
    let longest = args.pp.iter().chain(&args.tg).copied().max().unwrap_or(0);
    let ctx = args.model.ctx.unwrap_or(longest.max(1));
    if longest > ctx {
        return Err(Error::usage(format!("{longest} tokens do not fit --ctx {ctx}"))
            .hint("without --ctx the context is as long as needed"));
    }
    let ranks = RankArgs::tensor(args.local, args.transport);
    let mut loaded = ranks.load(&ModelArgs { ctx: Some(ctx), ..args.model.clone() })?;
    let result = caught(|| measure(args, &mut loaded));
    loaded.end(&ranks, result)
}

fn measure(args: &TokensPerSec, loaded: &mut Loaded) -> Result<Outcome> {
    let tests = args.pp.iter().map(|n| (*n, true)).chain(args.tg.iter().map(|n| (*n, false))).filter(|(n, _)| *n > 0);
    let tests: Vec<_> = tests.collect();
    if tests.is_empty() {
        return Err(Error::usage("--pp 0 and --tg 0 leave nothing to measure").hint("give one of them a length"));
    }
    let bar = ui::bar((tests.len() * (args.reps + 1)) as u64, "{msg} {bar:20} {pos}/{len} eta {eta}", args.model.quiet);
    let mut lines = Vec::new();
    for (tokens, prompt) in tests {
        let test = format!("{}{tokens}", if prompt { "pp" } else { "tg" });
        bar.set_message(test.clone());
        let mut rates = Vec::new();
        for rep in 0..=args.reps {
            let seconds = if prompt { time_prompt(loaded, tokens)? } else { time_answer(loaded, tokens)? };
            if rep > 0 {
                rates.push(tokens as f64 / seconds);
            }
            bar.inc(1);
        }
        let (mean, sd) = mean_and_sd(&rates);
        let ranks = args.local.map(|ranks| format!(", {ranks} ranks")).unwrap_or_default();
        let (model, backend) = (args.model.label(), loaded.engine.backend_name() + &ranks);
        lines.push(Line { model, backend, test, tokens, tokens_per_second: rates, mean, sd });
    }
    bar.finish_and_clear();
    let text = match args.output {
        Format::Json => serde_json::to_string(&lines).map_err(Error::from_std)?,
        Format::Md => {
            let mut rows = vec![["model", "backend", "test", "tok/s"].map(str::to_owned)];
            for line in &lines {
                let rate = format!("{:.2} ± {:.2}", line.mean, line.sd);
                rows.push([line.model.clone(), line.backend.clone(), line.test.clone(), rate]);
            }
            table::markdown(&rows, &[2, 3])
        }
    };
    ui::print(&format!("{text}\n"))?;
    Ok(Outcome::Done)
}

/// Token ids that are not all the same row of the embedding.
fn token(i: usize, vocab: usize) -> u32 {
    (i.wrapping_mul(2_654_435_761) % vocab) as u32
}

fn time_prompt(loaded: &mut Loaded, tokens: usize) -> Result<f64> {
    let vocab = loaded.engine.model().geometry.vocab;
    let prompt: Vec<u32> = (0..tokens).map(|i| token(i, vocab)).collect();
    let mut sequence = loaded.engine.start()?;
    let start = Instant::now();
    loaded.engine.prefill(&mut sequence, &prompt, &mut |_| true)?;
    let seconds = start.elapsed().as_secs_f64();
    loaded.engine.end(sequence)?;
    Ok(seconds)
}

fn time_answer(loaded: &mut Loaded, tokens: usize) -> Result<f64> {
    let vocab = loaded.engine.model().geometry.vocab;
    let mut sequence = loaded.engine.start()?;
    let start = Instant::now();
    for i in 0..tokens {
        loaded.engine.forward(&mut [(&mut sequence, &[token(i, vocab)])], Wanted::Last, None)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    loaded.engine.end(sequence)?;
    Ok(seconds)
}

fn mean_and_sd(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt())
}
