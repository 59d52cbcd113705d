//! Real ranks that fail at every step of the protocol, in every way, on every fabric: the exit code, the one cause, and
//! nobody left. `--fault` says where and how; what is not asked for is drawn from a seed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::control::plan::Rng;
use crate::support::program::{command, signal};

const KINDS: [&str; 8] = ["kill", "stop", "abort", "panic", "worker", "error", "exit", "slow"];
const STEPS: [&str; 10] =
    ["join", "hello", "self-test", "loading", "compute#1", "compute", "all_reduce", "broadcast", "gather#2", "finish"];
/// How often every kind meets every step.
const ROUNDS: u64 = 2;
/// Cases at a time.
const TOGETHER: usize = 4;
/// From the harm to the end of the last process.
const BOUND: Duration = Duration::from_secs(5);

struct Case {
    layout: &'static [&'static str],
    world: usize,
    fabric: &'static str,
    rank: usize,
    step: &'static str,
    kind: &'static str,
    fault: String,
}

/// What a run left behind.
struct Seen {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    // from the harm to the end of the last process
    took: Option<Duration>,
}

impl Case {
    fn new(kind: &'static str, step: &'static str, seed: u64) -> Self {
        let mut rng = Rng(seed * 8191 + 1);
        let layouts: [(usize, &[&str]); 3] =
            [(2, &["--local", "2"]), (3, &["--local", "3"]), (4, &["--local", "4", "--tp", "2", "--pp", "2"])];
        let (world, layout) = layouts[rng.below(3) as usize];
        let fabric = if rng.one_in(2) { "tcp" } else { "shm" };
        let rank = rng.below(world as u64) as usize;
        let nth = match step {
            "compute" => format!("#{}", 2 + rng.below(10)),
            // after those of the start-up test
            "all_reduce" => format!("#{}", 9 + rng.below(80)),
            "broadcast" => format!("#{}", 6 + rng.below(8)),
            _ => String::new(),
        };
        let place = if step == "finish" && rank == 0 { "flush" } else { step };
        let fault = format!("{rank}:{place}{nth}:{kind}");
        Self { layout, world, fabric, rank, step, kind, fault }
    }

    fn run(&self) -> Seen {
        let args = ["generate", "--prompt", "Tell me a story.", "-n", "12", "--ignore-eos", "--stats"];
        let more = ["--heartbeat-timeout", "1", "--transport", self.fabric, "--fault", &self.fault];
        let mut command = command(&[&args[..], self.layout, &more].concat());
        let command = command.env("RUST_BACKTRACE", "0").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let text = Arc::new(Mutex::new((String::new(), None::<Instant>)));
        let (mut reader, shared) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&text));
        // every rank holds the pipe, so its end is the end of the last of them
        let drain = std::thread::spawn(move || {
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 0 {
                let mut text = shared.lock().unwrap();
                if line.starts_with("fault: ") {
                    text.1 = Some(Instant::now());
                }
                text.0.push_str(&line);
                line.clear();
            }
            Instant::now()
        });
        let pid = child.id();
        let mut stdout = child.stdout.take().unwrap();
        let answer = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        });
        let begun = Instant::now();
        while !drain.is_finished() && begun.elapsed() < Duration::from_secs(25) {
            std::thread::sleep(Duration::from_millis(10));
            // a frozen rank 0 is let go once all others have said their last word
            let views = text.lock().unwrap().0.matches(" alone\n").count();
            if (self.rank, self.kind) == (0, "stop") && (views + 1 == self.world || begun.elapsed().as_secs() == 8) {
                signal(pid, "-KILL");
                break;
            }
        }
        if begun.elapsed() > Duration::from_secs(25) {
            signal(pid, "-KILL");
        }
        let ended = drain.join().unwrap();
        let (stderr, struck) = text.lock().unwrap().clone();
        let code = child.wait().unwrap().code();
        Seen { code, stdout: answer.join().unwrap(), stderr, took: struck.map(|struck| ended - struck) }
    }

    /// What is wrong with what was seen.
    fn objection(&self, seen: &Seen, right: &str) -> Option<String> {
        let Some(took) = seen.took else { return Some("the fault did not strike".to_owned()) };
        let (last, joins) = (self.step == "finish", self.step == "join");
        // to meet, six deadlines are given; one that is frozen after the end is given three seconds
        let bound = BOUND + Duration::from_secs(if self.kind == "stop" && (last || joins) { 4 } else { 0 });
        if took > bound {
            return Some(format!("the last process ended {took:?} after the fault"));
        }
        let errors: Vec<&str> = seen.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        let code = seen.code;
        let expect = |fits: bool, what: &str| if fits { None } else { Some(format!("not {what}")) };
        if seen.stderr.contains("did not end by itself") && !(self.kind == "stop" && last) {
            return Some("a survivor had to be killed".to_owned());
        }
        if self.kind == "slow" {
            return expect(code == Some(0) && errors.is_empty() && seen.stdout == right, "the right answer");
        }
        if last {
            // it has been answered; whether the end was good depends on who was first
            return expect(seen.stdout == right && errors.len() < self.world, "the whole answer");
        }
        if self.rank == 0 {
            return self.without_rank_0(seen, &errors);
        }
        let rank = format!("rank {} ", self.rank);
        if joins {
            let named = errors.iter().any(|line| line.starts_with(&format!("error: {rank}ended before it joined")));
            let absent = errors.iter().any(|line| line.contains(&format!("{rank}did not come")));
            return expect(code == Some(3) && (named || absent && self.kind == "stop"), "an absent rank");
        }
        let [error] = errors[..] else { return Some("not one cause".to_owned()) };
        let address = format!("{rank}(127.0.0.1:");
        let blamed = error.starts_with(&format!("error: {address}")) || error.contains(&format!("link to {address}"));
        // so early, nobody may have said where it is
        let placed = self.step == "hello" || error.contains(" in ") || error.contains(" while idle");
        let told = match self.kind {
            "stop" => error.contains("sent nothing for 1.0 s"),
            "panic" => error.contains("failed") && error.ends_with("tbshard panicked: a fault was asked for"),
            "worker" => error.ends_with("tbshard panicked: a fault was asked for in a worker"),
            "error" => error.contains("failed") && error.ends_with(": a fault was asked for"),
            _ => true,
        };
        // who says itself what is wrong knows where it was
        let own = ["panic", "worker", "error"].contains(&self.kind);
        let start = ["hello", "self-test", "loading"].contains(&self.step);
        let exact = !own || !start || error.contains(&format!("start-up ({})", self.step));
        expect(code == Some(3) && blamed && placed && told && exact, "the cause")
    }

    fn without_rank_0(&self, seen: &Seen, errors: &[&str]) -> Option<String> {
        let views =
            errors.iter().filter(|line| line.starts_with("error: rank 0 (127.0.0.1:") && line.ends_with(" alone"));
        let own = errors.len() == 1 && errors[0].contains("a fault was asked for");
        let fits = match self.kind {
            "panic" | "worker" if self.step != "join" => {
                own && seen.code == Some(3) && errors[0].starts_with("error: rank 0 (127.0.0.1:")
            }
            // others may not have been told yet what this is about
            "panic" | "worker" | "error" => {
                seen.code == Some(1) && (own || self.step == "join") && seen.stderr.contains("a fault was asked for")
            }
            kind => {
                let code = if kind == "exit" { Some(0) } else { None };
                // one that has met rank 0 and is not watched over yet sees its launcher go
                let viewed = self.step == "hello" || views.count() == errors.len();
                let all = self.step == "join" || (viewed && errors.len() + 1 == self.world);
                seen.code == code && all
            }
        };
        if fits { None } else { Some("not what the end of rank 0 looks like".to_owned()) }
    }
}

#[test]
fn at_every_step_every_failure_ends_all() {
    let cases: Vec<Case> = (0..ROUNDS)
        .flat_map(|round| KINDS.iter().enumerate().map(move |(kind, name)| (round, kind, *name)))
        .flat_map(|(round, kind, name)| STEPS.iter().enumerate().map(move |step| (round, kind, name, step)))
        .map(|(round, kind, name, (step, place))| {
            Case::new(name, place, round * 10_000 + kind as u64 * 100 + step as u64)
        })
        .collect();
    let args = ["generate", "--prompt", "Tell me a story.", "-n", "12", "--ignore-eos", "-q"];
    let right = String::from_utf8(command(&args).output().unwrap().stdout).unwrap();
    let (next, table, wrong) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..TOGETHER {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let seen = case.run();
                    if let Some(objection) = case.objection(&seen, &right) {
                        let (layout, fabric, fault) = (case.layout, case.fabric, &case.fault);
                        let head = format!("{objection}: {layout:?} {fabric} --fault {fault}");
                        wrong.lock().unwrap().push(format!("{head}: {:?} {:?}\n{}", seen.code, seen.took, seen.stderr));
                    }
                    *table.lock().unwrap().entry((case.kind, case.step)).or_insert(0) += 1;
                }
            });
        }
    });
    let table = table.into_inner().unwrap();
    for kind in KINDS {
        let counts: Vec<String> = STEPS.iter().map(|step| format!("{step} {}", table[&(kind, *step)])).collect();
        println!("{kind:6} at {}", counts.join(", "));
    }
    println!("{} runs", cases.len());
    let left = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let left: Vec<_> =
        left.map(|entry| entry.file_name()).filter(|it| it.to_string_lossy().contains("tbshard")).collect();
    assert!(left.is_empty(), "shared memory is left: {left:?}");
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {} runs:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
