//! Runs over several machines, through the system's ssh and real sshd's: see `lab`.

mod batch;
mod clean;
mod doctor;
mod failures;
mod launch;
mod runs;

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{Host, Lab, binary};

/// How long after an end something of ours may still run somewhere.
const CLEAN: Duration = Duration::from_secs(10);

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
    seconds: f64,
}

/// A command that runs, with its output collected.
struct Running {
    child: Child,
    start: Instant,
    streams: Vec<std::thread::JoinHandle<String>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let collect = |mut stream: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let streams =
            vec![collect(Box::new(child.stdout.take().unwrap())), collect(Box::new(child.stderr.take().unwrap()))];
        Self { child, start: Instant::now(), streams }
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Waits for its end, which must come in time.
    fn end(mut self, bound: Duration) -> Ended {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > bound {
                let _ = self.child.kill();
                let texts: Vec<String> = self.streams.into_iter().map(|stream| stream.join().unwrap()).collect();
                panic!("still running after {bound:?}: {texts:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let seconds = self.start.elapsed().as_secs_f64();
        let mut texts = self.streams.into_iter().map(|stream| stream.join().unwrap());
        let (out, err) = (texts.next().unwrap(), texts.next().unwrap());
        Ended { code: status.code(), out, err, seconds }
    }
}

fn run(command: Command) -> Ended {
    Running::start(command).end(Duration::from_secs(40))
}

/// Waits until `done`, for a while.
fn wait_until(what: &str, bound: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < bound, "waited {bound:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The ranks (not agents) of ours on a host.
fn ranks(host: &Host) -> Vec<u32> {
    let ours = host.processes().into_iter().filter(|(_, line)| line.contains("tbshard"));
    ours.filter(|(_, line)| line.ends_with(" rank") || line.contains(" generate ")).map(|(pid, _)| pid).collect()
}

/// Nothing of ours is left on any host in time: no process, no file.
fn nothing_is_left(lab: &Lab) {
    let left = || -> Vec<(u32, String)> { lab.hosts().iter().flat_map(Host::processes).collect() };
    let start = Instant::now();
    while !left().is_empty() {
        assert!(start.elapsed() < CLEAN, "left behind: {:?}", left());
        std::thread::sleep(Duration::from_millis(50));
    }
    for host in lab.hosts() {
        assert_eq!(host.temp_files(), Vec::<String>::new(), "{}", host.name());
    }
}

/// `generate` with `args` on all hosts.
fn generate(lab: &Lab, args: &[&str]) -> Command {
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let file = lab.cluster_yaml(&hosts, Some(binary()), "timeouts: {connect: 3s, heartbeat: 2s}\n");
    let all = ["generate", "--hosts", file.to_str().unwrap(), "--prompt", "Tell me a story."];
    lab.command(&[&all[..], args].concat())
}

/// A run that will go on for longer than any test, once all ranks compute.
fn endless(lab: &Lab) -> Running {
    let running = Running::start(generate(lab, &["-n", "200000", "--ctx", "210000", "--ignore-eos"]));
    wait_until("ranks on all hosts", Duration::from_secs(20), || {
        lab.hosts().iter().all(|host| !ranks(host).is_empty())
    });
    std::thread::sleep(Duration::from_millis(700));
    running
}
