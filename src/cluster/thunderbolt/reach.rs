//! Whether a peer is reached over a cable, and whether it is macOS that keeps tbshard from it.
//!
//! Local Network privacy has no command that tells what it forbids. It shows in this: a program of the system reaches a
//! neighbour, and ours does not.

use std::io::ErrorKind;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::commands::Said;

/// Whether an address is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// It answers, if only to refuse.
    Reached,
    /// It answers to `ping`, and not to tbshard.
    Forbidden,
    /// It answers to nobody.
    Silent,
}

/// Tries `address`: `connect` opens a connection to any port there, `run` runs a command.
pub fn reach(
    address: Ipv4Addr,
    connect: &dyn Fn(Ipv4Addr) -> std::io::Result<()>,
    run: &mut dyn FnMut(&[&str]) -> Said,
) -> Reach {
    match connect(address) {
        Ok(()) => return Reach::Reached,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Reach::Reached,
        Err(_) => {}
    }
    let answered = run(&["ping", "-c", "1", "-t", "2", &address.to_string()]).code == Some(0);
    if answered { Reach::Forbidden } else { Reach::Silent }
}
