//! What a person sees: lines on stdout and stderr, progress bars, colour.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::env;
use crate::cluster::hub;
use crate::error::{Error, Result};

/// Writes a line to stderr. There is nobody to tell if that fails.
pub(super) fn say(line: impl Display) {
    // in one piece, because other ranks write to the same place
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Writes a dimmed line to stderr.
pub(super) fn whisper(line: impl Display) {
    say(paint_err(&line.to_string(), "2"));
}

/// Writes `text` to stdout; `false` if nobody reads it any more.
///
/// # Errors
/// If it cannot be written, as on a full disk.
pub(super) fn print(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io(Path::new("standard output"), error).hint("give it somewhere to go")),
    }
}

/// `text` in the style `code` (an SGR parameter) if stderr is a terminal that wants colour.
pub(super) fn paint_err(text: &str, code: &str) -> String {
    paint(text, code, std::io::stderr().is_terminal())
}

/// `text` in the style `code` if stdout is a terminal that wants colour.
pub(super) fn paint_out(text: &str, code: &str) -> String {
    paint(text, code, std::io::stdout().is_terminal())
}

fn paint(text: &str, code: &str, terminal: bool) -> String {
    if terminal && !env::no_colour() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Whether stdout is a terminal that wants colour.
pub(super) fn colour_on_stdout() -> bool {
    std::io::stdout().is_terminal() && !env::no_colour()
}

/// Columns of the terminal that stdout is, if it is one.
pub(super) fn stdout_width() -> Option<usize> {
    let out = std::io::stdout();
    let width = out.is_terminal().then(|| terminal_size::terminal_size_of(&out)).flatten();
    width.map(|(width, _)| usize::from(width.0)).filter(|width| *width > 0)
}

/// Whether standard input is a terminal that another job reads.
pub(super) fn in_background() -> bool {
    let stdin = std::io::stdin();
    let reader = stdin.is_terminal().then(|| rustix::termios::tcgetpgrp(&stdin).ok()).flatten();
    reader.is_some_and(|reader| reader != rustix::process::getpgrp())
}

/// Columns and rows of the terminal, if there is one.
pub(super) fn terminal_size() -> Option<(u16, u16)> {
    terminal_size::terminal_size().map(|(width, height)| (width.0, height.0))
}

/// A bar of `total` steps; invisible when stderr is no terminal, or `quiet`.
pub(super) fn bar(total: u64, template: &str, quiet: bool) -> ProgressBar {
    let hidden = quiet || !std::io::stderr().is_terminal();
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(total), target);
    bar.set_style(style.progress_chars("=> ").tick_chars("|/-\\ "));
    bar
}

/// A line that says what is going on; invisible when stderr is no terminal, or `quiet`.
pub(super) fn spinner(message: String, quiet: bool) -> ProgressBar {
    let spinner = bar(0, "{spinner} {msg}", quiet);
    spinner.set_message(message);
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}

/// A download as a progress bar.
pub(super) struct Download {
    bar: ProgressBar,
    repo: String,
    quiet: bool,
}

impl Download {
    pub(super) fn new(repo: &str, quiet: bool) -> Self {
        let template = "{msg} {bar:20} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}";
        Self { bar: bar(0, template, quiet), repo: repo.to_owned(), quiet }
    }
}

impl hub::Progress for Download {
    fn total(&self, files: usize, bytes: u64) {
        self.bar.set_length(bytes);
        self.bar.set_message(format!("{} ({files} files)", self.repo));
        self.bar.enable_steady_tick(Duration::from_millis(200));
        if self.bar.is_hidden() && !self.quiet && files > 0 {
            say(format_args!("downloading {} ({files} files, {bytes} bytes)", self.repo));
        }
    }

    fn file(&self, _name: &str, _bytes: u64) {}

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn done(&self) {
        self.bar.finish_and_clear();
    }
}
