//! One row of `bench tokens-per-sec`: what was measured, how, and what came out.

use serde::{Deserialize, Serialize};

use crate::cli::table;

/// What the rows of this benchmark say they are.
pub(super) const BENCH: &str = "tokens-per-sec";

/// The keys of a row. Those that llama-bench has too mean the same as there. Lists that end in `_seconds` or `_bytes` have a
/// value a rank.
pub(super) const KEYS: &str = "\
Keys of a row in json, jsonl and csv (which leaves samples out and joins lists by spaces). Those
that llama-bench has too mean the same there.
  bench version build        what wrote the row; build is a digest of the sources
  cpu_info                   the processor
  model model_digest         what was asked for; a digest of its config and headers
  model_size model_n_params  bytes of all weights that are run, and how many there are
  arithmetic backend         what is rounded where; what computed
  n_threads n_ranks layout   threads of a rank; ranks; alone, tp2, pp2, tp2×pp2
  transport                  what carried activations between ranks: shm, tcp
  test                       the test in words, as in the table
  n_prompt n_gen             tokens of every sequence's prompt, or answer; the other is 0
  n_depth batch              tokens that every sequence holds before; sequences at once
  samples_ns samples_ts      of every repetition: nanoseconds; tokens a second of all sequences
  avg_ns stddev_ns           the mean of the nanoseconds, and the standard deviation (n - 1)
  avg_ts stddev_ts           the same of the tokens a second
  weights_bytes              by rank: bytes of weights that it holds
  compute_seconds            by rank, the mean of the repetitions: computing,
  wire_seconds               packing, sending and summing what ranks exchange,
  wait_seconds               waiting for other ranks,
  sent_bytes                 bytes sent
  bytes_per_token            bytes that a token of an answer must read: weights, and what its
                             sequence has left behind; not known of prompts, nor of several
                             sequences of a mixture of experts
  memory_bandwidth           bytes a second that all cores together read, measured before: the
                             fastest of five passes over 128 MiB a core
  bandwidth_percent          bytes_per_token times avg_ts, of it
  speedup                    avg_ts by that of one rank with as many threads
  efficiency_percent         speedup by ranks
  checksum                   of what the first sequence would choose, and of its last logits
  old_avg_ts change_percent  with --compare: the old mean, and the change
  p_value verdict            Welch's t-test; slower, same or faster: what p is below 5 % by the
                             number of rows, and the change above --threshold, is called changed";

/// A row.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "KEYS says it once, for users too")]
pub(super) struct Row {
    pub(super) bench: String,
    pub(super) version: String,
    pub(super) build: String,
    pub(super) cpu_info: String,
    pub(super) model: String,
    pub(super) model_digest: String,
    pub(super) model_size: u64,
    pub(super) model_n_params: u64,
    pub(super) arithmetic: String,
    pub(super) backend: String,
    pub(super) n_threads: usize,
    pub(super) n_ranks: usize,
    pub(super) layout: String,
    pub(super) transport: Option<String>,
    pub(super) test: String,
    pub(super) n_prompt: usize,
    pub(super) n_gen: usize,
    pub(super) n_depth: usize,
    pub(super) batch: usize,
    pub(super) samples_ns: Vec<u64>,
    pub(super) samples_ts: Vec<f64>,
    pub(super) avg_ns: f64,
    pub(super) stddev_ns: f64,
    pub(super) avg_ts: f64,
    pub(super) stddev_ts: f64,
    pub(super) weights_bytes: Vec<u64>,
    pub(super) compute_seconds: Vec<f64>,
    pub(super) wire_seconds: Vec<f64>,
    pub(super) wait_seconds: Vec<f64>,
    pub(super) sent_bytes: Vec<u64>,
    pub(super) bytes_per_token: Option<f64>,
    pub(super) memory_bandwidth: Option<f64>,
    pub(super) bandwidth_percent: Option<f64>,
    pub(super) speedup: Option<f64>,
    pub(super) efficiency_percent: Option<f64>,
    pub(super) checksum: String,
    pub(super) old_avg_ts: Option<f64>,
    pub(super) change_percent: Option<f64>,
    pub(super) p_value: Option<f64>,
    pub(super) verdict: Option<String>,
}

impl Row {
    /// What makes two rows the same measurement: everything that was asked for.
    pub(super) fn key(&self) -> impl PartialEq + '_ {
        let what = (&self.model, self.n_prompt, self.n_gen, self.n_depth, self.batch);
        (what, self.n_threads, self.n_ranks, &self.layout, &self.transport)
    }

    /// The same for people: `demo pp512, 2 threads`.
    pub(super) fn name(&self) -> String {
        let threads = if self.n_threads == 1 { "thread" } else { "threads" };
        let mut name = format!("{} {}, {} {threads}", self.model, self.test, self.n_threads);
        if self.n_ranks > 1 {
            let carried = self.transport.as_deref().map(|carried| format!(" over {carried}")).unwrap_or_default();
            name += &format!(", {} ranks {}{carried}", self.n_ranks, self.layout);
        }
        name
    }
}

/// A column of the table: its heading, how a row fills it, whether it is aligned to the right.
type Column<'a> = (String, Box<dyn Fn(&Row) -> String + 'a>, bool);

/// The rows as a Markdown table. Columns that have nothing to say are left out.
pub(super) fn markdown(rows: &[Row]) -> String {
    let column = |heading: &str, right: bool, fill: fn(&Row) -> String| -> Column<'_> {
        (heading.to_owned(), Box::new(fill), right)
    };
    let or = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    let bandwidth = rows.iter().find_map(|row| row.memory_bandwidth).unwrap_or(0.0) / 1e9;
    let mut columns = vec![
        column("model", false, |row| row.model.clone()),
        column("size", true, |row| binary(row.model_size)),
        column("params", true, |row| table::scaled(row.model_n_params as f64, &["", " K", " M", " B", " T"])),
        column("backend", false, |row| row.backend.clone()),
        column("threads", true, |row| row.n_threads.to_string()),
        column("ranks", true, |row| row.n_ranks.to_string()),
        column("layout", false, |row| row.layout.clone()),
        column("test", false, |row| row.test.clone()),
        column("tok/s", true, |row| format!("{:.2} ± {:.2}", row.avg_ts, row.stddev_ts)),
    ];
    if rows.iter().any(|row| row.bytes_per_token.is_some()) {
        let bytes = move |row: &Row| or(row.bytes_per_token.map(|bytes| format!("{:.1}", bytes / 1e6)));
        columns.push(("MB/token".to_owned(), Box::new(bytes), true));
    }
    if rows.iter().any(|row| row.bandwidth_percent.is_some()) {
        let share = move |row: &Row| or(row.bandwidth_percent.map(|percent| format!("{percent:.0} %")));
        columns.push((format!("of {bandwidth:.1} GB/s"), Box::new(share), true));
    }
    if rows.iter().any(|row| row.n_ranks > 1) {
        columns.push(column("compute s", true, |row| seconds(&row.compute_seconds)));
        columns.push(column("wire s", true, |row| seconds(&row.wire_seconds)));
        columns.push(column("wait s", true, |row| seconds(&row.wait_seconds)));
    }
    if rows.iter().any(|row| row.speedup.is_some()) {
        let scaling = |row: &Row| Some(format!("{:.2}× ({:.0} %)", row.speedup?, row.efficiency_percent?));
        columns.push(("of 1 rank".to_owned(), Box::new(move |row| or(scaling(row))), true));
    }
    columns.push(column("checksum", false, |row| row.checksum.chars().take(8).collect()));
    if rows.iter().any(|row| row.verdict.is_some()) {
        let old = move |row: &Row| or(row.old_avg_ts.map(|old| format!("{old:.2}")));
        columns.push(("old tok/s".to_owned(), Box::new(old), true));
        let change = |row: &Row| Some(format!("{:+.1} % (p {:.2})", row.change_percent?, row.p_value?));
        columns.push(("change".to_owned(), Box::new(move |row| or(change(row))), true));
        columns.push(("verdict".to_owned(), Box::new(move |row| or(row.verdict.clone())), false));
    }
    let mut lines: Vec<Vec<String>> = vec![columns.iter().map(|(heading, ..)| heading.clone()).collect()];
    lines.extend(rows.iter().map(|row| columns.iter().map(|(_, fill, _)| fill(row)).collect()));
    let right: Vec<usize> = columns.iter().enumerate().filter(|(_, (.., right))| *right).map(|(i, _)| i).collect();
    table::markdown(&lines, &right)
}

/// A value a rank.
fn seconds(values: &[f64]) -> String {
    values.iter().map(|value| format!("{value:.3}")).collect::<Vec<_>>().join(" ")
}

/// Bytes as llama-bench writes them.
fn binary(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.2} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}
