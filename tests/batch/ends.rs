//! How a run may end before its lines do, and that it can go on then.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Desk, lines, rows, said, sorted};
use crate::support::program::{binary, command};

/// Waits until the output has rows.
fn begun(desk: &Desk, child: &mut Child) {
    let start = Instant::now();
    while std::fs::metadata(desk.path("out")).map_or(0, |found| found.len()) == 0 {
        assert!(child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(20), "no row came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lines of which one goes on for long.
fn with_a_long_one(count: usize) -> String {
    let long = r#"{"custom_id":"long","prompt":"Tell me a story","max_tokens":900,"ignore_eos":true}"#;
    format!("{}{long}\n", lines(count))
}

#[test]
fn ctrl_c_ends_it_in_good_order() {
    let desk = Desk::new(with_a_long_one(6));
    let mut child = desk.command(&[]).stderr(Stdio::piped()).spawn().unwrap();
    begun(&desk, &mut child);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("in `out`: the same command goes on") && !text.contains("error"), "{text}");
    let before = desk.text("out");
    assert!(rows(&before).len() < 7);
    desk.done(&[]);
    assert!(desk.text("out").starts_with(&before));
    assert_eq!(desk.sorted("out").len(), 7);
}

#[test]
fn ctrl_c_while_nothing_comes_on_stdin() {
    let mut waiting = command(&["batch", "-", "-q"]);
    let mut child = waiting.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Hello\n").unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(rows(&first).len(), 1, "a row comes although more lines may follow");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_pipe_that_nobody_reads_ends_it_well() {
    let desk = Desk::new(with_a_long_one(30));
    let mut child = command(&["batch", "in", "--threads", "1"]);
    let mut child = child.current_dir(desk.dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(!said(&output).contains("error"), "{}", said(&output));
}

#[test]
fn a_full_disk_is_an_error_and_what_fits_stays() {
    if !Path::new("/dev/full").exists() {
        println!("skipped: no /dev/full here");
        return;
    }
    let desk = Desk::of_lines(10);
    for args in [&["batch", "in", "-o", "/dev/full"][..], &["batch", "in", "-o", "out", "--errors", "/dev/full"]] {
        let output = command(args).current_dir(desk.dir.path()).output().unwrap();
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("`/dev/full`") && text.contains("No space left") && text.contains("hint: "), "{text}");
    }
    // a disk that is full after some rows: this one belongs to the command alone
    let small = desk.path("small");
    std::fs::create_dir(&small).unwrap();
    let script = "mount -t tmpfs -o size=16k none small && \"$0\" batch in -o small/out --deterministic --threads 1; code=$?; \
        cp small/out kept; exit $code";
    let run = |script: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["-rm", "sh", "-c", script]).arg(binary()).current_dir(desk.dir.path());
        unshare.stdin(Stdio::null()).output()
    };
    if !run("mount -t tmpfs none small").is_ok_and(|output| output.status.success()) {
        println!("skipped: no file system can be mounted here");
        return;
    }
    std::fs::write(desk.path("in"), lines(60)).unwrap();
    let output = run(script).unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("`small/out`") && text.contains("No space left"), "{text}");
    assert!(text.contains("the same command goes on") && text.contains("free some space"), "{text}");
    let kept = rows(&desk.text("kept")).len();
    assert!((5..60).contains(&kept), "{kept} rows fit");
    std::fs::rename(desk.path("kept"), desk.path("out")).unwrap();
    desk.done(&[]);
    let whole = Desk::of_lines(60);
    whole.done(&[]);
    assert_eq!(desk.sorted("out"), whole.sorted("out"));
}

#[test]
fn a_lost_rank_ends_it_with_3_and_it_goes_on() {
    let desk = Desk::new(with_a_long_one(20));
    let output = desk.run(&["--local", "2", "--max-concurrency", "4", "--fault", "1:compute#25:kill"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("rank 1 ("), "{text}");
    let before = desk.text("out");
    assert!(!before.is_empty() && rows(&before).len() < 21, "{text}");
    assert!(text.contains("the same command goes on"), "{text}");
    desk.done(&["--local", "2", "--max-concurrency", "4"]);
    assert!(desk.text("out").starts_with(&before));
    let whole = Desk::new(with_a_long_one(20));
    whole.done(&[]);
    assert_eq!(desk.sorted("out"), whole.sorted("out"));
}

#[test]
fn a_name_that_comes_twice_on_a_pipe_ends_it_after_the_lines_before() {
    let desk = Desk::new("");
    let mut child = command(&["batch", "-", "-o", "out", "--deterministic"]);
    let mut child = child.current_dir(desk.dir.path()).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let line = |id: &str| format!("{{\"custom_id\":\"{id}\",\"prompt\":\"Hello\",\"max_tokens\":3}}\n");
    let text: String = ["a", "b", "a", "c"].map(line).concat();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("lines 1 and 3 have the same custom_id `a`"), "{told}");
    assert_eq!(sorted(&desk.text("out")).len(), 2);
}
