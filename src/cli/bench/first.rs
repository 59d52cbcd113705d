//! The program whose start `bench load` times: to the first token and no further, with notes on the way.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::cli::load::{Loaded, ModelArgs};
use crate::cli::loading::Means;
use crate::cli::prompt::{plain, render};
use crate::cli::{Outcome, ui};
use crate::comm::Ranks;
use crate::engine::{Sampler, Sampling};
use crate::error::{Error, Result};
use crate::partition::Plan;
use crate::text::Message;

/// The parts of a start, in their order. How long the first takes only the starter knows.
pub(super) const PHASES: [&str; 6] = ["start", "open", "tokenizer", "load", "prefill", "first token"];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to do, as JSON
    ask: String,
}

/// What to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Ask {
    pub(super) model: ModelArgs,
    pub(super) threads: usize,
    pub(super) prompt: String,
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Told {
    /// As many as there are phases.
    pub(super) phases: Vec<Phase>,
    pub(super) prompt_tokens: usize,
    /// The first token.
    pub(super) token: u32,
}

/// One part of the start.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Phase {
    pub(super) seconds: f64,
    /// Bytes of files that came into this process, read or mapped, if the system tells.
    pub(super) bytes: Option<u64>,
    /// Of them, bytes that came from a disk.
    pub(super) disk: Option<u64>,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let mut clock = Clock::start();
    let ask: Ask = serde_json::from_str(&args.ask).map_err(|error| {
        let error = Error::usage(format!("this is no task of `bench load`: {error}"));
        error.hint("`tbshard bench load` starts this command")
    })?;
    let opened = ask.model.open()?;
    clock.lap();
    let texts = opened.texts()?;
    clock.lap();
    let plan = Plan::solo(opened.blueprint.geometry.layers);
    let mut loaded = opened.load(texts, &ask.model, &plan, Ranks::solo(), Means::whole(Some(ask.threads)), &|_| ())?;
    clock.lap();
    let prompt = tokens(&loaded, &ask.prompt)?;
    let mut sequence = loaded.engine.start()?;
    let logits = loaded.engine.prefill(&mut sequence, &prompt, &mut |_| true)?;
    let logits = logits.ok_or_else(|| Error::msg("the prompt was not run to its end"))?;
    clock.lap();
    let token = Sampler::new(Sampling::default(), 0).choose(logits.row(0), sequence.len());
    if let Some(tokenizer) = &loaded.tokenizer {
        // a user sees text
        tokenizer.stream(true).push(token)?;
    }
    clock.lap();
    let told = Told { phases: clock.phases, prompt_tokens: prompt.len(), token };
    ui::print(&format!("{}\n", serde_json::to_string(&told).map_err(Error::from_std)?))?;
    Ok(Outcome::Done)
}

/// The prompt as `generate` would have it; a few ids where there is no tokenizer.
fn tokens(loaded: &Loaded, prompt: &str) -> Result<Vec<u32>> {
    if loaded.tokenizer.is_none() {
        return Ok((0..8).map(|id| id % loaded.engine.model().geometry.vocab as u32).collect());
    }
    let prompt = match &loaded.template {
        Some(_) => render(loaded, &[Message::user(prompt.to_owned())], None)?,
        None => plain(loaded, prompt)?,
    };
    Ok(prompt.tokens)
}

/// Notes times and bytes.
struct Clock {
    phases: Vec<Phase>,
    at: (Instant, Counters),
}

impl Clock {
    /// Begins after what came before this function: the first phase.
    fn start() -> Self {
        let now = Counters::now();
        let start = Phase { seconds: 0.0, bytes: now.bytes(), disk: now.disk };
        Self { phases: vec![start], at: (Instant::now(), now) }
    }

    /// Ends a phase, and begins the next.
    fn lap(&mut self) {
        let ((start, before), now) = (&self.at, Counters::now());
        let seconds = start.elapsed().as_secs_f64();
        let since = |now: Option<u64>, before: Option<u64>| Some(now?.saturating_sub(before?));
        let (bytes, disk) = (since(now.bytes(), before.bytes()), since(now.disk, before.disk));
        self.phases.push(Phase { seconds, bytes, disk });
        self.at = (Instant::now(), now);
    }
}

/// What the system counts of this process, in bytes.
struct Counters {
    // asked for with read(2)
    read: Option<u64>,
    // of mapped files, in memory here
    mapped: Option<u64>,
    // from a disk, for both
    disk: Option<u64>,
}

impl Counters {
    fn now() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (io, status) = (text("/proc/self/io"), text("/proc/self/status"));
        Self {
            read: number(&io, "rchar:"),
            mapped: number(&status, "RssFile:").map(|kib| kib * 1024),
            disk: number(&io, "read_bytes:"),
        }
    }

    fn bytes(&self) -> Option<u64> {
        Some(self.read? + self.mapped?)
    }
}

/// The number after `key` at the start of a line.
fn number(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}
