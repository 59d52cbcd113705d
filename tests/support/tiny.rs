//! The tiny checkpoints that there are.

use std::path::{Path, PathBuf};

use super::files::{fixtures, oracle};

/// The directories of all tiny checkpoints, committed and (if there) of the oracle.
pub fn tiny_checkpoints() -> Vec<PathBuf> {
    let mut dirs = subdirectories(&fixtures().join("tiny"));
    assert!(!dirs.is_empty(), "no committed fixtures");
    match oracle() {
        Some(oracle) => dirs.extend(subdirectories(&oracle.join("tiny"))),
        None => println!("skipped: TBSHARD_ORACLE is not set"),
    }
    dirs
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut dirs: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    dirs.sort();
    dirs
}
