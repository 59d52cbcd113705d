//! Ranks that are killed at random moments, from the first instruction to the last token: always an end, never an orphan.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::processes::{children, gone};
use crate::support::program::command;

const CASES: u64 = 48;

/// How long a run may go on after a death.
const BOUND: Duration = Duration::from_secs(8);

fn random(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

#[test]
fn whenever_a_rank_is_killed_everything_ends() {
    let mut state = 4;
    let mut codes = std::collections::BTreeMap::new();
    for case in 0..CASES {
        let layout: &[&str] = match case % 3 {
            0 => &["--local", "3"],
            1 => &["--local", "2", "--transport", "tcp"],
            _ => &["--local", "4", "--tp", "2", "--pp", "2"],
        };
        let args =
            ["generate", "--prompt", "Tell me a story.", "-n", "300", "--ignore-eos", "--heartbeat-timeout", "2"];
        let mut run = command(&[&args[..], layout].concat());
        let mut run = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(random(&mut state, 400)));
        let others = children(run.id());
        let victim = random(&mut state, others.len() as u64 + 1) as usize;
        let pid = others.get(victim).copied().unwrap_or(run.id());
        // it may have ended by itself just now
        let _ = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
        let start = Instant::now();
        let status = loop {
            if let Some(status) = run.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < BOUND, "case {case}: still running after {BOUND:?}");
            std::thread::sleep(Duration::from_millis(10));
        };
        gone(&others, BOUND);
        let text = std::io::read_to_string(run.stderr.take().unwrap()).unwrap();
        let code = status.code();
        // done before the blow, ended by it with a cause, or itself the victim
        assert!(matches!(code, Some(0 | 3) | None), "case {case}: {code:?} {text}");
        if code == Some(3) {
            assert!(text.contains("error: rank"), "case {case}: {text}");
        }
        *codes.entry(code).or_insert(0) += 1;
    }
    println!("exit codes: {codes:?}");
    assert!(codes.len() > 1, "every case ended alike: {codes:?}");
}
