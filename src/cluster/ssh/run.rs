//! Running a remote command to its end, without ever waiting for longer than nothing happens.

use std::io::{ErrorKind, Read, Write};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::{Ssh, Target};
use crate::error::{Error, Result};

/// How often it is looked whether ssh has ended.
const LOOK: Duration = Duration::from_millis(10);
/// How long the end of its output may come after its own.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes of output that are kept.
const KEPT: u64 = 1 << 20;

/// How a remote command ended.
#[derive(Debug)]
pub struct Reply {
    /// The command's exit status, or 255 if it is ssh that failed.
    pub status: ExitStatus,
    /// The first mebibyte of what it printed.
    pub stdout: String,
    /// The first mebibyte of what it and ssh complained about.
    pub stderr: String,
}

impl Ssh {
    /// Runs `remote_command` on `target` with `input` on its standard input. `host` is what messages call it; whenever a
    /// moment has passed, `progress` is told how many bytes were sent.
    ///
    /// # Errors
    /// If ssh cannot be started, or nothing goes in or out for as long as `patience`.
    pub fn run(
        &self,
        (host, target): (&str, &Target),
        remote_command: &str,
        input: impl Read + Send + 'static,
        patience: Duration,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Reply> {
        let mut command = self.command(target, remote_command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut ssh = Running(command.spawn().map_err(|error| self.not_started(&error))?);
        let (sent, moved) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        if let Some(stdin) = ssh.0.stdin.take() {
            let counted = Counted { inner: stdin, counts: vec![Arc::clone(&sent), Arc::clone(&moved)] };
            std::thread::spawn(move || send(input, counted));
        }
        let stdout =
            ssh.0.stdout.take().map(|stream| keep(Counted { inner: stream, counts: vec![Arc::clone(&moved)] }));
        let stderr =
            ssh.0.stderr.take().map(|stream| keep(Counted { inner: stream, counts: vec![Arc::clone(&moved)] }));
        let mut last = (0, Instant::now());
        let status = loop {
            if let Some(status) = ssh.0.try_wait().map_err(Error::from_std)? {
                break status;
            }
            progress(sent.load(Ordering::Relaxed));
            let now = moved.load(Ordering::Relaxed);
            if now != last.0 {
                last = (now, Instant::now());
            } else if last.1.elapsed() > patience {
                return Err(self.silent(host, target, patience));
            }
            std::thread::sleep(LOOK);
        };
        progress(sent.load(Ordering::Relaxed));
        // a process in the background may keep the pipes: then what has come so far is lost, not we
        let text = |stream: Option<Receiver<String>>| stream.and_then(|s| s.recv_timeout(LAST_WORDS).ok());
        Ok(Reply { status, stdout: text(stdout).unwrap_or_default(), stderr: text(stderr).unwrap_or_default() })
    }
}

/// Ends ssh when it is given up.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // both fail only if it is gone
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A stream whose bytes are counted.
struct Counted<T> {
    inner: T,
    counts: Vec<Arc<AtomicU64>>,
}

impl<T> Counted<T> {
    fn count(&self, bytes: usize) -> usize {
        self.counts.iter().for_each(|count| _ = count.fetch_add(bytes as u64, Ordering::Relaxed));
        bytes
    }
}

impl<T: Read> Read for Counted<T> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.inner.read(buffer).map(|bytes| self.count(bytes))
    }
}

/// Sends all of `input`, as far as the other side wants it.
fn send(mut input: impl Read, mut output: Counted<impl Write>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // the other side sees that the end is missing
            Err(_) => return,
        };
        if output.inner.write_all(&buffer[..read]).is_err() {
            return;
        }
        output.count(read);
    }
}

/// Reads a stream to its end and hands over its beginning.
fn keep(mut stream: impl Read + Send + 'static) -> Receiver<String> {
    let (done, kept) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // a broken pipe is an end like any other
        let _ = stream.by_ref().take(KEPT).read_to_end(&mut bytes);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        // fails only if nobody waits any more
        let _ = done.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    kept
}
