//! Files out of the system's page cache, so that a start is as cold as an unprivileged user can make it.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What a start of the program reads: itself, and the files of the model's directory.
pub(super) fn files(directory: Option<&Path>) -> Result<Vec<PathBuf>> {
    let program = std::env::current_exe().map_err(|error| Error::from_std(error).context("where this program is"))?;
    let mut files = vec![program];
    let Some(directory) = directory else { return Ok(files) };
    for entry in std::fs::read_dir(directory).map_err(|error| Error::io(directory, error))? {
        let path = entry.map_err(|error| Error::io(directory, error))?.path();
        // the hub's cache has links to files
        if path.metadata().is_ok_and(|found| found.is_file()) {
            files.push(path);
        }
    }
    Ok(files)
}

/// Asks the system to forget what it holds of `files`: pages that are written back already, and that no process maps.
/// Returns whether it can be asked.
///
/// # Errors
/// If a file cannot be opened.
#[cfg(target_os = "linux")]
pub(super) fn forget(files: &[PathBuf]) -> Result<bool> {
    for path in files {
        let wrong = |error: std::io::Error| Error::io(path, error);
        let file = File::open(path).map_err(wrong)?;
        // what was just written stays otherwise; on a disk that cannot be written to there is nothing of the kind
        let _ = file.sync_data();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(|error| wrong(error.into()))?;
    }
    Ok(true)
}

/// Asks the system to forget what it holds of `files`, which this one cannot be asked. Returns whether it can.
///
/// # Errors
/// If a file cannot be opened.
#[cfg(not(target_os = "linux"))]
pub(super) fn forget(files: &[PathBuf]) -> Result<bool> {
    files.iter().try_for_each(|path| File::open(path).map(drop).map_err(|error| Error::io(path, error)))?;
    Ok(false)
}
