//! What a person sees of a batch: a bar or a line now and then, and a table at the end.

use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::json;

use super::rows::Rows;
use crate::cli::{table, ui};
use crate::engine::Counts;
use crate::error::{Error, Result};

/// How often a line tells how far it is where there is no terminal.
const EVERY: Duration = Duration::from_secs(30);

/// Over how long a rate is taken.
const RATE: Duration = Duration::from_secs(2);

/// Where the summary goes.
#[derive(Debug, Clone)]
pub(super) enum Summary {
    Table,
    Json,
    File(String),
}

/// Watches a run.
pub(super) struct Watch {
    bar: ProgressBar,
    quiet: bool,
    /// Lines of the input, if they were counted.
    total: Option<u64>,
    /// Rows that were there.
    before: u64,
    begun: bool,
    start: Instant,
    said: Instant,
    /// When it was looked at, how many tokens there were, and how many a second.
    rate: (Instant, u64, f64),
    counts: Counts,
}

impl Watch {
    pub(super) fn new(total: Option<u64>, before: u64, quiet: bool) -> Self {
        let template = match total {
            Some(_) => "{bar:20} {pos}/{len} rows{msg} eta {eta}",
            None => "{spinner} {pos} rows{msg}",
        };
        let bar = ui::bar(total.unwrap_or(0), template, quiet);
        let now = Instant::now();
        let counts = Counts::default();
        Self { bar, quiet, total, before, begun: false, start: now, said: now, rate: (now, 0, 0.0), counts }
    }

    /// Shows how far it is.
    pub(super) fn show(&mut self, rows: &Rows, counts: &Counts) {
        self.counts = *counts;
        let (since, tokens, rate) = self.rate;
        if since.elapsed() >= RATE {
            let now = (counts.generated_tokens - tokens) as f64 / since.elapsed().as_secs_f64();
            let smooth = if rate > 0.0 { 0.6 * rate + 0.4 * now } else { now };
            self.rate = (Instant::now(), counts.generated_tokens, smooth);
        }
        let at = rows.done + if self.total.is_some() { self.before } else { 0 };
        if !self.bar.is_hidden() {
            // not before there is something to show: other bars come first
            if !std::mem::replace(&mut self.begun, true) {
                self.bar.set_position(at - rows.done);
                self.bar.reset_eta();
                self.bar.enable_steady_tick(Duration::from_millis(200));
            }
            self.bar.set_position(at);
            self.bar.set_message(self.message(rows));
        } else if !self.quiet && self.said.elapsed() >= EVERY {
            self.said = Instant::now();
            ui::say(format_args!("{}{}{}", self.place(at), self.message(rows), self.left(rows)));
        }
    }

    fn place(&self, at: u64) -> String {
        self.total.map_or_else(|| format!("{at} rows"), |total| format!("{at}/{total} rows"))
    }

    fn message(&self, rows: &Rows) -> String {
        let errors = match rows.failed {
            0 => String::new(),
            1 => ", 1 error".to_owned(),
            count => format!(", {count} errors"),
        };
        let rate = if self.rate.2 > 0.0 { format!(", {:.0} tok/s", self.rate.2) } else { String::new() };
        errors + &rate
    }

    fn left(&self, rows: &Rows) -> String {
        let (Some(total), true) = (self.total, rows.done > 0) else { return String::new() };
        let left = total.saturating_sub(self.before + rows.done) as f64;
        let seconds = self.start.elapsed().as_secs_f64() / rows.done as f64 * left;
        format!(", {} left", indicatif::HumanDuration(Duration::from_secs(seconds as u64)))
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Tells what was done.
    ///
    /// # Errors
    /// If the file for it cannot be written.
    pub(super) fn summary(&self, rows: &Rows, to: &Summary) -> Result<()> {
        self.clear();
        let (counts, seconds) = (&self.counts, self.start.elapsed().as_secs_f64());
        let rate = counts.generated_tokens as f64 / seconds.max(1e-9);
        let json = || {
            let object = json!({
                "rows": rows.done, "errors": rows.failed, "rows_before": self.before,
                "prompt_tokens": counts.prompt_tokens + counts.shared_tokens, "shared_tokens": counts.shared_tokens,
                "generated_tokens": counts.generated_tokens, "tokens_per_second": rate, "seconds": seconds,
                "preemptions": counts.preempted,
            });
            format!("{object}\n")
        };
        match to {
            Summary::File(path) => {
                let path = Path::new(path);
                std::fs::write(path, json()).map_err(|error| Error::io(path, error))?;
            }
            Summary::Json => ui::say(json().trim_end()),
            Summary::Table if self.quiet => {}
            Summary::Table => {
                let heading =
                    ["rows", "errors", "before", "prompt tok", "shared", "generated", "tok/s", "time", "preempted"];
                let numbers = [rows.done, rows.failed, self.before];
                let tokens =
                    [counts.prompt_tokens + counts.shared_tokens, counts.shared_tokens, counts.generated_tokens];
                let mut row: Vec<String> = numbers.iter().chain(&tokens).map(u64::to_string).collect();
                row.extend([format!("{rate:.0}"), format!("{seconds:.1} s"), counts.preempted.to_string()]);
                let rows = [heading.map(str::to_owned).to_vec(), row];
                ui::say(table::aligned(&rows, &[0, 1, 2, 3, 4, 5, 6, 7, 8]));
            }
        }
        Ok(())
    }
}
