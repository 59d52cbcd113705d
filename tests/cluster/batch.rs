//! A batch on other machines: lines go there, and the files stay here.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Running, nothing_is_left, run, wait_until};
use crate::batch::{lines, sorted};
use crate::lab::{Host, Lab, binary};

/// `batch` on all hosts, of the file `in` beside the others.
fn batch(lab: &Lab, args: &[&str]) -> Command {
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let file = lab.cluster_yaml(&hosts, Some(binary()), "timeouts: {connect: 3s, heartbeat: 2s}\n");
    let [input, output] = ["in", "out"].map(|name| path(lab, name).display().to_string());
    let all = ["batch", &input, "-o", &output, "--deterministic", "--hosts", file.to_str().unwrap()];
    lab.command(&[&all[..], args].concat())
}

fn path(lab: &Lab, name: &str) -> PathBuf {
    lab.shared().join(name)
}

fn text(lab: &Lab, name: &str) -> String {
    std::fs::read_to_string(path(lab, name)).unwrap()
}

/// The rows of one machine alone.
fn alone(input: &str) -> (Vec<String>, Vec<String>) {
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("in"), input).unwrap();
    let args = ["batch", "in", "-o", "out", "--errors", "wrong", "--deterministic", "-q"];
    let output = crate::support::program::command(&args).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| sorted(&std::fs::read_to_string(dir.path().join(name)).unwrap());
    (read("out"), read("wrong"))
}

#[test]
fn from_a_machine_that_is_none_of_the_hosts() {
    let Some(lab) = Lab::new(2) else { return };
    std::fs::write(path(&lab, "in"), lines(30)).unwrap();
    let errors = path(&lab, "wrong").display().to_string();
    let summary = format!("--json={}", path(&lab, "summary").display());
    let ended = run(batch(&lab, &["--errors", &errors, &summary]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.out, "", "rows are in files");
    let rows = || (sorted(&text(&lab, "out")), sorted(&text(&lab, "wrong")));
    assert_eq!(rows(), alone(&lines(30)));
    let summary: serde_json::Value = serde_json::from_str(&text(&lab, "summary")).unwrap();
    assert_eq!((&summary["rows"], &summary["errors"]), (&30.into(), &6.into()));
    assert!(summary["generated_tokens"].as_u64().unwrap() > 50, "{summary}");

    // it goes on with lines that are new, and refuses other flags once a row shows them
    std::fs::write(path(&lab, "in"), lines(40)).unwrap();
    let ended = run(batch(&lab, &["--errors", &errors, "--temp", "0.5"]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("other sampling"), "{ended:?}");
    let ended = run(batch(&lab, &["--errors", &errors]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(rows(), alone(&lines(40)));
    nothing_is_left(&lab);
}

#[test]
fn in_order_from_a_pipe_to_a_pipe() {
    let Some(lab) = Lab::new(2) else { return };
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let file = lab.cluster_yaml(&hosts, Some(binary()), "");
    std::fs::write(path(&lab, "in"), lines(25)).unwrap();
    let args = ["batch", "-", "--ordered", "--deterministic", "--hosts", file.to_str().unwrap()];
    let mut command = lab.command(&args);
    command.stdin(Stdio::from(std::fs::File::open(path(&lab, "in")).unwrap()));
    let ended = run(command);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let ordered = crate::support::program::command(&["batch", "-", "--ordered", "--deterministic", "-q"])
        .stdin(Stdio::from(std::fs::File::open(path(&lab, "in")).unwrap()))
        .output()
        .unwrap();
    assert_eq!(ended.out, String::from_utf8(ordered.stdout).unwrap());
    nothing_is_left(&lab);
}

#[test]
fn whatever_ends_it_the_same_command_goes_on() {
    let Some(lab) = Lab::new(2) else { return };
    let long = r#"{"custom_id":"long","prompt":"Tell me a story","max_tokens":300,"ignore_eos":true}"#;
    let input = format!("{}{long}\n", lines(20));
    std::fs::write(path(&lab, "in"), &input).unwrap();
    let begun = |running: &mut Running, bytes: u64| {
        wait_until("rows", Duration::from_secs(30), || {
            std::fs::metadata(path(&lab, "out")).map_or(0, |found| found.len()) > bytes || !running.is_running()
        });
    };
    let mut running = Running::start(batch(&lab, &["--max-concurrency", "2"]));
    begun(&mut running, 0);
    running.signal("-INT");
    let ended = running.end(Duration::from_secs(20));
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert!(ended.err.contains("the same command goes on"), "{ended:?}");
    let before = text(&lab, "out");
    nothing_is_left(&lab);

    let mut running = Running::start(batch(&lab, &["--max-concurrency", "2"]));
    begun(&mut running, before.len() as u64);
    running.signal("-KILL");
    running.end(Duration::from_secs(20));
    let after = text(&lab, "out");
    assert!(after.starts_with(&before) && !sorted(&after).is_empty());
    nothing_is_left(&lab);

    let ended = run(batch(&lab, &[]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let (mut expected, errors) = alone(&input);
    expected.extend(errors);
    let id = |row: &String| serde_json::from_str::<serde_json::Value>(row).unwrap()["custom_id"].to_string();
    expected.sort_by_key(id);
    assert_eq!(sorted(&text(&lab, "out")), expected);
    nothing_is_left(&lab);
}
