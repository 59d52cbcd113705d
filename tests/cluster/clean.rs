//! However the launcher ends, nothing is left on any host.

use std::time::Duration;

use super::{Running, endless, nothing_is_left, ranks, wait_until};
use crate::lab::{Lab, binary};

#[test]
fn ctrl_c() {
    let Some(lab) = Lab::new(2) else { return };
    let running = endless(&lab);
    running.signal("-INT");
    let ended = running.end(Duration::from_secs(8));
    assert_eq!(ended.code, Some(130), "{ended:?}");
    nothing_is_left(&lab);
}

#[test]
fn sigterm_and_a_closed_terminal() {
    for name in ["-TERM", "-HUP"] {
        let Some(lab) = Lab::new(2) else { return };
        let running = endless(&lab);
        running.signal(name);
        running.end(Duration::from_secs(8));
        nothing_is_left(&lab);
    }
}

#[test]
fn a_launcher_that_is_killed() {
    let Some(lab) = Lab::new(2) else { return };
    let running = endless(&lab);
    running.signal("-KILL");
    running.end(Duration::from_secs(8));
    nothing_is_left(&lab);
}

#[test]
fn a_launcher_that_is_a_rank_and_is_killed() {
    let Some(lab) = Lab::new(2) else { return };
    let [alpha, bravo] = lab.hosts() else { panic!("two hosts") };
    let file = lab.cluster_yaml(&[lab.launcher(), alpha, bravo], Some(binary()), "");
    let args = ["generate", "--hosts", file.to_str().unwrap(), "-n", "200000", "--ctx", "210000", "--ignore-eos"];
    let running = Running::start(lab.command(&args));
    let started = || lab.hosts().iter().all(|host| !ranks(host).is_empty());
    wait_until("ranks on all hosts", Duration::from_secs(20), started);
    running.signal("-KILL");
    running.end(Duration::from_secs(8));
    nothing_is_left(&lab);
}

#[test]
fn a_launcher_whose_cable_is_pulled() {
    let Some(lab) = Lab::new(2) else { return };
    let running = endless(&lab);
    lab.launcher().cut();
    // the hosts see each other, and end without it
    nothing_is_left(&lab);
    let ended = running.end(Duration::from_secs(15));
    assert_eq!(ended.code, Some(3), "{ended:?}");
}

#[test]
fn a_launcher_that_sleeps() {
    let Some(lab) = Lab::new(2) else { return };
    let running = endless(&lab);
    running.signal("-STOP");
    nothing_is_left(&lab);
    running.signal("-CONT");
    let ended = running.end(Duration::from_secs(15));
    assert_eq!(ended.code, Some(3), "{ended:?}");
}
