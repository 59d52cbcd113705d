//! The line between a rank and the process that started it: the ticket comes down, progress goes up, and its end is the
//! end of both.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::agent::spawn;
use super::ticket::{Joined, Ticket};
use crate::comm::control::Monitor;
use crate::error::{Error, Result};
use crate::transport;

/// The environment variable with the number of the line's descriptor.
pub const VARIABLE: &str = "TBSHARD_RUN";

/// Bytes of a message at most.
const MAX_BYTES: u64 = 1 << 20;

/// How long the ticket may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the starter says after the ticket.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum News {
    /// Another rank's process has ended, and how.
    Exited(usize, String),
}

/// What a rank says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// How far it is with its weights.
    Loading(Loading),
    /// It waits for work.
    Ready,
    /// It told the user why the run ended.
    Explained,
}

/// How far a rank is with its weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loading {
    /// How many percent are there.
    pub percent: u8,
    /// Bytes of all that it reads; 0 where they are not read but made.
    pub bytes: u64,
    /// Bytes a second so far.
    pub rate: u64,
}

impl std::fmt::Display for Loading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { percent, bytes, rate } = *self;
        write!(f, "loading {percent} %")?;
        if bytes > 0 && rate > 0 {
            let left = bytes / 100 * u64::from(100 - percent.min(100)) / rate;
            write!(f, " of {:.1} GB at {:.1} GB/s, {left} s left", bytes as f64 / 1e9, rate as f64 / 1e9)?;
        }
        Ok(())
    }
}

/// The starter's end of the line.
pub struct Line(UnixStream);

impl Line {
    /// Makes a line to the process that `command` will start. The second end must be kept until then, and no longer.
    ///
    /// # Errors
    /// If the system has no more descriptors.
    pub fn new(command: &mut Command) -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair().map_err(|error| Error::from_std(error).context("a line to a rank"))?;
        let theirs = OwnedFd::from(theirs);
        let number = transport::inherit(theirs.as_fd(), command);
        command.env(VARIABLE, number.to_string());
        Ok((Self(ours), theirs))
    }

    /// Sends the ticket. A rank that is gone already is noticed otherwise.
    pub fn ticket(&self, ticket: &Ticket) {
        self.send(ticket);
    }

    /// Tells that another rank's process has ended.
    pub fn exited(&self, rank: usize, how: &str) {
        self.send(&News::Exited(rank, how.to_owned()));
    }

    /// Calls `heard` with everything the rank says, until it says no more. Another thread may send meanwhile.
    ///
    /// # Errors
    /// If the system has no more descriptors.
    pub fn listen(&self) -> Result<impl FnOnce(&mut dyn FnMut(Status)) + Send + use<>> {
        let mut reader = BufReader::new(self.0.try_clone().map_err(Error::from_std)?);
        Ok(move |heard: &mut dyn FnMut(Status)| {
            while let Some(status) = receive(&mut reader) {
                heard(status);
            }
        })
    }

    fn send(&self, message: &impl Serialize) {
        send(&self.0, message);
    }
}

fn send(mut stream: &UnixStream, message: &impl Serialize) {
    // the reader of the same line, or the end of the process, tells what is wrong
    let Ok(text) = serde_json::to_string(message) else { return };
    let _ = writeln!(stream, "{text}");
}

fn receive<T: DeserializeOwned>(reader: &mut BufReader<UnixStream>) -> Option<T> {
    let mut text = Vec::new();
    reader.by_ref().take(MAX_BYTES).read_until(b'\n', &mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// A rank's end of the line, with its ticket.
pub struct Run {
    ticket: Ticket,
    line: BufReader<UnixStream>,
}

/// What the thread that listens needs to know of the run.
#[derive(Default)]
struct Shared {
    monitor: Option<Arc<Monitor>>,
    // what was heard before there was a monitor
    exited: Vec<(usize, String)>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    /// The run that this process was started for, if `tbshard launch` or another rank started it. To be called once.
    ///
    /// # Errors
    /// If the starter is gone or another version of tbshard.
    #[allow(clippy::disallowed_methods, reason = "programs that link this crate learn of their run here")]
    pub fn inherited() -> Result<Option<Self>> {
        let Some(number) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let wrong = || {
            let error = Error::msg(format!("{VARIABLE} does not name a line to the process that started this one"));
            error.hint("it is set by `tbshard launch`, unset it to run this program alone")
        };
        let number = number.to_str().and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
        let line = UnixStream::from(transport::inherited(number).map_err(|_| wrong())?);
        line.set_read_timeout(Some(PATIENCE)).map_err(|_| wrong())?;
        let mut line = BufReader::new(line);
        let ticket = receive(&mut line).ok_or_else(|| {
            let error = Error::cluster("the process that started this rank gave it no ticket");
            error.hint("it is gone, or another version of tbshard")
        })?;
        line.get_ref().set_read_timeout(None).map_err(Error::from_std)?;
        Ok(Some(Self { ticket, line }))
    }

    /// What this rank was told.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Says something to the starter.
    pub fn reporter(&self) -> Result<Reporter> {
        Ok(Reporter(self.line.get_ref().try_clone().map_err(Error::from_std)?))
    }

    /// Joins the others. `gone` is called in a thread of its own when the starter is, however long after.
    ///
    /// # Errors
    /// As [`Ticket::join`].
    pub fn join(self, gone: impl FnOnce() + Send + 'static) -> Result<Joined> {
        let Self { ticket, mut line } = self;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let heard = Arc::clone(&shared);
        let listen = move || {
            while let Some(News::Exited(rank, how)) = receive(&mut line) {
                let mut shared = lock(&heard);
                match &shared.monitor {
                    Some(monitor) => monitor.exited(rank, how),
                    None => shared.exited.push((rank, how)),
                }
            }
            gone();
        };
        spawn("line", listen)?;
        let joined = ticket.join()?;
        let mut shared = lock(&shared);
        shared.exited.drain(..).for_each(|(rank, how)| joined.monitor.exited(rank, how));
        shared.monitor = Some(Arc::clone(&joined.monitor));
        Ok(joined)
    }
}

/// Tells the starter how far a rank is.
#[derive(Debug)]
pub struct Reporter(UnixStream);

impl Reporter {
    /// Says `status`.
    pub fn say(&self, status: Status) {
        send(&self.0, &status);
    }
}
