//! The built program and its processes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// The program under test: `TBSHARD_BINARY`, or the one built with the tests.
#[allow(clippy::disallowed_methods, reason = "tests are configured by the environment")]
pub fn binary() -> &'static Path {
    static BINARY: LazyLock<PathBuf> =
        LazyLock::new(|| std::env::var_os("TBSHARD_BINARY").unwrap_or(env!("CARGO_BIN_EXE_tbshard").into()).into());
    &BINARY
}

/// Runs `tbshard` without the caller's hub settings.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).stdin(Stdio::null()).env("HF_HUB_OFFLINE", "1").env("HF_HOME", "/nonexistent");
    for name in ["HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE"] {
        command.env_remove(name);
    }
    command
}

/// Sends a process `-KILL`, `-STOP` or another signal.
pub fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}
