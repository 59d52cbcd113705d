//! Killed at any moment and run again, a batch has the rows of one that nobody disturbed, byte for byte.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::Desk;

/// A run that is killed again and again until a run is done.
struct Killed<'a> {
    count: usize,
    lines: usize,
    flags: &'a [&'a str],
    seed: u64,
    /// Besides, some of the end of the output is lost.
    torn: bool,
}

impl Killed<'_> {
    fn check(&self) {
        let whole = Desk::of_lines(self.lines);
        let start = Instant::now();
        whole.done(self.flags);
        let undisturbed = start.elapsed().as_micros() as u64;
        let errors = |desk: &Desk| if desk.path("wrong").exists() { desk.sorted("wrong") } else { Vec::new() };
        let expected = (whole.sorted("out"), errors(&whole));

        let mut state = self.seed;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below.max(1)
        };
        let (mut kills, mut rounds, mut kept, mut cuts) = (0, 0, 0, 0);
        while kills < self.count {
            rounds += 1;
            assert!(rounds < 40 + 2 * self.count, "only {kills} of so many rounds were killed in time");
            let desk = Desk::of_lines(self.lines);
            loop {
                let mut child = desk.command(self.flags).stderr(Stdio::piped()).spawn().unwrap();
                // from before it has read anything to its last row
                std::thread::sleep(Duration::from_micros(random(undisturbed)));
                let running = child.try_wait().unwrap().is_none();
                child.kill().unwrap();
                let output = child.wait_with_output().unwrap();
                if output.status.success() {
                    break;
                }
                // killed, not failed
                assert!(running && output.status.code().is_none(), "{}", super::said(&output));
                kills += 1;
                let bytes = std::fs::read(desk.path("out")).unwrap_or_default();
                kept += usize::from(!bytes.is_empty());
                if self.torn && !bytes.is_empty() {
                    // what a file system that was killed too leaves of the last write
                    let end = bytes.len() - random(bytes.len().min(700) as u64) as usize;
                    std::fs::write(desk.path("out"), &bytes[..end]).unwrap();
                    cuts += usize::from(end < bytes.len());
                }
            }
            assert!((desk.sorted("out"), errors(&desk)) == expected, "round {rounds}");
            if self.flags.contains(&"--ordered") && !self.torn {
                assert_eq!(desk.text("out"), whole.text("out"), "round {rounds}");
            }
        }
        println!("{kills} kills in {rounds} rounds, {kept} left rows, {cuts} were torn");
        assert!(kept > kills / 10, "of {kills} kills only {kept} left rows");
    }
}

const BASE: Killed<'static> = Killed { count: 14, lines: 30, flags: &[], seed: 11, torn: false };

#[test]
fn at_random_moments() {
    BASE.check();
}

#[test]
fn with_errors_elsewhere_and_torn_writes() {
    Killed { count: 10, flags: &["--errors", "wrong", "--max-concurrency", "4"], seed: 5, torn: true, ..BASE }.check();
}

#[test]
fn in_order() {
    Killed { count: 6, flags: &["--ordered", "--max-concurrency", "5"], seed: 3, ..BASE }.check();
}

#[test]
fn on_two_ranks() {
    Killed { count: 5, lines: 20, flags: &["--local", "2", "--max-concurrency", "4"], seed: 9, torn: true }.check();
}

/// Two hundred, with what comes below; `scripts/test.sh --full` runs both.
pub fn a_hundred_and_fifty() {
    Killed { count: 150, flags: &["--max-concurrency", "6"], seed: 21, ..BASE }.check();
}

pub fn fifty_and_torn() {
    Killed { count: 50, flags: &["--errors", "wrong"], seed: 22, torn: true, ..BASE }.check();
}
