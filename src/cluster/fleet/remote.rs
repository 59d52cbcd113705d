//! One host: the agent's process (`ssh`, or a child on this machine), and the threads that talk with it.

use std::io::{BufReader, Read};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cluster::agent::wire::{self, GREETING, Order, Report};
use crate::cluster::agent::{SIGN, spawn};
use crate::error::{Error, Result};

/// Bytes of a login shell's noise, and of what `ssh` says, that are kept.
const NOISE: usize = 64 << 10;

/// What is heard from a host.
pub(super) enum Heard {
    Report(Report),
    /// Its agent is gone, or says what is no report.
    Lost,
}

/// What the thread that reads leaves for others to see.
#[derive(Default)]
pub(super) struct Seen {
    // before the greeting: a login shell's noise, or what went wrong
    noise: Mutex<Vec<u8>>,
    // what the transport said on standard error
    errors: Mutex<Vec<u8>>,
    // it waits for somebody to take what it read, so silence is ours
    pub(super) busy: AtomicBool,
}

/// The connection with one host's agent.
pub(super) struct Remote {
    process: Child,
    orders: Option<Sender<Order>>,
    pub(super) seen: Arc<Seen>,
}

impl Remote {
    /// Starts `command`, whose standard input and output are an agent's, and passes on what it says to `heard`.
    pub(super) fn start(mut command: Command, index: usize, heard: &Sender<(usize, Heard)>) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let program = command.get_program().to_string_lossy().into_owned();
        let mut process = command.spawn().map_err(|error| {
            Error::from_std(error).context(format!("cannot start `{program}`")).hint("is it installed?")
        })?;
        let seen = Arc::new(Seen::default());
        let (orders, queue) = channel();
        if let Some(stdin) = process.stdin.take() {
            spawn("host", move || write(stdin, &queue))?;
        }
        if let Some(mut stderr) = process.stderr.take() {
            let seen = Arc::clone(&seen);
            spawn("host", move || {
                let mut piece = [0; 4096];
                while let Ok(count) = stderr.read(&mut piece)
                    && count > 0
                {
                    keep(&seen.errors, &piece[..count]);
                }
            })?;
        }
        if let Some(stdout) = process.stdout.take() {
            let (seen, heard) = (Arc::clone(&seen), heard.clone());
            spawn("host", move || {
                let mut stdout = BufReader::with_capacity(64 << 10, stdout);
                if greeted(&mut stdout, &seen.noise) {
                    while let Ok(Some(report)) = wire::read(&mut stdout) {
                        seen.busy.store(true, Ordering::Relaxed);
                        if heard.send((index, Heard::Report(report))).is_err() {
                            return;
                        }
                        seen.busy.store(false, Ordering::Relaxed);
                    }
                }
                // the fleet may be gone
                let _ = heard.send((index, Heard::Lost));
            })?;
        }
        Ok(Self { process, orders: Some(orders), seen })
    }

    /// Gives an order. A host that is lost is told of elsewhere.
    pub(super) fn order(&self, order: Order) {
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
    }

    /// Closes the agent's standard input, which ends it.
    pub(super) fn close(&mut self) {
        self.orders = None;
    }

    /// Whether the process has ended, with its exit code.
    pub(super) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// Waits for the process to end, at most until then, and ends it if it does not.
    pub(super) fn end(&mut self, until: Instant) -> Option<std::process::ExitStatus> {
        self.close();
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) => return Some(status),
                _ if Instant::now() >= until => break,
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        // it may have ended just now
        let _ = self.process.kill();
        self.process.wait().ok()
    }

    /// What was printed before the agent spoke.
    pub(super) fn noise(&self) -> String {
        text(&self.seen.noise)
    }

    /// What was printed on standard error, by `ssh` or by the agent.
    pub(super) fn errors(&self) -> String {
        text(&self.seen.errors)
    }
}

fn text(kept: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&kept.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

fn keep(kept: &Mutex<Vec<u8>>, piece: &[u8]) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.extend_from_slice(piece);
    let surplus = kept.len().saturating_sub(NOISE);
    kept.drain(..surplus);
}

/// Skips what comes before the greeting; `false` if none comes.
fn greeted(stdout: &mut impl Read, noise: &Mutex<Vec<u8>>) -> bool {
    let (mut last, mut byte, mut count) = (Vec::new(), [0], 0);
    while count < 16 * NOISE && stdout.read_exact(&mut byte).is_ok() {
        keep(noise, &byte);
        count += 1;
        last.push(byte[0]);
        if last.ends_with(GREETING) {
            return true;
        }
        let surplus = last.len().saturating_sub(GREETING.len());
        last.drain(..surplus);
    }
    false
}

fn write(mut stdin: ChildStdin, orders: &Receiver<Order>) {
    loop {
        let order = match orders.recv_timeout(SIGN) {
            Ok(order) => order,
            Err(RecvTimeoutError::Timeout) => Order::Ping,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // the reader tells when the agent is gone
        if wire::write(&mut stdin, &order).is_err() {
            return;
        }
    }
}
