//! The built program and its processes.

use std::process::{Command, Stdio};

/// Runs `tbshard` without the caller's hub settings.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tbshard"));
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
