//! What a Mac is asked, and its answers as they are; elsewhere there is nobody to ask.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::ports;
use crate::error::{Error, Result};

/// Where macOS keeps what network services and bridges are made of.
pub(super) const PREFERENCES: &str = "/Library/Preferences/SystemConfiguration/preferences.plist";
/// The members that `bridge0` has after a restart.
pub(super) const BRIDGE: &str = ":VirtualNetworkInterfaces:Bridge:bridge0:Interfaces";
/// Where the programs are on a Mac; over ssh not all of it is on the PATH.
const PLACES: [&str; 5] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/libexec"];
/// Where the record is, below the home directory.
const RECORD: &str = ".local/share/tbshard/thunderbolt.json";

/// The program that only Macs have.
pub(super) const VERSION: &[&str] = &["sw_vers"];
pub(super) const PROFILER: &[&str] = &["system_profiler", "SPThunderboltDataType", "-json"];
pub(super) const PORTS: &[&str] = &["networksetup", "-listallhardwareports"];
pub(super) const SERVICES: &[&str] = &["networksetup", "-listnetworkserviceorder"];
pub(super) const SERVICE: &[&str] = &["networksetup", "-getinfo"];
pub(super) const LINKS: &[&str] = &["ifconfig", "-a"];
pub(super) const RDMA: &[&str] = &["rdma_ctl", "status"];
pub(super) const DEVICES: &[&str] = &["ibv_devices"];
pub(super) const DEVICE: &[&str] = &["ibv_devinfo", "-v"];
pub(super) const WIRED: &[&str] = &["sysctl", "-n", "iogpu.wired_limit_mb"];
pub(super) const MEMORY: &[&str] = &["sysctl", "-n", "hw.memsize"];

/// What a command said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Its exit code; `None` if there is no such program, or a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub out: String,
    /// What it complained about.
    pub err: String,
}

/// What was so before tbshard changed it, for undoing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Interfaces that were members of `bridge0`.
    pub members: Vec<String>,
    /// Interfaces that would have been members of `bridge0` after a restart.
    pub configured: Vec<String>,
}

/// A Mac's answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raw {
    /// Of every command, in the order in which they ran.
    pub said: Vec<Said>,
    /// What tbshard has changed here.
    pub record: Option<Record>,
}

impl Raw {
    /// This machine's answers, if it is a Mac.
    ///
    /// # Errors
    /// If the record of a former setup cannot be read.
    pub fn here(home: Option<&Path>) -> Result<Option<Self>> {
        let Some(raw) = Self::ask(&mut run) else { return Ok(None) };
        let record = home.map(Record::read).transpose()?.flatten();
        Ok(Some(Self { record, ..raw }))
    }

    /// The answers to everything that is to be known; `run` runs a command. `None` if it is no Mac that answers.
    pub fn ask(run: &mut dyn FnMut(&[&str]) -> Said) -> Option<Self> {
        let version = run(VERSION);
        version.code?;
        let mut said = vec![version];
        let print = format!("Print {BRIDGE}");
        let bridge: &[&str] = &["PlistBuddy", "-c", &print, PREFERENCES];
        for command in [PROFILER, PORTS, SERVICES, LINKS, RDMA, DEVICES, DEVICE, WIRED, MEMORY, bridge] {
            said.push(run(command));
        }
        let services = said.iter().find(|said| said.command == SERVICES).map(|said| ports::services(&said.out));
        // what is not understood here is told when all is read
        for service in services.and_then(Result::ok).unwrap_or_default() {
            said.push(run(&[SERVICE, &[&service.name]].concat()));
        }
        Some(Self { said, record: None })
    }

    /// What `command` printed, if it ran and was content.
    pub(super) fn out(&self, command: &[&str]) -> Option<&str> {
        let said = self.said.iter().find(|said| said.command == command)?;
        (said.code == Some(0)).then_some(said.out.as_str())
    }

    /// What `command` printed.
    ///
    /// # Errors
    /// If it is missing or failed.
    pub(super) fn must(&self, command: &[&str]) -> Result<&str> {
        let line = command.join(" ");
        let said = self.said.iter().find(|said| said.command == command);
        match said {
            Some(Said { code: Some(0), out, .. }) => Ok(out),
            Some(Said { code: Some(code), err, out, .. }) => {
                let last = err.lines().chain(out.lines()).find(|line| !line.trim().is_empty()).unwrap_or("nothing");
                let error = Error::msg(format!("`{line}` ended with {code} and said {}", super::shown(last)));
                Err(error.hint(format!("see what `{line}` does there")))
            }
            _ => {
                let error = Error::msg(format!("`{line}` cannot be run"));
                Err(error.hint(format!("it is part of macOS; what does `which {}` say there?", command[0])))
            }
        }
    }
}

impl Record {
    fn path(home: &Path) -> PathBuf {
        home.join(RECORD)
    }

    /// What a former setup has left in `home`.
    ///
    /// # Errors
    /// If there is something that cannot be read.
    pub fn read(home: &Path) -> Result<Option<Self>> {
        let path = Self::path(home);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, error)),
        };
        let read = serde_json::from_slice(&text).map_err(Error::from_std);
        let hint = "remove the file if you have restored Thunderbolt Bridge yourself";
        read.map(Some).map_err(|error| error.context(format!("`{}`", path.display())).hint(hint))
    }

    /// Adds this to what is in `home`.
    pub(super) fn add(&self, home: &Path) -> Result<()> {
        let mut all = Self::read(home)?.unwrap_or_default();
        for (kept, new) in [(&mut all.members, &self.members), (&mut all.configured, &self.configured)] {
            kept.extend(new.iter().cloned());
            kept.sort();
            kept.dedup();
        }
        let path = Self::path(home);
        let write = || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            std::fs::write(&path, serde_json::json!(all).to_string() + "\n")
        };
        write().map_err(|error| Error::io(&path, error))
    }

    /// Forgets what is in `home`.
    pub(super) fn forget(home: &Path) -> Result<()> {
        match std::fs::remove_file(Self::path(home)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&Self::path(home), error)),
            _ => Ok(()),
        }
    }
}

/// How `name` is called: on a Mac by its path, for the PATH of an ssh session may lack it.
pub(super) fn program(name: &str) -> String {
    let places = PLACES.iter().filter(|_| cfg!(target_os = "macos")).map(|place| format!("{place}/{name}"));
    places.into_iter().find(|path| Path::new(path).exists()).unwrap_or_else(|| name.to_owned())
}

/// Runs a command of this machine to its end.
pub fn run(command: &[&str]) -> Said {
    let words = command.iter().map(|word| (*word).to_owned()).collect();
    let mut said = Said { command: words, ..Said::default() };
    let Some((name, args)) = command.split_first() else { return said };
    match Command::new(program(name)).args(args).stdin(Stdio::null()).env("LC_ALL", "C").output() {
        Ok(output) => {
            said.code = output.status.code();
            said.out = String::from_utf8_lossy(&output.stdout).into_owned();
            said.err = String::from_utf8_lossy(&output.stderr).into_owned();
        }
        Err(error) => said.err = error.to_string(),
    }
    said
}
