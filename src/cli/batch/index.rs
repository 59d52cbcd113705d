//! Which lines have a row already: digests alone, so that millions of lines fit the memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

use super::line::{Line, digest};
use super::row::Written;
use crate::error::{Error, Result};

/// Whether a line has a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Row {
    None,
    Done,
    Failed,
}

/// What is known of the line of a name.
struct Known {
    line: u64,
    number: u32,
    row: Row,
    /// In which reading of the input it was met last.
    met: u8,
}

/// The names of all lines and rows.
#[derive(Default)]
pub(super) struct Index {
    known: HashMap<u128, Known>,
    /// The settings that the rows were made with.
    pub(super) run: Option<String>,
    reading: u8,
    pub(super) rows: u64,
}

impl Index {
    /// Adds a row of the file `path`.
    ///
    /// # Errors
    /// If its line has a row already, or it was made with other settings than the rows before.
    pub(super) fn add(&mut self, path: &Path, row: &Written) -> Result<()> {
        if row.tbshard.run.as_ref().is_some_and(|run| !self.is_of(run)) {
            let error = format!("`{}` has rows of different models or settings", path.display());
            return Err(Error::msg(error).hint("give another -o (and --errors), or start anew with --overwrite"));
        }
        let line = row.tbshard.line.get(..16).and_then(|text| u64::from_str_radix(text, 16).ok());
        let line = line.ok_or_else(|| Error::msg(format!("`{}`: a row has no digest", path.display())))?;
        let kind = if row.failed() { Row::Failed } else { Row::Done };
        let known = Known { line, number: 0, row: kind, met: 0 };
        if self.known.insert(key(&row.custom_id), known).is_some() {
            let error = format!("`{}` has a second row of custom_id `{}`", path.display(), row.custom_id);
            return Err(Error::msg(error).hint("take one of them away, or start anew with --overwrite"));
        }
        self.rows += 1;
        Ok(())
    }

    /// Whether all rows that are there were made with these settings.
    pub(super) fn is_of(&mut self, run: &str) -> bool {
        self.run.get_or_insert_with(|| run.to_owned()) == run
    }

    /// Begins to read the input, once more perhaps.
    pub(super) fn begin(&mut self) {
        self.reading += 1;
    }

    /// Meets a line of the input: whether it still needs a row.
    ///
    /// # Errors
    /// If its name was met in this reading, or has a row for something else.
    pub(super) fn meet(&mut self, line: &Line) -> Result<bool> {
        let number = u32::try_from(line.number).unwrap_or(u32::MAX);
        let short = u64::from_be_bytes(std::array::from_fn(|at| line.hash[at]));
        let mut known = match self.known.entry(key(&line.custom_id)) {
            Entry::Occupied(known) => known,
            Entry::Vacant(place) => {
                place.insert(Known { line: short, number, row: Row::None, met: self.reading });
                return Ok(true);
            }
        };
        let known = known.get_mut();
        if known.met == self.reading {
            let error = format!("lines {} and {number} have the same custom_id `{}`", known.number, line.custom_id);
            return Err(Error::msg(error).hint("give every line a name of its own"));
        }
        (known.met, known.number) = (self.reading, number);
        if known.row == Row::None {
            known.line = short;
            return Ok(true);
        }
        if known.line == short {
            return Ok(false);
        }
        let error = format!("line {number} (custom_id `{}`) is not what the row that is there answers", line.custom_id);
        Err(Error::msg(error).hint(match known.row {
            Row::Failed => "--retry-errors runs lines again whose rows say that they failed",
            _ => "give it another custom_id, another -o, or start anew with --overwrite",
        }))
    }
}

fn key(custom_id: &str) -> u128 {
    u128::from_be_bytes(digest(&[custom_id.as_bytes()]))
}
