//! Changing a Mac: commands that root runs, and a record of what was so before.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::commands::{Record, Said, program};
use crate::error::{Error, Result};

/// The programs that change something.
const PROGRAMS: [&str; 3] = ["networksetup", "ifconfig", "PlistBuddy"];

/// What a host is told to do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Order {
    /// Commands, without `sudo`.
    pub commands: Vec<Vec<String>>,
    /// What is so before; it is written down before anything changes.
    pub remember: Record,
    /// Whether the record is to go once all is done.
    pub forget: bool,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Applied {
    /// `sudo` wants a password, in these words; then nothing was done.
    pub password: Option<String>,
    /// What every command said; the last one is the first that failed.
    pub said: Vec<Said>,
}

/// Carries out an order on this machine; `run` runs a command.
///
/// # Errors
/// If the order names a program that changes nothing of ours, or the record cannot be written.
pub fn apply(order: &Order, home: &Path, run: &mut dyn FnMut(&[&str]) -> Said) -> Result<Applied> {
    let known = |command: &Vec<String>| command.first().is_some_and(|name| PROGRAMS.contains(&name.as_str()));
    if let Some(command) = order.commands.iter().find(|command| !known(command)) {
        return Err(Error::usage(format!("`{}` is nothing that a setup runs", command.join(" "))));
    }
    let mut applied = Applied::default();
    if order.commands.is_empty() {
        if order.forget {
            Record::forget(home)?;
        }
        return Ok(applied);
    }
    let may = run(&["sudo", "-n", "true"]);
    if may.code != Some(0) {
        let words = may.err.lines().find(|line| !line.trim().is_empty()).unwrap_or("it failed").to_owned();
        return Ok(Applied { password: Some(words), ..applied });
    }
    if order.remember != Record::default() {
        order.remember.add(home)?;
    }
    for command in &order.commands {
        let mut words = vec!["sudo".to_owned(), "-n".to_owned(), program(&command[0])];
        words.extend(command[1..].iter().cloned());
        let said = run(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let failed = said.code != Some(0);
        applied.said.push(said);
        if failed {
            return Ok(applied);
        }
    }
    if order.forget {
        Record::forget(home)?;
    }
    Ok(applied)
}
