//! A result beside an earlier one: what changed, and whether that is more than chance.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::output::{Format, Writer};
use super::row::{self, Row};
use super::statistics::{mean_and_sd, welch};
use crate::cli::{Outcome, ui};
use crate::error::{Error, Result};

/// How likely it may be that a comparison of any number of rows calls a change what is none.
const LEVEL: f64 = 0.05;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What `bench tokens-per-sec` wrote before, with -o json or -o jsonl
    #[arg(value_name = "OLD.json")]
    old: PathBuf,
    /// What it wrote now
    #[arg(value_name = "NEW.json")]
    new: PathBuf,
    /// Changes of so many percent or fewer are none
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    threshold: f64,
    /// How the result is written
    #[arg(long, short, value_enum, default_value_t = Format::Md)]
    output: Format,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let mut comparison = Comparison::with(&args.old, args.threshold, 2)?;
    let rows = read(&args.new)?;
    comparison.expect(rows.len());
    let mut writer = Writer::new(args.output);
    for mut row in rows {
        comparison.compare(&mut row);
        writer.push(row)?;
    }
    comparison.judge(&writer.finish(row::markdown)?)?;
    Ok(Outcome::Done)
}

/// An earlier result, and what counts as a change.
pub(super) struct Comparison {
    path: PathBuf,
    old: Vec<Row>,
    threshold: f64,
    level: f64,
}

impl Comparison {
    /// Compares rows of `reps` samples with those in the file `path`; changes of `threshold` percent or fewer are none.
    ///
    /// # Errors
    /// If the file holds no result, or its samples or the new ones are too few.
    pub(super) fn with(path: &Path, threshold: f64, reps: usize) -> Result<Self> {
        if !(0.0..=1000.0).contains(&threshold) {
            let error = Error::usage(format!("--threshold {threshold} is not one of 0 to 1000 percent"));
            return Err(error.hint("2 is the default"));
        }
        if reps < 2 {
            let error = Error::usage(format!("--reps {reps} cannot be compared: chance shows in repetitions"));
            return Err(error.hint("5 is the default"));
        }
        Ok(Self { path: path.to_owned(), old: read(path)?, threshold, level: LEVEL })
    }

    /// Says that so many rows will be compared: the more there are, the more each must differ to be called changed.
    pub(super) fn expect(&mut self, rows: usize) {
        self.level = LEVEL / rows.max(1) as f64;
    }

    fn partners<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = &'a Row> {
        self.old.iter().filter(|old| old.key() == row.key())
    }

    /// Fills in what became of a row; nothing if the earlier result does not have it. Samples of several rows of one kind, of
    /// files that were joined, are taken together.
    pub(super) fn compare(&self, row: &mut Row) {
        let old: Vec<f64> = self.partners(row).flat_map(|old| old.samples_ts.iter().copied()).collect();
        let Some(p) = welch(&old, &row.samples_ts) else { return };
        let ((mean, _), (now, _)) = (mean_and_sd(&old), mean_and_sd(&row.samples_ts));
        let change = 100.0 * (now / mean - 1.0);
        let verdict = match change {
            _ if p >= self.level || change.abs() <= self.threshold => "same",
            change if change < 0.0 => "slower",
            _ => "faster",
        };
        (row.old_avg_ts, row.change_percent) = (Some(mean), Some(change));
        (row.p_value, row.verdict) = (Some(p), Some(verdict.to_owned()));
    }

    /// Says what is to be known of all rows.
    ///
    /// # Errors
    /// If a row is slower, answers otherwise, or has no earlier one.
    pub(super) fn judge(&self, rows: &[Row]) -> Result<()> {
        let path = self.path.display();
        let names = |rows: Vec<&Row>| rows.iter().map(|row| row.name()).collect::<Vec<_>>().join("; ");
        let with = |problem: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| problem(row)).collect::<Vec<_>>();
        let cpus = |row: &Row| self.partners(row).any(|old| old.cpu_info != row.cpu_info);
        if let Some(row) = rows.iter().find(|row| cpus(row)) {
            ui::say(format_args!("note: `{path}` was measured on another processor than {}", row.cpu_info));
        }
        let left = self.old.iter().filter(|old| !rows.iter().any(|row| row.key() == old.key())).count();
        if left > 0 {
            let rows = if left == 1 { "row" } else { "rows" };
            ui::say(format_args!("note: {left} {rows} of `{path}` not measured now"));
        }
        let wrong = with(&|row| self.partners(row).any(|old| answers_otherwise(old, row)));
        let slower = with(&|row| row.verdict.as_deref() == Some("slower"));
        let missing = with(&|row| row.verdict.is_none());
        let mut errors = Vec::new();
        if !wrong.is_empty() {
            let error = format!("not the answers of `{path}`, so that no speed counts: {}", names(wrong));
            errors.push(
                Error::msg(error)
                    .hint("one of the two is wrong; if the arithmetic was changed, its name must change too"),
            );
        }
        if !slower.is_empty() {
            let error =
                format!("{} of {} rows slower than in `{path}`: {}", slower.len(), rows.len(), changes(&slower));
            let hint = format!(
                "p is below {:.2} % and the change above {} %; run both again, in turns, before you believe it",
                self.level * 100.0,
                self.threshold
            );
            errors.push(Error::msg(error).hint(hint));
        }
        if !missing.is_empty() {
            let there = names(self.old.iter().take(8).collect());
            let error = Error::msg(format!("`{path}` does not have {}", names(missing)));
            errors.push(error.hint(format!("it has {there}; measure both with the same flags")));
        }
        let mut errors = errors.into_iter();
        let Some(first) = errors.next() else { return Ok(()) };
        errors.for_each(|error| ui::say(format_args!("also: {error}")));
        Err(first)
    }
}

fn changes(rows: &[&Row]) -> String {
    let change = |row: &&Row| format!("{} {:+.1} %", row.name(), row.change_percent.unwrap_or_default());
    rows.iter().map(change).collect::<Vec<_>>().join("; ")
}

/// Whether two rows of the same question to the same model in the same arithmetic differ in the answer.
fn answers_otherwise(old: &Row, new: &Row) -> bool {
    let question = |row: &Row| (row.model_digest.clone(), row.arithmetic.clone());
    question(old) == question(new) && old.checksum != new.checksum
}

/// Reads rows: an array of objects, or an object a line.
fn read(path: &Path) -> Result<Vec<Row>> {
    let hint = "give what `tbshard bench tokens-per-sec -o json` has written";
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, error).hint(hint))?;
    let path = path.display();
    let wrong = |error: String| Error::msg(error).hint(hint);
    let values: Vec<Value> = match serde_json::from_str(&text) {
        Ok(Value::Array(values)) => values,
        // several objects are no JSON, and a single one is a line
        _ => {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            let values = lines.map(serde_json::from_str).collect::<std::result::Result<_, _>>();
            values.map_err(|error| wrong(format!("`{path}` is not JSON, nor JSON line by line: {error}")))?
        }
    };
    if values.is_empty() {
        return Err(wrong(format!("`{path}` has no rows")));
    }
    let mut rows = Vec::new();
    for (number, value) in values.into_iter().enumerate() {
        let number = number + 1;
        match value.get("bench").and_then(Value::as_str) {
            Some(row::BENCH) => {}
            Some(other) => return Err(wrong(format!("row {number} of `{path}` is of `bench {other}`"))),
            None => return Err(wrong(format!("row {number} of `{path}` has no key `bench`"))),
        }
        let row: Row =
            serde_json::from_value(value).map_err(|error| wrong(format!("row {number} of `{path}`: {error}")))?;
        if row.samples_ts.len() < 2 || !row.samples_ts.iter().all(|sample| sample.is_finite() && *sample > 0.0) {
            let error = format!("row {number} of `{path}` ({}) has no two samples above 0 to compare", row.name());
            return Err(Error::msg(error).hint("measure it with --reps 2 at least"));
        }
        rows.push(row);
    }
    Ok(rows)
}
