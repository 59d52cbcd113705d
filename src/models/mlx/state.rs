//! The mark of an unfinished conversion in its directory: what it is of, and whose it is.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::weights::hex;

/// The name of the mark.
const MARK: &str = ".tbshard-quantize.json";

/// What a conversion is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Work {
    /// What makes it, because another version may make other bytes.
    tbshard: String,
    /// For people.
    model: String,
    /// For people.
    settings: String,
    /// SHA-256 of what identifies the model's files and the settings.
    fingerprint: String,
}

impl Work {
    /// The conversion of the model in `dir` (or of none that is in files) with the digest `digest`, by `settings`.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub(super) fn new(dir: Option<&Path>, digest: &str, settings: &str) -> Result<Self> {
        let mut hash = Sha256::new();
        hash.update(digest);
        hash.update(settings);
        if let Some(dir) = dir {
            // the digest knows headers; another fine-tuning of one model has the same, but not the same age
            for (name, bytes, age) in weight_files(dir)? {
                hash.update(format!("{name}\n{bytes}\n{age}\n"));
            }
        }
        let model = dir.map_or_else(|| "demo".to_owned(), |dir| dir.display().to_string());
        let tbshard = format!("{} {}", env!("CARGO_PKG_VERSION"), env!("TBSHARD_BUILD"));
        Ok(Self { tbshard, model, settings: settings.to_owned(), fingerprint: hex(hash) })
    }
}

fn weight_files(dir: &Path) -> Result<Vec<(String, u64, u128)>> {
    let wrap = |error| Error::io(dir, error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(wrap)? {
        let entry = entry.map_err(wrap)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".safetensors") {
            continue;
        }
        // of what a link of the hub's cache leads to
        let found = std::fs::metadata(entry.path()).map_err(wrap)?;
        let age = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        files.push((name, found.len(), age.map_or(0, |age| age.as_nanos())));
    }
    files.sort();
    Ok(files)
}

/// The mark, locked: nobody else writes to the directory.
#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
    // the lock ends with it
    _file: File,
    /// Whether an earlier attempt left it.
    pub(super) found: bool,
}

impl Mark {
    /// Begins `work` in `dir`, or goes on with it.
    ///
    /// # Errors
    /// If the directory holds anything but an unfinished conversion of the same, or another process is at it.
    pub(super) fn set(dir: &Path, work: &Work) -> Result<Self> {
        if dir.exists() && !dir.is_dir() {
            let error = Error::usage(format!("`{}` is a file", dir.display()));
            return Err(error.hint("give -o a directory that does not exist yet"));
        }
        std::fs::create_dir_all(dir).map_err(|error| Error::io(dir, error))?;
        let path = dir.join(MARK);
        if !path.exists() {
            refuse_others(dir)?;
        }
        let wrap = |error| Error::io(&path, error);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(wrap)?;
        match file.try_lock() {
            Ok(()) => {}
            // a network disk may have no locks at all
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(wrap(error)),
            Err(TryLockError::WouldBlock) => {
                let error = Error::msg(format!("another process writes to `{}`", dir.display()));
                return Err(error.hint("wait for it to end"));
            }
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(wrap)?;
        if text.is_empty() {
            // just made, here or by one that was killed at once
            let json = serde_json::to_string(work).map_err(Error::from_std)?;
            file.write_all(json.as_bytes()).and_then(|()| file.sync_all()).map_err(wrap)?;
            return Ok(Self { path, _file: file, found: false });
        }
        match serde_json::from_str::<Work>(&text) {
            Ok(found) if found == *work => Ok(Self { path, _file: file, found: true }),
            found => {
                let (dir, was) =
                    (dir.display(), found.map_or_else(|_| "something else".to_owned(), |found| of(&found)));
                let error =
                    Error::usage(format!("`{dir}` holds the unfinished conversion of {was}, not of {}", of(work)));
                Err(error.hint("finish that first, remove the directory, or give -o another one"))
            }
        }
    }

    /// Says that the conversion is complete.
    ///
    /// # Errors
    /// If the mark cannot be removed.
    pub(super) fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|error| Error::io(&self.path, error))
    }
}

fn of(work: &Work) -> String {
    format!("{} ({}, tbshard {})", work.model, work.settings, work.tbshard)
}

/// Refuses a directory that is not empty.
fn refuse_others(dir: &Path) -> Result<()> {
    let wrap = |error| Error::io(dir, error);
    let Some(entry) = std::fs::read_dir(dir).map_err(wrap)?.next() else { return Ok(()) };
    let name = entry.map_err(wrap)?.file_name();
    let error = Error::usage(format!("`{}` is not empty: it has `{}`", dir.display(), name.to_string_lossy()));
    Err(error.hint("give -o a directory that does not exist yet"))
}
