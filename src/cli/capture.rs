//! Programs on hosts whose output is read by this one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::cluster::agent::{End, Start};
use crate::cluster::fleet::{Event, Fleet};
use crate::cluster::ticket::Ticket;
use crate::error::{Error, Result};

/// Bytes of output that are read at most.
const MOST: usize = 1 << 20;

/// What a program has printed until it ended.
#[derive(Default)]
pub(super) struct Captured {
    out: Vec<u8>,
    err: Vec<u8>,
    end: Option<Result<End>>,
}

impl Captured {
    /// What it printed as JSON.
    ///
    /// # Errors
    /// Its own words, if it failed.
    pub(super) fn json<T: DeserializeOwned>(self) -> Result<T> {
        match self.end {
            Some(Err(error)) => return Err(error),
            None => return Err(Error::cluster("it did not end in time").hint("is that host very busy?")),
            Some(Ok(_)) => {}
        }
        serde_json::from_slice(&self.out).map_err(|_| {
            let text = String::from_utf8_lossy(&self.err);
            let mut lines = text.lines();
            let said = |prefix: &str| text.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned);
            let last = lines.next_back().unwrap_or("it printed nothing").to_owned();
            let error = Error::cluster(said("error: ").unwrap_or(last));
            error.hint(said("hint: ").unwrap_or_else(|| "see what it does there".to_owned()))
        })
    }
}

/// This program with `args`.
pub(super) fn this_program(args: &[&str], env: &BTreeMap<String, String>, ticket: Option<Ticket>) -> Start {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    Start { program: None, args, env: env.clone(), directory: None, stdin: false, ticket }
}

/// Runs programs on hosts, by index, and reads what they print; takes at most `patience`.
pub(super) fn capture(fleet: &mut Fleet, starts: Vec<(usize, Start)>, patience: Duration) -> BTreeMap<usize, Captured> {
    let mut all: BTreeMap<usize, Captured> = starts.iter().map(|(index, _)| (*index, Captured::default())).collect();
    starts.into_iter().for_each(|(index, start)| fleet.start(index, start));
    let until = Instant::now() + patience;
    while all.values().any(|captured| captured.end.is_none()) && Instant::now() < until {
        let Some((index, event)) = fleet.next(until) else { break };
        let Some(captured) = all.get_mut(&index) else { continue };
        let keep = |kept: &mut Vec<u8>, bytes: Vec<u8>| {
            let room = MOST.saturating_sub(kept.len()).min(bytes.len());
            kept.extend_from_slice(&bytes[..room]);
        };
        match event {
            Event::Stdout(bytes) => keep(&mut captured.out, bytes),
            Event::Stderr(bytes) => keep(&mut captured.err, bytes),
            Event::Exited(end) => captured.end = Some(Ok(end)),
            Event::Lost(error) => captured.end = Some(Err(error)),
            Event::Status(_) | Event::Hungry => {}
        }
    }
    all
}
