//! What happened so far, as Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::desk::{Desk, Phase};
use crate::engine::Counts;

/// Seconds, of which a histogram tells how often they were enough.
const FIRST: [f64; 13] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
const TOKEN: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Counters and histograms of a server.
#[derive(Debug, Default)]
pub struct Metrics {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    // by endpoint and status
    requests: BTreeMap<(&'static str, u16), u64>,
    first: Histogram<13>,
    token: Histogram<12>,
    // of this run of the engine, and of those before
    now: Counts,
    before: Counts,
    cancelled: u64,
    relaunches: u64,
}

#[derive(Debug)]
struct Histogram<const N: usize> {
    counts: [u64; N],
    count: u64,
    sum: f64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { counts: [0; N], count: 0, sum: 0.0 }
    }
}

impl<const N: usize> Histogram<N> {
    fn add(&mut self, bounds: &[f64; N], seconds: f64) {
        if let Some(at) = bounds.iter().position(|bound| seconds <= *bound) {
            self.counts[at] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str, bounds: &[f64; N]) {
        head(out, name, help, "histogram");
        let mut below = 0;
        for (bound, count) in bounds.iter().zip(self.counts) {
            below += count;
            line(out, &format!("{name}_bucket{{le=\"{bound}\"}}"), below);
        }
        line(out, &format!("{name}_bucket{{le=\"+Inf\"}}"), self.count);
        line(out, &format!("{name}_sum"), self.sum);
        line(out, &format!("{name}_count"), self.count);
    }
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    // a string takes whatever is written
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name} {value}");
}

/// What a path is counted as: what strangers ask for must not become names.
fn endpoint(path: &str) -> &'static str {
    const KNOWN: [&str; 6] = ["/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/"];
    let known = KNOWN.iter().find(|known| **known == path).copied();
    known.unwrap_or(if path.starts_with("/v1/models/") { "/v1/models" } else { "other" })
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn request(&self, path: &str, status: u16) {
        *self.lock().requests.entry((endpoint(path), status)).or_insert(0) += 1;
    }

    pub(super) fn first_token(&self, after: Duration) {
        self.lock().first.add(&FIRST, after.as_secs_f64());
    }

    pub(super) fn token(&self, after: Duration) {
        self.lock().token.add(&TOKEN, after.as_secs_f64());
    }

    pub(super) fn cancelled(&self, jobs: usize) {
        self.lock().cancelled += jobs as u64;
    }

    pub(super) fn counts(&self, counts: Counts) {
        self.lock().now = counts;
    }

    /// The run has ended: what it counted is kept, what it had is gone.
    pub(super) fn forget_run(&self) {
        let mut inner = self.lock();
        let now = std::mem::take(&mut inner.now);
        inner.before.preempted += now.preempted;
        inner.before.prompt_tokens += now.prompt_tokens;
        inner.before.shared_tokens += now.shared_tokens;
        inner.before.generated_tokens += now.generated_tokens;
        inner.before.steps += now.steps;
    }

    /// The model is loaded once more.
    pub fn relaunched(&self) {
        self.lock().relaunches += 1;
    }

    /// The text that Prometheus reads.
    pub(super) fn text(&self, desk: &Desk) -> String {
        let (open, ready) = (desk.open(), desk.phase() == Phase::Ready);
        let inner = self.lock();
        let Inner { requests, first, token, now, before, cancelled, relaunches } = &*inner;
        let mut out = String::new();
        let name = "tbshard_requests_total";
        head(&mut out, name, "Requests, by endpoint and status.", "counter");
        for ((endpoint, status), count) in requests {
            line(&mut out, &format!("{name}{{endpoint=\"{endpoint}\",status=\"{status}\"}}"), count);
        }
        let running = now.running.min(open);
        let gauges = [
            ("tbshard_ready", "Whether the model answers.", u64::from(ready)),
            ("tbshard_answers_running", "Answers under way.", running as u64),
            ("tbshard_answers_waiting", "Answers that wait for a place.", (open - running) as u64),
            ("tbshard_cache_pages", "Pages of the KV cache.", now.pages as u64),
            (
                "tbshard_cache_pages_held",
                "Pages that answers under way hold.",
                now.pages.saturating_sub(now.free + now.cached) as u64,
            ),
            ("tbshard_cache_pages_kept", "Pages that are kept for prompts to come.", now.cached as u64),
        ];
        let counters = [
            (
                "tbshard_prompt_tokens_total",
                "Tokens of prompts that were run.",
                before.prompt_tokens + now.prompt_tokens,
            ),
            (
                "tbshard_shared_tokens_total",
                "Tokens of prompts that were there from other prompts.",
                before.shared_tokens + now.shared_tokens,
            ),
            (
                "tbshard_generated_tokens_total",
                "Tokens that were chosen.",
                before.generated_tokens + now.generated_tokens,
            ),
            ("tbshard_steps_total", "Steps of the engine.", before.steps + now.steps),
            (
                "tbshard_preemptions_total",
                "Answers that gave up their place for a while.",
                before.preempted + now.preempted,
            ),
            ("tbshard_cancelled_total", "Answers whose client left before their end.", *cancelled),
            ("tbshard_relaunches_total", "Times that the model was loaded again.", *relaunches),
        ];
        for (kind, values) in [("gauge", &gauges[..]), ("counter", &counters[..])] {
            for (name, help, value) in values {
                head(&mut out, name, help, kind);
                line(&mut out, name, value);
            }
        }
        first.write(&mut out, "tbshard_first_token_seconds", "From a request to its first token.", &FIRST);
        token.write(&mut out, "tbshard_token_seconds", "From one token of an answer to the next.", &TOKEN);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let (desk, metrics) = (Desk::new(1, 1), Metrics::default());
        [2, 30, 600].iter().for_each(|millis| metrics.token(Duration::from_millis(*millis)));
        metrics.request("/v1/models/a/b", 200);
        metrics.request("/etc/passwd\"", 404);
        let text = metrics.text(&desk);
        for line in [
            "tbshard_token_seconds_bucket{le=\"0.0025\"} 1",
            "tbshard_token_seconds_bucket{le=\"0.05\"} 2",
            "tbshard_token_seconds_bucket{le=\"+Inf\"} 3",
            "tbshard_requests_total{endpoint=\"/v1/models\",status=\"200\"} 1",
            "tbshard_requests_total{endpoint=\"other\",status=\"404\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }
}
