//! Calling ssh: words that every shell reads alike, failures that say what to do, and copies that are whole or not there.

mod copies;
mod failures;
mod shells;
mod texts;

use std::process::Command;
use std::time::{Duration, Instant};

use tbshard::cluster::ssh::{Reply, Ssh, Target};
use tbshard::error::{Error, Kind, Result};

use crate::lab::{Host, Lab};

/// ssh as the launcher calls it, with a short timeout.
fn ssh(lab: &Lab) -> Ssh {
    Ssh::new(&lab.ssh_from_outside()).unwrap().with_connect_timeout(Duration::from_secs(2))
}

fn run(ssh: &Ssh, host: &str, command: &str) -> Result<Reply> {
    ssh.run((host, &Target::new(host)), command, std::io::empty(), Duration::from_secs(30), &mut |_| ())
}

/// Runs `command` on `host`, which must fail, and returns what that means.
fn fails(ssh: &Ssh, host: &str, command: &str) -> Error {
    let reply = run(ssh, host, command).unwrap();
    println!("{}{}", reply.stdout, reply.stderr);
    assert!(!reply.status.success());
    let error = ssh.explain((host, &Target::new(host)), reply.status, &reply.stderr);
    println!("{error:?}\n");
    error
}

/// A cluster error in one line that names `host` and has every one of `words` in it or its hint.
fn says(error: &Error, host: &str, words: &[&str]) {
    let (line, hint) = (error.to_string(), error.hint_text().unwrap());
    assert_eq!(error.kind(), Kind::Cluster);
    assert!(line.contains(host) && line.lines().count() == 1 && hint.lines().count() == 1, "{error:?}");
    assert!(!line.contains('\u{1b}') && !line.contains("@@@"), "{line}");
    for word in words {
        assert!(line.contains(word) || hint.contains(word), "{word:?} is not in {error:?}");
    }
}

/// The commands that a hint names.
fn commands(error: &Error) -> Vec<String> {
    error.hint_text().unwrap().split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Waits until `host` runs nothing of ours.
fn idle(host: &Host, bound: Duration) {
    let start = Instant::now();
    while !host.processes().is_empty() {
        assert!(start.elapsed() < bound, "{} still runs {:?}", host.name(), host.processes());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The login shells that are installed here.
fn shells() -> Vec<&'static str> {
    let all = ["/bin/bash", "/bin/dash", "/usr/bin/zsh", "/usr/bin/fish", "/usr/bin/tcsh"];
    let (there, missing): (Vec<_>, Vec<_>) = all.into_iter().partition(|shell| std::path::Path::new(shell).exists());
    missing.iter().for_each(|shell| println!("skipped: {shell} is not installed"));
    there
}

fn sh(shell: &str, line: &str) -> std::process::Output {
    Command::new(shell).args(["-c", line]).env("HOME", "/nonexistent").output().unwrap()
}
