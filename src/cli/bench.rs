//! `tbshard bench`: how fast a model runs here.

use std::time::Instant;

use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use super::load::{Loaded, ModelArgs};
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
    let What::TokensPerSec(args) = &args.what;
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
    let mut loaded = ModelArgs { ctx: Some(ctx), ..args.model.clone() }.load()?;
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
            let seconds = if prompt { time_prompt(&mut loaded, tokens)? } else { time_answer(&mut loaded, tokens)? };
            if rep > 0 {
                rates.push(tokens as f64 / seconds);
            }
            bar.inc(1);
        }
        let (mean, sd) = mean_and_sd(&rates);
        let (model, backend) = (args.model.label(), loaded.engine.backend_name());
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
    loaded.engine.end(sequence);
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
    loaded.engine.end(sequence);
    Ok(seconds)
}

fn mean_and_sd(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt())
}
