//! Results as Markdown, CSV, JSON, or JSON line by line.

use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

use crate::cli::ui;
use crate::error::{Error, Result};

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A Markdown table for people
    Md,
    /// A heading, then a line a row, as the rows are measured
    Csv,
    /// An array with an object a row
    Json,
    /// An object a line, as the rows are measured
    Jsonl,
}

/// Rows on their way to stdout.
pub(super) struct Writer<R> {
    format: Format,
    rows: Vec<R>,
}

impl<R: Serialize> Writer<R> {
    pub(super) fn new(format: Format) -> Self {
        Self { format, rows: Vec::new() }
    }

    /// Adds a row; CSV and JSON lines are written at once.
    pub(super) fn push(&mut self, row: R) -> Result<()> {
        let value = serde_json::to_value(&row).map_err(Error::from_std)?;
        match self.format {
            Format::Csv => ui::print(&csv_lines(&value, self.rows.is_empty())?)?,
            Format::Jsonl => ui::print(&format!("{value}\n"))?,
            Format::Md | Format::Json => true,
        };
        self.rows.push(row);
        Ok(())
    }

    /// Writes what is not written yet; `table` draws all rows.
    pub(super) fn finish(self, table: impl FnOnce(&[R]) -> String) -> Result<Vec<R>> {
        match self.format {
            Format::Md => ui::print(&format!("{}\n", table(&self.rows)))?,
            Format::Json => {
                ui::print(&format!("{}\n", serde_json::to_string_pretty(&self.rows).map_err(Error::from_std)?))?
            }
            Format::Csv | Format::Jsonl => true,
        };
        Ok(self.rows)
    }
}

/// An object as CSV: lists are joined by spaces, nothing is empty. Samples are left out, a spreadsheet has no place for them.
fn csv_lines(row: &Value, heading: bool) -> Result<String> {
    let fields = row.as_object().into_iter().flatten().filter(|(key, _)| !key.starts_with("samples_"));
    let (keys, values): (Vec<&String>, Vec<&Value>) = fields.unzip();
    let mut writer = csv::Writer::from_writer(Vec::new());
    if heading {
        writer.write_record(keys).map_err(Error::from_std)?;
    }
    writer.write_record(values.into_iter().map(cell)).map_err(Error::from_std)?;
    let bytes = writer.into_inner().map_err(|error| Error::msg(error.error()))?;
    String::from_utf8(bytes).map_err(Error::from_std)
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_survives_csv() {
        let row = json!({"a": "x, \"y\"\nz", "samples_ns": [1, 2], "b": [1.5, 2], "c": null, "d": true});
        let text = csv_lines(&row, true).unwrap() + &csv_lines(&row, false).unwrap();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        assert_eq!(reader.headers().unwrap(), vec!["a", "b", "c", "d"]);
        let rows: Vec<csv::StringRecord> = reader.records().map(|row| row.unwrap()).collect();
        assert_eq!(rows, vec![vec!["x, \"y\"\nz", "1.5 2", "", "true"]; 2]);
    }
}
