//! The input, line by line: a file that is read twice, or a stream that is read as it comes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::index::Index;
use super::line::{Form, Line};
use crate::error::{Error, Result};

/// Bytes of a line at most. What is longer is no prompt, and would fill the memory.
const LONGEST: usize = 64 << 20;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Where lines come from.
#[derive(Debug, Clone)]
pub(super) struct Input {
    /// `None` is standard input.
    path: Option<PathBuf>,
    form: Option<Form>,
}

/// What reading a file once has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Survey {
    /// `None` if it has no line.
    pub(super) form: Option<Form>,
    pub(super) lines: u64,
    /// Lines that have no row yet.
    pub(super) left: u64,
}

impl Input {
    pub(super) fn new(path: &Path, form: Option<Form>) -> Self {
        Self { path: (path != Path::new("-")).then(|| path.to_owned()), form }
    }

    /// Standard input, as another machine's batch writes it.
    pub(super) fn relayed() -> Self {
        Self { path: None, form: Some(Form::Jsonl) }
    }

    /// What it is called.
    pub(super) fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "standard input".to_owned(), |path| format!("`{}`", path.display()))
    }

    /// Reads all lines, if they can be read again, and compares them with the rows that are there.
    ///
    /// # Errors
    /// If it cannot be read, or as [`Index::meet`].
    pub(super) fn survey(&mut self, index: &mut Index) -> Result<Option<Survey>> {
        let Some(path) = &self.path else { return Ok(None) };
        if !std::fs::metadata(path).map_err(|error| Error::io(path, error))?.is_file() {
            return Ok(None);
        }
        index.begin();
        let mut survey = Survey { form: None, lines: 0, left: 0 };
        let mut lines = self.lines()?;
        while let Some(line) = lines.next_line()? {
            survey.lines += 1;
            survey.left += u64::from(index.meet(&line)?);
        }
        survey.form = lines.form;
        self.form = survey.form.or(self.form);
        Ok(Some(survey))
    }

    /// Reads it from its beginning.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn lines(&self) -> Result<Lines> {
        let from: Box<dyn Read + Send> = match &self.path {
            Some(path) => Box::new(File::open(path).map_err(|error| Error::io(path, error))?),
            None => Box::new(std::io::stdin()),
        };
        Ok(Lines::new(from, self.name(), self.form))
    }
}

/// Lines that have something on them.
pub(super) struct Lines {
    from: BufReader<Box<dyn Read + Send>>,
    name: String,
    /// Told, or seen at the first line.
    pub(super) form: Option<Form>,
    number: u64,
}

impl Lines {
    fn new(from: Box<dyn Read + Send>, name: String, form: Option<Form>) -> Self {
        Self { from: BufReader::with_capacity(1 << 18, from), name, form, number: 0 }
    }

    /// The next line, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn next_line(&mut self) -> Result<Option<Line>> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let fail = |error| Error::from_std(error).context(&self.name);
            let read = (&mut self.from).take(LONGEST as u64 + 1).read_until(b'\n', &mut bytes).map_err(fail)?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if bytes.len() > LONGEST && !bytes.ends_with(b"\n") {
                self.skip()?;
                let form = self.form.unwrap_or(Form::Text);
                let ask = Err(format!("it has more than {LONGEST} bytes"));
                return Ok(Some(Line { ask, ..Line::parse(self.number, &bytes[..1024], form) }));
            }
            let mut text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            text = text.strip_suffix(b"\r").unwrap_or(text);
            if self.number == 1 {
                text = text.strip_prefix(BOM).unwrap_or(text);
            }
            if text.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let form = *self.form.get_or_insert_with(|| Form::of(text));
            return Ok(Some(Line::parse(self.number, text, form)));
        }
    }

    /// Reads to the end of a line.
    fn skip(&mut self) -> Result<()> {
        loop {
            let fail = |error| Error::from_std(error).context(&self.name);
            let buffer = self.from.fill_buf().map_err(fail)?;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let (count, empty) = (end.map_or(buffer.len(), |at| at + 1), buffer.is_empty());
            self.from.consume(count);
            if end.is_some() || empty {
                return Ok(());
            }
        }
    }
}

/// The lines that have no row yet, each with the how manieth of them it is.
pub(super) struct Intake {
    lines: Lines,
    index: Index,
    next: u64,
}

impl Intake {
    /// Reads `input` once more, or for the first time.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn new(input: &Input, mut index: Index) -> Result<Self> {
        index.begin();
        Ok(Self { lines: input.lines()?, index, next: 0 })
    }

    /// The next of them.
    ///
    /// # Errors
    /// If the input cannot be read, or as [`Index::meet`].
    pub(super) fn next_line(&mut self) -> Result<Option<(u64, Line)>> {
        while let Some(line) = self.lines.next_line()? {
            if self.index.meet(&line)? {
                self.next += 1;
                return Ok(Some((self.next - 1, line)));
            }
        }
        Ok(None)
    }

    /// How the input says what it asks for, once a line was read.
    pub(super) fn form(&self) -> Option<Form> {
        self.lines.form
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], form: Option<Form>) -> Vec<Line> {
        let mut lines = Lines::new(Box::new(std::io::Cursor::new(bytes.to_vec())), "a test".to_owned(), form);
        std::iter::from_fn(|| lines.next_line().unwrap()).collect()
    }

    #[test]
    fn windows_files_blank_lines_and_a_missing_end_change_nothing() {
        let plain = read(b"one\n\n two\nthree", None);
        assert_eq!(
            plain.iter().map(|line| line.custom_id.as_str()).collect::<Vec<_>>(),
            ["line-1", "line-3", "line-4"]
        );
        assert_eq!(read(b"\xef\xbb\xbfone\r\n \t\r\n two\r\nthree\r\n\n", None), plain);
        assert_eq!(read(b"\n \n", None), []);
    }

    #[test]
    fn the_first_line_decides_unless_it_is_said() {
        assert!(read(b"\n {\"prompt\": \"x\"}\nno json\n", None)[1].ask.is_err());
        assert!(read(b"x\n{\"prompt\": 3}\n", None)[1].ask.is_ok());
        assert!(read(b"{\"prompt\n", Some(Form::Text))[0].ask.is_ok());
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let mut long = vec![b'x'; LONGEST + 5];
        long.extend(b"\nshort\n");
        let lines = read(&long, None);
        assert!(lines[0].ask.as_ref().unwrap_err().contains("bytes"));
        assert_eq!((lines[1].number, lines[1].custom_id.as_str()), (2, "line-2"));
    }
}
