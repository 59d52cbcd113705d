//! A batch whose ranks are all elsewhere: lines go to the first host, and its rows come here, where the files are.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Args;
use super::answers::End;
use super::desk::Desk;
use super::input::Intake;
use super::progress::Watch;
use super::row::{Maker, Row, Written};
use super::rows::HELD;
use crate::cli::Outcome;
use crate::cli::launch::Output;
use crate::engine::Counts;
use crate::error::{Error, Result};

/// How long lines wait for rows that are held back.
const WAIT: Duration = Duration::from_millis(20);

/// What lines that go and rows that come have in common.
struct Shared {
    desk: Desk,
    watch: Watch,
    counts: Counts,
    /// Lines that are away, by name.
    away: HashMap<String, u64>,
    /// What rows are made with.
    run: Option<String>,
    closed: bool,
    failed: Option<Error>,
}

/// Runs a batch; `start` does so there, given what it reads and who takes what it prints.
pub(super) fn run(args: &Args, start: impl FnOnce(Box<dyn Read + Send>, Output) -> Result<Outcome>) -> Result<Outcome> {
    let mut desk = Desk::open(args)?;
    if desk.nothing_is_left() {
        return desk.finish();
    }
    let (run, intake, watch) = (desk.run(), desk.intake()?, desk.watch());
    let (counts, away) = (Counts::default(), HashMap::new());
    let shared = Arc::new(Mutex::new(Shared { desk, watch, counts, away, run, closed: false, failed: None }));
    let (theirs, deterministic) = (Arc::clone(&shared), args.deterministic);
    let lines = Departing { intake, shared: Arc::clone(&shared), ready: Vec::new(), at: 0, deterministic };
    let mut open = Vec::new();
    let ended = start(Box::new(lines), Box::new(move |bytes: &[u8]| locked(&theirs).arrived(&mut open, bytes)));
    let mut shared = locked(&shared);
    let shared = &mut *shared;
    let missing = shared.away.len();
    let end = match (ended, shared.failed.take()) {
        // what went wrong here is why it ended there
        (_, Some(error)) | (Err(error), None) => Err(error),
        (Ok(_), None) if shared.closed => Ok(End::Closed),
        (Ok(Outcome::Interrupted), None) => Ok(End::Interrupted),
        (Ok(Outcome::Done), None) if missing == 0 => Ok(End::Done),
        (Ok(Outcome::Done), None) => Err(Error::cluster(format!("{missing} lines came back without a row"))),
        // the first host has said why
        (Ok(outcome), None) => {
            return shared.desk.end(&shared.watch, Err(Error::cluster("it ended there").shown())).or(Ok(outcome));
        }
    };
    shared.desk.end(&shared.watch, end)
}

fn locked(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Takes rows as they come, in pieces; `false` if nobody reads them any more.
    fn arrived(&mut self, open: &mut Vec<u8>, bytes: &[u8]) -> Result<bool> {
        open.extend_from_slice(bytes);
        let Some(end) = open.iter().rposition(|byte| *byte == b'\n') else { return Ok(true) };
        let rest = open.split_off(end + 1);
        for line in std::mem::replace(open, rest).split_inclusive(|byte| *byte == b'\n') {
            self.row(line)?;
        }
        self.commit()
    }

    fn row(&mut self, line: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(line).into_owned();
        let foreign = || Error::cluster(format!("the first host printed what is no row: {}", text.trim_end()));
        let row = Written::parse(line).ok_or_else(foreign)?;
        let seq = self.away.remove(&row.custom_id).ok_or_else(foreign)?;
        if let Some(run) = &row.tbshard.run
            && self.run.get_or_insert_with(|| run.clone()) != run
        {
            return Err(self.desk.other_run());
        }
        let usage = row.usage();
        self.counts.prompt_tokens += usage.prompt_tokens.saturating_sub(usage.shared());
        self.counts.shared_tokens += usage.shared();
        self.counts.generated_tokens += usage.completion_tokens;
        let failed = row.failed();
        self.desk.rows.put(seq, Row { text, failed });
        Ok(())
    }

    fn commit(&mut self) -> Result<bool> {
        self.closed |= !self.desk.rows.commit()?;
        self.watch.show(&self.desk.rows, &self.counts);
        Ok(!self.closed)
    }
}

/// The lines that need a row, as the first host reads them.
struct Departing {
    intake: Intake,
    shared: Arc<Mutex<Shared>>,
    ready: Vec<u8>,
    at: usize,
    deterministic: bool,
}

impl Departing {
    /// Reads the next line that needs the model; those that are broken have their row at once.
    fn next(&mut self) -> Result<bool> {
        loop {
            while locked(&self.shared).desk.rows.held() >= HELD {
                std::thread::sleep(WAIT);
            }
            let Some((seq, line)) = self.intake.next_line()? else { return Ok(false) };
            let mut shared = locked(&self.shared);
            match (&line.ask, line.written()) {
                (Ok(_), Some(text)) => {
                    shared.away.insert(line.custom_id, seq);
                    (self.ready, self.at) = (text.into_bytes(), 0);
                    return Ok(true);
                }
                (Err(problem), _) => {
                    let row = Maker::broken(self.deterministic, &line, problem)?;
                    shared.desk.rows.put(seq, row);
                    shared.commit()?;
                }
                (Ok(_), None) => {}
            }
        }
    }
}

impl Read for Departing {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.ready.len() {
            match self.next() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    // what is there already is answered
                    locked(&self.shared).failed = Some(error);
                    return Ok(0);
                }
            }
        }
        let count = into.len().min(self.ready.len() - self.at);
        into[..count].copy_from_slice(&self.ready[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
