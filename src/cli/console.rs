//! What many processes print, on one terminal: whole lines, each with the rank that printed it.

use std::io::Write;

use super::ui;

/// A line that is longer is broken.
const LONGEST: usize = 64 << 10;

/// Which of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Err,
}

/// Lines of all ranks.
pub(super) struct Console {
    // by rank: what is printed before a line of standard output and of standard error
    prefixes: Vec<[String; 2]>,
    // by rank: the line that has no end yet
    open: Vec<[Vec<u8>; 2]>,
    // what rank 0 prints goes through at once
    direct: bool,
    // by stream: whether rank 0 is inside a line, and what waits for its end
    inside: [bool; 2],
    waiting: [Vec<u8>; 2],
    // nobody reads it any more
    closed: [bool; 2],
}

impl Console {
    /// Lines begin with `[rank host]`.
    pub(super) fn prefixed(hosts: &[&str]) -> Self {
        Self::of(Self::prefixes(hosts), false)
    }

    /// As [`Console::prefixed`] but for rank 0: what it prints appears as it comes, so that one can talk with it.
    pub(super) fn led(hosts: &[&str]) -> Self {
        let mut prefixes = Self::prefixes(hosts);
        prefixes.iter_mut().take(1).for_each(|prefix| *prefix = Default::default());
        Self::of(prefixes, true)
    }

    fn prefixes(hosts: &[&str]) -> Vec<[String; 2]> {
        let width = hosts.iter().map(|host| host.chars().count()).max().unwrap_or(0);
        let last = hosts.len().saturating_sub(1).to_string().len();
        let prefix = |(rank, host): (usize, &&str)| {
            let text = format!("[{rank:last$} {host:width$}]");
            [ui::paint_out(&text, "2") + " ", ui::paint_err(&text, "2") + " "]
        };
        hosts.iter().enumerate().map(prefix).collect()
    }

    /// No line is marked; what rank 0 prints appears as it comes.
    pub(super) fn plain(ranks: usize) -> Self {
        Self::of(vec![Default::default(); ranks], true)
    }

    fn of(prefixes: Vec<[String; 2]>, direct: bool) -> Self {
        let open = vec![Default::default(); prefixes.len()];
        Self { prefixes, open, direct, inside: [false; 2], waiting: Default::default(), closed: [false; 2] }
    }

    /// Prints what a rank has printed. `false` if nobody reads standard output any more.
    pub(super) fn print(&mut self, rank: usize, stream: Stream, bytes: &[u8]) -> bool {
        let s = stream as usize;
        if self.direct && rank == 0 {
            self.write(stream, bytes);
            self.inside[s] = bytes.last().map_or(self.inside[s], |last| *last != b'\n');
            if !self.inside[s] {
                let waiting = std::mem::take(&mut self.waiting[s]);
                self.write(stream, &waiting);
            }
            return !self.closed[0];
        }
        let mut lines = Vec::new();
        for byte in bytes {
            let open = &mut self.open[rank][s];
            if *byte != b'\n' {
                open.push(*byte);
            }
            if *byte == b'\n' || open.len() >= LONGEST {
                lines.extend_from_slice(self.prefixes[rank][s].as_bytes());
                lines.append(open);
                lines.push(b'\n');
            }
        }
        if self.inside[s] {
            self.waiting[s].append(&mut lines);
        } else {
            self.write(stream, &lines);
        }
        !self.closed[0]
    }

    /// Prints the rest: lines that have no end.
    pub(super) fn finish(&mut self) {
        for stream in [Stream::Out, Stream::Err] {
            let s = stream as usize;
            let mut rest = Vec::new();
            if self.inside[s] && !self.waiting[s].is_empty() {
                rest.push(b'\n');
            }
            rest.append(&mut self.waiting[s]);
            for rank in 0..self.open.len() {
                if !self.open[rank][s].is_empty() {
                    rest.extend_from_slice(self.prefixes[rank][s].as_bytes());
                    rest.append(&mut self.open[rank][s]);
                    rest.push(b'\n');
                }
            }
            self.write(stream, &rest);
        }
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let written = match stream {
            Stream::Out => {
                let mut out = std::io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Stream::Err => std::io::stderr().write_all(bytes),
        };
        self.closed[stream as usize] |= written.is_err();
    }
}
