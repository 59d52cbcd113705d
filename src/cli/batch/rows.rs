//! Where rows go: as they are ready, or in the order of their lines; errors to a file of their own.

use std::collections::BTreeMap;

use super::journal::Journal;
use super::row::Row;
use crate::cli::ui;
use crate::error::Result;

/// Rows that wait for one before them, at most: more lines are not begun meanwhile.
pub(super) const HELD: usize = 1024;

/// Where rows of answers go.
pub(super) enum Sink {
    File(Journal),
    Stdout(String),
}

/// Takes rows.
pub(super) struct Rows {
    sink: Sink,
    errors: Option<Journal>,
    /// Those that wait, and which is the next.
    order: Option<(BTreeMap<u64, Row>, u64)>,
    pub(super) done: u64,
    /// Of them, those that last.
    pub(super) kept: u64,
    pub(super) failed: u64,
    begun: bool,
}

impl Rows {
    pub(super) fn new(sink: Sink, errors: Option<Journal>, ordered: bool) -> Self {
        Self { sink, errors, order: ordered.then(Default::default), done: 0, kept: 0, failed: 0, begun: false }
    }

    /// Takes the row of the `seq`th line.
    pub(super) fn put(&mut self, seq: u64, row: Row) {
        self.done += 1;
        self.failed += u64::from(row.failed);
        let Some((held, next)) = &mut self.order else { return self.push(&row) };
        held.insert(seq, row);
        let mut ready = Vec::new();
        while let Some(row) = held.remove(next) {
            ready.push(row);
            *next += 1;
        }
        ready.iter().for_each(|row| self.push(row));
    }

    fn push(&mut self, row: &Row) {
        match (&mut self.errors, &mut self.sink) {
            (Some(errors), _) if row.failed => errors.push(&row.text),
            (_, Sink::File(journal)) => journal.push(&row.text),
            (_, Sink::Stdout(pending)) => pending.push_str(&row.text),
        }
    }

    /// Rows that wait for one before them.
    pub(super) fn held(&self) -> usize {
        self.order.as_ref().map_or(0, |(held, _)| held.len())
    }

    /// Takes out of all files what is not to stay, before the first row is added to one of them.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn begin(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.begun, true) {
            return Ok(());
        }
        self.errors.as_mut().map_or(Ok(()), Journal::begin)?;
        if let Sink::File(journal) = &mut self.sink { journal.begin() } else { Ok(()) }
    }

    /// Makes what is ready last; `false` if nobody reads it any more.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn commit(&mut self) -> Result<bool> {
        let pending = self.errors.as_ref().is_some_and(Journal::has_pending)
            || match &self.sink {
                Sink::File(journal) => journal.has_pending(),
                Sink::Stdout(pending) => !pending.is_empty(),
            };
        if pending {
            self.begin()?;
        }
        let mut read = self.errors.as_mut().map_or(Ok(true), Journal::commit)?;
        read &= match &mut self.sink {
            Sink::File(journal) => journal.commit()?,
            Sink::Stdout(pending) if pending.is_empty() => true,
            Sink::Stdout(pending) => ui::print(&std::mem::take(pending))?,
        };
        self.kept = self.done - self.held() as u64;
        Ok(read)
    }
}
