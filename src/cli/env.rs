//! The environment: every variable that tbshard reads.
#![allow(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]

use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::ssh::Ssh;
use crate::cluster::{hub, run};
use crate::error::Result;

fn read(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether colour is unwelcome: `NO_COLOR` is set, or `TERM` is `dumb`.
pub(super) fn no_colour() -> bool {
    read("NO_COLOR").is_some() || read("TERM").is_some_and(|term| term == "dumb")
}

/// The hub of `HF_ENDPOINT`, its cache (`HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HOME`), token (`HF_TOKEN`,
/// `HF_TOKEN_PATH` or the file that `hf auth login` writes) and `HF_HUB_OFFLINE`.
pub(super) fn hub() -> Result<hub::Hub> {
    let endpoint = read("HF_ENDPOINT").unwrap_or_else(|| hub::ENDPOINT.to_owned());
    let file = read("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| hub::home(read).ok().map(|home| home.join("token")));
    let stored = || Some(std::fs::read_to_string(file?).ok()?.trim().to_owned()).filter(|token| !token.is_empty());
    let offline =
        read("HF_HUB_OFFLINE").is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str()));
    hub::Hub::new(&endpoint, hub::default_cache(read)?, read("HF_TOKEN").or_else(stored), offline)
}

/// How `ssh` is called: `TBSHARD_SSH`, a command line like `ssh -F my-config`.
pub(super) fn ssh(patience: Duration) -> Result<Ssh> {
    let ssh = read("TBSHARD_SSH").map_or_else(|| Ok(Ssh::default()), |line| Ssh::new(&line))?;
    Ok(ssh.with_connect_timeout(patience))
}

/// What sshd says about the connection over which this process was started.
pub(super) fn ssh_connection() -> Option<String> {
    read("SSH_CONNECTION")
}

/// The key that clients of `tbshard serve` must have: `TBSHARD_API_KEY`.
pub(super) fn api_key() -> Option<String> {
    read("TBSHARD_API_KEY")
}

/// The rank that `tbshard launch` has started this process as.
pub(super) fn rank() -> Option<usize> {
    std::env::var_os(run::VARIABLE)?;
    read("TBSHARD_RANK")?.parse().ok()
}

/// The home directory.
pub(super) fn home() -> Option<PathBuf> {
    read("HOME").map(PathBuf::from)
}

/// A path that may begin with `~/`.
pub(super) fn expand(path: &str) -> String {
    match (path.strip_prefix("~/"), read("HOME")) {
        (Some(rest), Some(home)) => format!("{home}/{rest}"),
        _ => path.to_owned(),
    }
}
