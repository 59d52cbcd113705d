//! What a batch has on its desk: the input, the rows that are there, and where new ones go.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::answers::End;
use super::index::Index;
use super::input::{Input, Intake, Survey};
use super::journal::{Journal, Opening};
use super::progress::{Summary, Watch};
use super::rows::{Rows, Sink};
use super::{Args, say_form};
use crate::cli::{Outcome, ui};
use crate::error::{Error, Result};

/// The desk.
pub(super) struct Desk {
    input: Input,
    survey: Option<Survey>,
    // until lines are read
    index: Option<Index>,
    pub(super) rows: Rows,
    before: u64,
    /// Where rows are, for people; `None` if a run cannot go on.
    output: Option<String>,
    summary: Summary,
    quiet: bool,
}

impl Desk {
    /// Opens the files and compares the lines with the rows.
    ///
    /// # Errors
    /// If a file cannot be read or written, is not what it is to be, or lines and rows contradict each other.
    pub(super) fn open(args: &Args) -> Result<Self> {
        let (output, errors) = args.files();
        check(args, output, errors)?;
        let mut input = if args.relayed { Input::relayed() } else { Input::new(&args.input, args.format) };
        let opening = match (args.overwrite, args.retry_errors) {
            (true, _) => Opening::Anew,
            (_, true) => Opening::RetryErrors,
            _ => Opening::GoOn,
        };
        let mut index = Index::default();
        let mut open = |path: &Path| Journal::open(path, opening, &mut index);
        let sink = output.map_or_else(|| Ok(Sink::Stdout(String::new())), |path| open(path).map(Sink::File))?;
        let errors = errors.map(open).transpose()?;
        let before = index.rows;
        if output.is_none() && before > 0 {
            let error = Error::usage("--errors has rows of another run, and without -o nothing can go on");
            return Err(error.hint("give -o, another --errors, or start anew with --overwrite"));
        }
        let survey = input.survey(&mut index)?;
        let quiet = args.is_quiet();
        if let Some((form, false)) = survey.and_then(|survey| survey.form).map(|form| (form, quiet)) {
            say_form(&input.name(), form);
        }
        let strangers = survey.map_or(0, |survey| before.saturating_sub(survey.lines - survey.left));
        if strangers > 0 && !quiet {
            let (noun, verb) = if strangers == 1 { ("row", "answers") } else { ("rows", "answer") };
            ui::whisper(format_args!("{strangers} {noun} {verb} no line of {}: they stay", input.name()));
        }
        Ok(Self {
            input,
            survey,
            index: Some(index),
            rows: Rows::new(sink, errors, args.ordered && !args.relayed),
            before: before.saturating_sub(strangers),
            output: output.map(|path| format!("`{}`", path.display())),
            summary: args.summary(),
            quiet,
        })
    }

    pub(super) fn nothing_is_left(&self) -> bool {
        self.survey.is_some_and(|survey| survey.left == 0)
    }

    /// What the input is called, if nobody knows its form yet.
    pub(super) fn unnamed_form(&self) -> Option<String> {
        (self.survey.is_none() && !self.quiet).then(|| self.input.name())
    }

    /// Compares the settings of this run with those of the rows that are there.
    ///
    /// # Errors
    /// If they differ.
    pub(super) fn check_run(&mut self, run: &str) -> Result<()> {
        let index = self.index.as_mut();
        if index.is_none_or(|index| index.is_of(run)) { Ok(()) } else { Err(self.other_run()) }
    }

    /// What is said where they do.
    pub(super) fn other_run(&self) -> Error {
        let output = self.output.as_deref().unwrap_or_default();
        let error = format!("{output} has rows of another model, or of other sampling or prompt flags");
        Error::msg(error).hint("give the same flags, another -o, or start anew with --overwrite")
    }

    /// What the rows that are there were made with.
    pub(super) fn run(&self) -> Option<String> {
        self.index.as_ref().and_then(|index| index.run.clone())
    }

    /// The lines that need a row.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn intake(&mut self) -> Result<Intake> {
        Intake::new(&self.input, self.index.take().unwrap_or_default())
    }

    /// Begins to watch.
    pub(super) fn watch(&self) -> Watch {
        Watch::new(self.survey.map(|survey| survey.lines), self.before, self.quiet)
    }

    /// Ends a run in which there was nothing to do.
    ///
    /// # Errors
    /// If the summary cannot be written.
    pub(super) fn finish(&mut self) -> Result<Outcome> {
        let watch = self.watch();
        self.end(&watch, Ok(End::Done))
    }

    /// Tells what was done, and how to go on.
    ///
    /// # Errors
    /// What the run ended with, or if the summary cannot be written.
    pub(super) fn end(&mut self, watch: &Watch, end: Result<End>) -> Result<Outcome> {
        watch.clear();
        if matches!(end, Ok(End::Done)) {
            self.rows.begin()?;
        }
        let left = || match &self.output {
            Some(output) if !self.quiet && self.before + self.rows.kept > 0 => {
                let count = self.before + self.rows.kept;
                let noun = if count == 1 { "row is" } else { "rows are" };
                ui::whisper(format_args!("{count} {noun} in {output}: the same command goes on"));
            }
            _ => {}
        };
        match end {
            Ok(End::Done) => watch.summary(&self.rows, &self.summary).map(|()| Outcome::Done),
            Ok(End::Closed) => Ok(Outcome::Done),
            Ok(End::Interrupted) => {
                left();
                Ok(Outcome::Interrupted)
            }
            Err(error) => {
                left();
                Err(error)
            }
        }
    }
}

/// Checks what can be checked before a file is touched.
fn check(args: &Args, output: Option<&Path>, errors: Option<&Path>) -> Result<()> {
    if output.is_none() && args.retry_errors && !args.relayed {
        return Err(Error::usage("--retry-errors needs the rows of a run before").hint("name them with -o"));
    }
    if args.relayed {
        return Ok(());
    }
    let same = |a: &Path, b: &Path| match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => a.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => a == b,
    };
    let files = [("the input", Some(args.input.as_path())), ("-o", output), ("--errors", errors)];
    for (at, (name, path)) in files.iter().enumerate() {
        for (other, second) in &files[at + 1..] {
            if let (Some(path), Some(second)) = (path, second)
                && same(path, second)
            {
                let error = Error::usage(format!("{name} and {other} are the same file, `{}`", second.display()));
                return Err(error.hint("give each a file of its own"));
            }
        }
    }
    if args.input != Path::new("-") {
        std::fs::metadata(&args.input).map_err(|error| Error::io(&args.input, error))?;
    }
    Ok(())
}
