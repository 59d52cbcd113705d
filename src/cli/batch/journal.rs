//! A file of rows that only grows: locked against others, cut where a crash tore it, on the disk when it says so.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::index::Index;
use super::row::{BEGINNING, Written};
use crate::error::{Error, Result};

/// How a file that is there already is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// Its rows stay.
    GoOn,
    /// Its rows stay but for those that failed.
    RetryErrors,
    /// Nothing stays.
    Anew,
}

/// The file.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes that are surely there; what follows is torn.
    len: u64,
    /// A pipe or a device: nothing to lock, to read or to sync.
    stream: bool,
    pending: Vec<u8>,
    opening: Opening,
    /// Rows that are to be dropped.
    failed: u64,
}

impl Journal {
    /// Opens or makes the file and adds the rows in it to `index`.
    ///
    /// # Errors
    /// If another process has it, it holds something else than rows of ours, or it cannot be read or written. Nothing in it is
    /// changed then.
    pub(super) fn open(path: &Path, opening: Opening, index: &mut Index) -> Result<Self> {
        let wrap = |error| Error::io(path, error);
        let (file, stream) = loop {
            let existed = path.exists();
            let file = OpenOptions::new().read(true).append(true).create(true).open(path);
            let file = match file {
                // what can only be written, like a pipe
                Err(error) if existed && error.kind() == ErrorKind::PermissionDenied => {
                    OpenOptions::new().append(true).open(path).map_err(wrap)?
                }
                file => file.map_err(wrap)?,
            };
            let found = file.metadata().map_err(wrap)?;
            if !found.is_file() {
                break (file, true);
            }
            lock(&file, path)?;
            // another may have put a new file in its place meanwhile
            if std::fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (found.dev(), found.ino())) {
                if !existed {
                    sync_directory(path)?;
                }
                break (file, false);
            }
        };
        let mut journal = Self { path: path.to_owned(), file, len: 0, stream, pending: Vec::new(), opening, failed: 0 };
        if !stream && opening != Opening::Anew {
            journal.read(index)?;
        }
        Ok(journal)
    }

    /// Makes it what it is to be before rows are added: until then nothing in it is changed.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn begin(&mut self) -> Result<()> {
        if self.stream {
            return Ok(());
        }
        self.cut()?;
        if std::mem::take(&mut self.failed) > 0 { self.drop_failed() } else { Ok(()) }
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Adds the rows to `index`, finds where they end, and how many are to be dropped.
    fn read(&mut self, index: &mut Index) -> Result<()> {
        let wrap = |error| Error::io(&self.path, error);
        let size = self.file.seek(SeekFrom::End(0)).map_err(wrap)?;
        self.file.rewind().map_err(wrap)?;
        let mut reader = BufReader::with_capacity(1 << 20, &self.file);
        let (mut line, mut number) = (Vec::new(), 0_u64);
        while self.len < size {
            line.clear();
            number += 1;
            reader.read_until(b'\n', &mut line).map_err(wrap)?;
            let whole = line.strip_suffix(b"\n").and_then(Written::parse);
            let Some(row) = whole else {
                if is_torn(&line, number) {
                    break;
                }
                let error = format!("line {number} of `{}` is no row of `tbshard batch`", self.path.display());
                return Err(Error::msg(error).hint("give another -o (and --errors), or start anew with --overwrite"));
            };
            self.len += line.len() as u64;
            if self.opening == Opening::RetryErrors && row.failed() {
                self.failed += 1;
            } else {
                index.add(&self.path, &row)?;
            }
        }
        Ok(())
    }

    /// Cuts off what is no whole row.
    fn cut(&mut self) -> Result<()> {
        let wrap = |error| Error::io(&self.path, error);
        if self.file.metadata().map_err(wrap)?.len() != self.len {
            self.file.set_len(self.len).and_then(|()| self.file.sync_all()).map_err(wrap)?;
        }
        Ok(())
    }

    /// Puts a file in its place that has all rows but the failed; at no moment is there neither.
    fn drop_failed(&mut self) -> Result<()> {
        let mut name = self.path.clone().into_os_string();
        name.push(".tbshard-partial");
        let partial = PathBuf::from(name);
        let wrap = |error| Error::io(&partial, error);
        let file = OpenOptions::new().read(true).append(true).create(true).open(&partial).map_err(wrap)?;
        lock(&file, &partial)?;
        let copied = self.copy(&file).map_err(|error| {
            // it is of no use any more
            let _ = std::fs::remove_file(&partial);
            wrap(error)
        })?;
        std::fs::rename(&partial, &self.path).map_err(|error| Error::io(&self.path, error))?;
        sync_directory(&self.path)?;
        (self.file, self.len) = (file, copied);
        Ok(())
    }

    fn copy(&mut self, to: &File) -> std::io::Result<u64> {
        to.set_len(0)?;
        to.set_permissions(self.file.metadata()?.permissions())?;
        self.file.rewind()?;
        let mut reader = BufReader::with_capacity(1 << 20, (&self.file).take(self.len));
        let mut writer = BufWriter::with_capacity(1 << 20, to);
        let (mut line, mut copied) = (Vec::new(), 0);
        while reader.read_until(b'\n', &mut line)? > 0 {
            if Written::parse(&line).is_some_and(|row| !row.failed()) {
                writer.write_all(&line)?;
                copied += line.len() as u64;
            }
            line.clear();
        }
        writer.flush()?;
        drop(writer);
        to.sync_all()?;
        Ok(copied)
    }

    /// Adds a row to those of the next [`Journal::commit`].
    pub(super) fn push(&mut self, row: &str) {
        self.pending.extend_from_slice(row.as_bytes());
    }

    /// Writes the rows that were pushed; returns when the disk has them. `false` if nobody reads a pipe any more.
    ///
    /// # Errors
    /// If they cannot be written. The file then ends where it did before.
    pub(super) fn commit(&mut self) -> Result<bool> {
        if self.pending.is_empty() {
            return Ok(true);
        }
        let synced = |file: &File| if self.stream { Ok(()) } else { file.sync_data() };
        let written = self.file.write_all(&self.pending).and_then(|()| synced(&self.file));
        match written {
            Ok(()) => {
                self.len += self.pending.len() as u64;
                self.pending.clear();
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => {
                // a rerun cuts it otherwise
                let _ = if self.stream { Ok(()) } else { self.file.set_len(self.len) };
                Err(Error::io(&self.path, error))
            }
        }
    }
}

/// Whether the last line of a file, or one that a lost disk write left as zeros, is what a crash leaves of a row.
fn is_torn(line: &[u8], number: u64) -> bool {
    let text = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let (begun, zeros) = (BEGINNING.as_bytes(), text.len() < line.len());
    let ours = text.starts_with(begun) || begun.starts_with(text);
    ours && if zeros { number > 1 || !text.is_empty() } else { !line.ends_with(b"\n") }
}

fn lock(file: &File, path: &Path) -> Result<()> {
    flock(file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        if error == rustix::io::Errno::WOULDBLOCK {
            let error = format!("another process is writing to `{}`", path.display());
            return Error::msg(error).hint("wait for its end, or give another -o (and --errors)");
        }
        Error::io(path, error.into()).hint("give a file on a disk that can lock files")
    })
}

/// Makes the name of a file as lasting as the file.
fn sync_directory(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(|error| Error::io(parent, error))
}
