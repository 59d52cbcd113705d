//! Where the files that tests read lie.

use std::path::{Path, PathBuf};

/// The directory of the committed fixtures.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The large oracle set, if `TBSHARD_ORACLE` says where it is.
#[allow(clippy::disallowed_methods, reason = "tests are configured by the environment")]
pub fn oracle() -> Option<PathBuf> {
    std::env::var_os("TBSHARD_ORACLE").map(PathBuf::from)
}
