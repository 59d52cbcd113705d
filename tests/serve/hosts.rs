//! A server whose ranks are on other machines: see `lab`.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::clients::{CHAT, Server, chat, generated, soon};
use crate::lab::{Host, Lab, binary};

/// The answer of the server at `address`, asked on the machine that it listens at.
fn ask(host: &Host, address: &str) -> Option<String> {
    let body = chat("Tell me a story.", 30);
    let said = host.try_run(&format!("curl -s http://{address}{CHAT} -H 'content-type: application/json' -d '{body}'"));
    let answer: Value = serde_json::from_slice(&said.stdout).ok()?;
    answer["choices"][0]["message"]["content"].as_str().map(str::to_owned)
}

/// The processes of a host's rank.
fn ranks(host: &Host) -> Vec<u32> {
    let all = host.processes().into_iter();
    all.filter(|(_, line)| line.ends_with("tbshard rank")).map(|(pid, _)| pid).collect()
}

#[test]
fn a_rank_on_another_machine_is_started_again() {
    let Some(lab) = Lab::new(1) else { return };
    let (launcher, alpha) = (lab.launcher(), &lab.hosts()[0]);
    if !launcher.try_run("command -v curl").status.success() {
        return println!("skipped: there is no curl");
    }
    let file = lab.cluster_yaml(&[launcher, alpha], Some(binary()), "timeouts: {connect: 3s, heartbeat: 2s}\n");
    let mut server = Server::of(lab.command(&["serve", "--port", "0", "--hosts", file.to_str().unwrap()]));
    let right = generated("Tell me a story.", 30);
    let ready = |server: &Server| server.log().matches("ready: demo").count();
    for times in 1..3 {
        soon("it is ready", || (ready(&server) == times).then_some(()));
        assert_eq!(ask(launcher, &server.address), Some(right.clone()));
        if times == 1 {
            ranks(alpha).iter().for_each(|pid| crate::support::program::signal(*pid, "-KILL"));
            soon("it notices", || server.log().contains("loading again").then_some(()));
            assert!(server.log().contains("error: rank 1 "), "{}", server.log());
        }
    }
    server.signal("-TERM");
    assert_eq!(server.end().code(), Some(0), "{}", server.log());
    let begun = Instant::now();
    while !alpha.processes().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "left behind: {:?}", alpha.processes());
        std::thread::sleep(Duration::from_millis(50));
    }
}
