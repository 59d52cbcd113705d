//! The process that an agent has started: in a group of its own, and ended with everything that it started itself.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child as Process, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::wire::{End, PIECE, Report, Start};
use super::{Event, spawn};
use crate::cluster::run::Line;
use crate::error::{Error, Result};
use crate::transport::{self, tcp};

/// How long a process may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(2);

/// How long what a process has printed may take to come once it has ended: something that it started may hold its output.
const REST: Duration = Duration::from_millis(500);

pub(super) struct Child {
    process: Process,
    group: Option<Pid>,
    line: Option<Line>,
    input: Option<SyncSender<Vec<u8>>>,
    streams: usize,
    ended: Option<(End, Instant)>,
}

impl Child {
    /// Starts it; what it says and prints goes to `out`, the ends of its streams to `events`.
    pub(super) fn start(
        start: Start,
        listener: Option<&tcp::Listener>,
        out: &SyncSender<Report>,
        events: &Sender<Event>,
    ) -> Result<Self> {
        let this = || std::env::current_exe().map(|path| path.display().to_string()).map_err(Error::from_std);
        let program = start.program.map_or_else(this, Ok)?;
        let mut command = Command::new(&program);
        command.args(&start.args).envs(&start.env).process_group(0);
        if let Some(directory) = &start.directory {
            command.current_dir(directory);
        }
        command.stdin(if start.stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let line = start.ticket.as_ref().map(|_| Line::new(&mut command)).transpose()?;
        if let Some(ticket) = &start.ticket {
            command.env("TBSHARD_RANK", ticket.rank.to_string());
            command.env("TBSHARD_WORLD_SIZE", ticket.world_size.to_string());
        }
        if let Some(listener) = listener {
            transport::inherit(listener.socket(), &mut command);
        }
        let mut process = command.spawn().map_err(|error| {
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound => "give its path on that host, or install it there",
                _ => "see whether that host's user may run it",
            };
            Error::from_std(error).context(format!("cannot start `{program}`")).hint(hint)
        })?;
        let line = line.map(|(line, _)| line);
        if let (Some(line), Some(ticket)) = (&line, &start.ticket) {
            line.ticket(ticket);
            let (listen, out) = (line.listen()?, out.clone());
            spawn("stream", move || {
                listen(&mut |status| {
                    // nobody hears it when the launcher is gone
                    let _ = out.send(Report::Status(status));
                });
            })?;
        }
        let mut streams = 0;
        if let Some(stdout) = process.stdout.take() {
            forward(stdout, Report::Stdout, out.clone(), events.clone())?;
            streams += 1;
        }
        if let Some(stderr) = process.stderr.take() {
            forward(stderr, Report::Stderr, out.clone(), events.clone())?;
            streams += 1;
        }
        let input = match process.stdin.take() {
            Some(stdin) => {
                let (input, pieces) = sync_channel(1);
                let out = out.clone();
                spawn("stream", move || feed(stdin, &pieces, &out))?;
                Some(input)
            }
            None => None,
        };
        let group = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        Ok(Self { process, group, line, input, streams, ended: None })
    }

    /// Gives it a piece of standard input; none ends it.
    pub(super) fn input(&mut self, piece: Option<Vec<u8>>) {
        match (piece, &self.input) {
            (Some(piece), Some(input)) => {
                // one that reads no more needs no more
                let _ = input.try_send(piece);
            }
            _ => self.input = None,
        }
    }

    pub(super) fn exited(&self, rank: usize, how: &str) {
        self.line.iter().for_each(|line| line.exited(rank, how));
    }

    /// Takes that one of its output streams has ended.
    pub(super) fn stream_ended(&mut self) {
        self.streams = self.streams.saturating_sub(1);
    }

    /// How it ended, once it has and everything that it printed is on its way.
    pub(super) fn ended(&mut self) -> Option<End> {
        if self.ended.is_none() {
            let status = self.process.try_wait().ok().flatten()?;
            self.signal(Signal::KILL);
            self.ended = Some((status.into(), Instant::now()));
        }
        self.ended.filter(|(_, since)| self.streams == 0 || since.elapsed() > REST).map(|(end, _)| end)
    }

    /// Ends it and everything that it started: asked first, then not asked.
    pub(super) fn stop(&mut self) {
        (self.line, self.input) = (None, None);
        self.signal(Signal::TERM);
        // one that is stopped would not hear it
        self.signal(Signal::CONT);
        let until = Instant::now() + GRACE;
        while self.ended.is_none() && Instant::now() < until {
            match self.process.try_wait() {
                Ok(Some(status)) => self.ended = Some((status.into(), Instant::now())),
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        self.signal(Signal::KILL);
        if self.ended.is_none() {
            // only the kernel could keep it now
            let _ = self.process.wait();
        }
    }

    fn signal(&self, signal: Signal) {
        // a group that is gone needs no signal
        let _ = self.group.map(|group| kill_process_group(group, signal));
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.stop();
        }
    }
}

fn forward(
    mut stream: impl Read + Send + 'static,
    wrap: fn(Vec<u8>) -> Report,
    out: SyncSender<Report>,
    events: Sender<Event>,
) -> Result<()> {
    spawn("stream", move || {
        let mut piece = vec![0; PIECE];
        while let Ok(count) = stream.read(&mut piece)
            && count > 0
            && out.send(wrap(piece[..count].to_vec())).is_ok()
        {}
        // the agent may be at its end
        let _ = events.send(Event::StreamEnded);
    })
    .map(drop)
}

fn feed(mut stdin: ChildStdin, pieces: &Receiver<Vec<u8>>, out: &SyncSender<Report>) {
    while let Ok(piece) = pieces.recv() {
        // a process that does not read its input is no error
        if stdin.write_all(&piece).is_err() || out.send(Report::Taken).is_err() {
            return;
        }
    }
}
