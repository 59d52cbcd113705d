//! Whole runs of the program over the fake library, each rank a process on a machine of its own: the bits of one rank.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use fake_verbs::Fabric as Fake;
use rustix::process::Signal;

use crate::transport::fabric::ring;

const PROMPT: &str = "The old lighthouse keeper";

fn run(mut command: Command) -> Output {
    command.output().unwrap()
}

/// The answer of one rank.
fn alone() -> String {
    let output = run(crate::support::program::command(&["generate", "--prompt", PROMPT, "-n", "24", "-q"]));
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// A cluster file of ranks on this machine that see different machines' devices.
fn cluster(fake: &Fake, count: usize, kind: &str, rest: &str) -> tempfile::NamedTempFile {
    let host = |rank: usize| format!("{kind}{rank}");
    let mut text = "hosts:\n".to_owned();
    for rank in 0..count {
        let peers = (0..count).filter(|peer| *peer != rank);
        let peers = peers.filter(|peer| !rest.contains("ring") || ring(count)[rank].contains(peer));
        let device =
            |peer: usize| if kind == "mac" { fake.device(&host(rank), &host(peer)) } else { "rxe0".to_owned() };
        let devices: Vec<String> = peers.map(|peer| format!("{}: {}", host(peer), device(peer))).collect();
        let env: Vec<String> =
            fake.env(&host(rank)).into_iter().map(|(key, value)| format!("{key}: \"{value}\"")).collect();
        let (name, devices, env) = (host(rank), devices.join(", "), env.join(", "));
        text += &format!("  - {{name: {name}, ssh: 127.0.0.1, rdma: {{{devices}}}, threads: 1, env: {{{env}}}}}\n");
    }
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(&file, text + rest).unwrap();
    file
}

/// Rank 0 is the program itself, so it has its machine from its own environment.
fn command(fake: &Fake, first: &str, file: &tempfile::NamedTempFile, args: &[&str]) -> Command {
    let path = file.path().to_str().unwrap();
    let mut command = crate::support::program::command(&["generate", "--hosts", path, "--prompt", PROMPT, "-q"]);
    command.args(args).envs(fake.env(first));
    command
}

#[test]
fn any_cabling_gives_the_answer_of_one_rank() {
    let expected = alone();
    for (fake, count, kind, rest) in [
        (Fake::apple(2), 2, "mac", "transport: rdma\nparallel: {tp: 2}\n"),
        (Fake::apple(4), 4, "mac", "transport: auto\nparallel: {tp: 4}\n"),
        (Fake::apple(4), 4, "mac", "transport: rdma\nparallel: {tp: 2, pp: 2}\n"),
        (Fake::ring(4), 4, "mac", "transport: rdma\ntopology: ring\nparallel: {tp: 4}\n"),
        (Fake::ring(3), 3, "mac", "transport: rdma\ntopology: ring\nparallel: {pp: 3}\n"),
        (Fake::rxe(2), 2, "linux", "transport: rdma\nparallel: {pp: 2}\n"),
        (Fake::rxe(3), 3, "linux", "parallel: {tp: 3}\n"),
    ] {
        let file = cluster(&fake, count, kind, rest);
        let output = run(command(&fake, &format!("{kind}0"), &file, &["-n", "24"]));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{rest}: {said}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{rest}");
        assert!(fake.violations().is_empty(), "{rest}: {:#?}", fake.violations());
        assert!(fake.objects().is_empty(), "{rest}: {:?}", fake.objects());
    }
}

#[test]
fn ranks_of_one_machine_share_a_device() {
    let fake = Fake::rxe(1);
    let expected = alone();
    for qp in ["rc", "uc"] {
        let args =
            ["generate", "--local", "2", "--transport", "rdma", "--rdma-qp", qp, "--prompt", PROMPT, "-n", "24", "-q"];
        let mut command = crate::support::program::command(&args);
        command.envs(fake.env("linux0"));
        let output = run(command);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        assert!(fake.violations().is_empty() && fake.objects().is_empty(), "{:?}", fake.violations());
    }
}

#[test]
fn a_machine_without_the_library_or_the_device_says_what_to_do() {
    let fake = Fake::rxe(1);
    let args = ["generate", "--local", "2", "--transport", "rdma", "--prompt", PROMPT];
    let mut command = crate::support::program::command(&[&args[..], &["--rdma-device", "mlx5_0"]].concat());
    command.envs(fake.env("linux0"));
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("no RDMA device `mlx5_0`; it has rxe0"), "{said}");
    let output = run(crate::support::program::command(&[
        "generate",
        "--local",
        "2",
        "--rdma-device",
        "rxe0",
        "--prompt",
        PROMPT,
    ]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("--transport rdma"), "{said}");
}

#[test]
fn doctor_asks_the_devices_and_measures_the_cables() {
    let doctor = |fake: &Fake| {
        let file = cluster(fake, 2, "mac", "transport: rdma\n");
        let mut command =
            crate::support::program::command(&["doctor", "--json", "--hosts", file.path().to_str().unwrap()]);
        command.envs(fake.env("mac0"));
        let report: serde_json::Value = serde_json::from_slice(&run(command).stdout).unwrap();
        let findings = report["findings"].as_array().unwrap().iter();
        // a busy machine's memory is no matter here
        let errors = findings.filter(|finding| finding["level"] == "error").map(|finding| finding["what"].to_string());
        (errors.collect::<Vec<_>>().join("\n"), report["links"].as_array().unwrap().len())
    };
    let fake = Fake::apple(2);
    assert_eq!(doctor(&fake), (String::new(), 1));
    assert!(fake.objects().is_empty() && fake.violations().is_empty(), "{:?}", fake.violations());
    fake.set_port("mac1.rdma_en2", false);
    let (errors, links) = doctor(&fake);
    assert!(errors.contains("`rdma_en2` has no active port") && links == 0, "{errors}");
}

/// How long it takes, and what is said, when rank 1 of 3 Macs gets a signal in the middle of an answer.
fn after(signal: Signal) -> (String, Duration) {
    let fake = Fake::apple(3);
    let file = cluster(&fake, 3, "mac", "transport: rdma\nparallel: {tp: 3}\n");
    // longer than any machine takes to be struck
    let endless = ["-n", "200000", "--ctx", "210000", "--ignore-eos"];
    let mut command = command(&fake, "mac0", &file, &endless);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    let victim = loop {
        assert!(start.elapsed() < Duration::from_secs(30), "the ranks do not come");
        std::thread::sleep(Duration::from_millis(50));
        let all = fake.objects();
        let running = all.iter().filter(|object| object.kind == "qp").count() == 6;
        if let Some(pid) = running.then(|| rank_of(&fake, "mac1")).flatten() {
            break pid;
        }
    };
    std::thread::sleep(Duration::from_millis(200));
    let victim = rustix::process::Pid::from_raw(victim).unwrap();
    let struck = Instant::now();
    rustix::process::kill_process(victim, signal).unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    while !said.contains("error: ") && lines.read_line(&mut said).unwrap() > 0 {}
    let took = struck.elapsed();
    lines.read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    // it may be frozen still
    let _ = rustix::process::kill_process(victim, Signal::KILL);
    assert_eq!(status.code(), Some(3), "{said}");
    (said, took)
}

/// The process that holds objects of a machine's device.
fn rank_of(fake: &Fake, host: &str) -> Option<i32> {
    for entry in std::fs::read_dir(fake.dir().join("objects")).ok()?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(host) {
            return name.split('~').nth(2)?.split('-').next()?.parse().ok();
        }
    }
    None
}

#[test]
fn a_rank_that_is_killed_or_frozen_is_named_in_two_seconds() {
    // a second more than is promised, for a machine that does other things too
    let most = Duration::from_secs(3);
    let (said, took) = after(Signal::KILL);
    println!("killed: {took:?}: {said}");
    assert!(said.contains("rank 1 (mac1") && took < most, "{took:?}: {said}");
    let (said, took) = after(Signal::STOP);
    println!("frozen: {took:?}: {said}");
    assert!(said.contains("rank 1 (mac1") && said.contains("sent nothing for") && took < most, "{took:?}: {said}");
}
