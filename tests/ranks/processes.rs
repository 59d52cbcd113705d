//! Ranks as processes of this machine: the same answer on every fabric, and one clear end when something dies.

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::program::{command, signal};

const PROMPT: &str = "Tell me a story about a fox.";

fn json(args: &[&str]) -> Value {
    let args = [&["generate", "--prompt", PROMPT, "-n", "40", "--json", "--ignore-eos", "-q"], args].concat();
    let output = command(&args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_answer_is_the_same_on_every_fabric_and_layout() {
    let alone = json(&[]);
    assert_eq!(alone["tokens"].as_array().unwrap().len(), 40);
    let layouts: [&[&str]; 7] = [
        &["--local", "2"],
        &["--local", "2", "--transport", "tcp"],
        &["--local", "3", "--tp", "3"],
        &["--local", "4", "--tp", "2", "--pp", "2"],
        &["--local", "4", "--tp", "2", "--pp", "2", "--transport", "tcp"],
        &["--local", "3", "--pp", "3", "--transport", "tcp"],
        &["--local", "2", "--split", "6,2", "--threads", "1"],
    ];
    for layout in layouts {
        let many = json(layout);
        assert_eq!((&many["tokens"], &many["text"]), (&alone["tokens"], &alone["text"]), "{layout:?}");
    }
}

#[test]
fn verify_compares_with_one_rank() {
    for layout in [&["--local", "3"][..], &["--local", "2", "--pp", "2", "--transport", "tcp"]] {
        let args = [&["generate", "--prompt", PROMPT, "-n", "20", "--verify", "--stats"], layout].concat();
        let output = command(&args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        assert!(text.contains("verified: the logits of all"), "{text}");
        assert!(text.contains("compute") && text.contains("wait") && text.contains("wire"), "{text}");
    }
}

#[test]
fn score_and_chat_run_on_ranks() {
    let page = crate::support::files::fixtures().join("page.txt");
    let score = |more: &[&str]| {
        let args = [&["score", "--file", page.to_str().unwrap(), "--json"], more].concat();
        let output = command(&args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["mean_nll"].clone()
    };
    assert_eq!(score(&["--local", "2"]), score(&[]));
    let mut chat = command(&["chat", "--local", "2", "-n", "20"]);
    let mut chat = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut chat.stdin.take().unwrap(), b"Hello!\n/reset\nWhat is 2 plus 3?\n").unwrap();
    let output = chat.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.iter().filter(|byte| **byte == b'\n').count() >= 2);
}

#[test]
fn arrangements_that_cannot_be_are_usage_errors() {
    let cases: [(&[&str], &str); 6] = [
        (&["--local", "0"], "--local 0 is not one of"),
        (&["--local", "3", "--tp", "2"], "--tp 2 does not divide the 3 ranks"),
        (&["--local", "9", "--pp", "9"], "--pp 9 has more stages than the model's 8 layers"),
        (&["--local", "2", "--split", "3,3"], "--split adds up to 6"),
        (&["--local", "2", "--heartbeat-timeout", "0"], "--heartbeat-timeout 0"),
        (&["--tp", "2"], "--local"),
    ];
    for (args, text) in cases {
        let output = command(&[&["generate", "--prompt", "x"], args].concat()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(text), "{args:?}: {said}");
    }
}

/// A long answer on ranks, once it has begun, with the process ids of the other ranks.
struct Run {
    child: Child,
    others: Vec<u32>,
}

impl Run {
    fn start(args: &[&str]) -> Self {
        Self::of(1900, args)
    }

    /// An answer of `tokens` tokens.
    fn of(tokens: usize, args: &[&str]) -> Self {
        let tokens = tokens.to_string();
        let base = ["generate", "--prompt", PROMPT, "-n", &tokens, "--ignore-eos", "--heartbeat-timeout", "2"];
        let mut command = command(&[&base, args].concat());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 20];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        let others = children(child.id());
        Self { child, others }
    }

    /// The exit code and the error, once it has ended; within `bound`.
    fn end(mut self, bound: Duration) -> (Option<i32>, String) {
        let start = Instant::now();
        let mut stdout = self.child.stdout.take().unwrap();
        let drain = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < bound, "still running after {bound:?}");
            std::thread::sleep(Duration::from_millis(20));
        };
        drain.join().unwrap().unwrap();
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        gone(&self.others, bound);
        (status.code(), text)
    }
}

/// The processes that process `pid` started.
pub fn children(pid: u32) -> Vec<u32> {
    let text = std::process::Command::new("pgrep").args(["-P", &pid.to_string()]).output().unwrap().stdout;
    String::from_utf8(text).unwrap().lines().map(|line| line.parse().unwrap()).collect()
}

fn is_alive(pid: &u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // a zombie whose parent is gone is init's business
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Waits until none of the processes is left.
pub fn gone(pids: &[u32], bound: Duration) {
    let start = Instant::now();
    while pids.iter().any(is_alive) {
        assert!(start.elapsed() < bound, "ranks are left: {pids:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const FABRICS: [&str; 2] = ["shm", "tcp"];

#[test]
fn a_killed_rank_ends_all_with_one_cause() {
    for fabric in FABRICS {
        let run = Run::start(&["--local", "3", "--transport", fabric]);
        assert_eq!(run.others.len(), 2);
        signal(run.others[1], "-KILL");
        let (code, text) = run.end(Duration::from_secs(5));
        assert_eq!(code, Some(3), "{text}");
        let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(errors.len(), 1, "{text}");
        assert!(errors[0].contains("rank 2 (127.0.0.1:"), "{text}");
    }
}

#[test]
fn a_frozen_rank_is_called_silent() {
    for fabric in FABRICS {
        let run = Run::start(&["--local", "3", "--transport", fabric]);
        signal(run.others[0], "-STOP");
        let (code, text) = run.end(Duration::from_secs(12));
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains("rank 1 (127.0.0.1:") && text.contains("sent nothing for 2.0 s"), "{text}");
    }
}

#[test]
fn when_rank_0_is_killed_the_others_end() {
    for fabric in FABRICS {
        let mut run = Run::start(&["--local", "3", "--transport", fabric]);
        run.child.kill().unwrap();
        run.child.wait().unwrap();
        gone(&run.others, Duration::from_secs(5));
    }
}

#[test]
fn when_rank_0_is_frozen_the_others_end_by_their_own_view() {
    let mut run = Run::start(&["--local", "2"]);
    signal(run.child.id(), "-STOP");
    gone(&run.others, Duration::from_secs(8));
    signal(run.child.id(), "-KILL");
    run.child.wait().unwrap();
    let mut text = String::new();
    run.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("rank 0 (127.0.0.1:") && text.contains("the view of rank 1"), "{text}");
}

#[test]
fn a_rank_that_is_slow_is_not_dead() {
    let run = Run::of(1500, &["--local", "2"]);
    // stopped for less than the deadline, again and again, while the answer lasts
    let mut stops = 0;
    while stops < 3 && is_alive(&run.others[0]) {
        signal(run.others[0], "-STOP");
        std::thread::sleep(Duration::from_millis(700));
        signal(run.others[0], "-CONT");
        stops += 1;
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(stops > 0);
    let (code, text) = run.end(Duration::from_secs(55));
    assert_eq!(code, Some(0), "{text}");
}
