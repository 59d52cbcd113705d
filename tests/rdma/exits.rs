//! Every way out of the program gives back what RDMA devices gave it, also the ways on which nothing is dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use fake_verbs::{Fabric as Fake, Fault, Kind};
use tbshard::transport::ignores;

use crate::support::program::{command, signal};

/// Two ranks of one machine with a device.
struct Run {
    fake: Fake,
    child: Child,
    lines: BufReader<ChildStderr>,
    said: String,
}

/// How a run ended.
struct End {
    status: ExitStatus,
    said: String,
    /// What is there of rank 0's objects, and of other ranks'.
    left: [usize; 2],
    broken: Vec<String>,
}

impl Run {
    fn start(args: &[&str]) -> Self {
        let fake = Fake::rxe(1);
        let args = [args, &["--local", "2", "--transport", "rdma", "--heartbeat-timeout", "1"]].concat();
        let mut command = command(&args);
        command.envs(fake.env("linux0")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap());
        Self { fake, child, lines, said: String::new() }
    }

    /// A run in which a rank has devices and loads, for longer than any test here waits for it to go on by itself.
    fn loading(args: &[&str], rank: usize) -> Self {
        let mut run = Self::start(&[args, &["--fault", &format!("{rank}:loading:slow")]].concat());
        while !run.said.contains("fault: ") {
            assert!(run.lines.read_line(&mut run.said).unwrap() > 0, "{}", run.said);
        }
        assert_eq!(run.fake.count("qp"), 2, "{}", run.said);
        run
    }

    /// The process of rank 1.
    fn other(&self) -> u32 {
        self.fake.objects().iter().map(|object| object.pid).find(|pid| *pid != self.child.id()).unwrap()
    }

    /// Waits until all ranks have ended: each has the pipe.
    fn end(mut self) -> End {
        self.lines.read_to_string(&mut self.said).unwrap();
        let status = self.child.wait().unwrap();
        let (own, others): (Vec<_>, Vec<_>) =
            self.fake.objects().into_iter().partition(|object| object.pid == self.child.id());
        End { status, said: self.said, left: [own.len(), others.len()], broken: self.fake.broken() }
    }
}

impl End {
    #[track_caller]
    fn left_nothing(&self) {
        assert_eq!((self.left, &self.broken[..]), ([0, 0], &[][..]), "{:?}: {}", self.status, self.said);
    }
}

const GENERATE: &[&str] = &["generate", "--prompt", "The old lighthouse keeper"];

#[test]
fn a_program_that_is_ended_while_it_loads_leaves_nothing() {
    for (name, number) in [("-INT", 2), ("-TERM", 15), ("-HUP", 1)] {
        if ignores(number) {
            println!("skipped: whoever runs this test ignores {name}");
            continue;
        }
        let run = Run::loading(GENERATE, 0);
        let start = Instant::now();
        signal(run.child.id(), name);
        let end = run.end();
        end.left_nothing();
        match number {
            2 => assert_eq!(end.status.code(), Some(130)),
            _ => assert_eq!(end.status.signal(), Some(number)),
        }
        // rank 1 may have a few seconds to notice
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    }
}

#[test]
fn an_exit_that_gives_nothing_back_is_noticed() {
    let end = Run::start(&[GENERATE, &["--fault", "0:loading:exit"]].concat()).end();
    assert_eq!((end.left, end.broken), ([0, 0], vec!["leak-at-exit".to_owned()]), "{}", end.said);
}

#[test]
fn a_rank_that_is_asked_to_end_leaves_nothing() {
    let run = Run::loading(GENERATE, 1);
    signal(run.other(), "-TERM");
    let end = run.end();
    end.left_nothing();
    assert!(end.status.code() == Some(3) && end.said.contains("killed by signal 15"), "{}", end.said);
}

#[test]
fn a_rank_whose_starter_is_killed_leaves_nothing() {
    let run = Run::loading(GENERATE, 1);
    signal(run.child.id(), "-KILL");
    let end = run.end();
    assert_eq!((end.left[1], end.broken), (0, vec![]), "{}", end.said);
    assert!(end.left[0] > 0, "what was killed outright cannot give anything back");
}

#[test]
fn a_main_thread_that_does_not_notice_the_end_of_the_run_leaves_nothing() {
    let mut run = Run::start(&["chat", "-n", "5"]);
    let mut stdin = run.child.stdin.take().unwrap();
    stdin.write_all(b"Hello!\n").unwrap();
    run.child.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
    // it waits for the next line, and will until the end
    std::thread::sleep(Duration::from_millis(300));
    signal(run.other(), "-KILL");
    let end = run.end();
    assert_eq!((end.status.code(), end.left[0], end.broken), (Some(3), 0, vec![]), "{}", end.said);
    drop(stdin);
}

#[test]
fn a_server_that_ends_while_its_engine_loads_leaves_nothing() {
    let run = Run::loading(&["serve", "--port", "0"], 0);
    signal(run.child.id(), "-TERM");
    let end = run.end();
    end.left_nothing();
    assert_eq!(end.status.code(), Some(0), "{}", end.said);
}

#[test]
fn a_call_that_does_not_return_keeps_nobody_from_ending() {
    // rank 1 loads, so rank 0 polls
    let run = Run::loading(GENERATE, 1);
    run.fake.fault(Fault { value: 30_000, ..Fault::new(Kind::Hang, 0) });
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    signal(run.child.id(), "-INT");
    let end = run.end();
    assert_eq!(end.status.code(), Some(130), "{}", end.said);
    assert!(end.said.contains("a call to an RDMA device does not return"), "{}", end.said);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(end.broken, ["leak-at-exit"], "{}", end.said);
}
