//! A virtual machine of the lab, and commands that run there.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A virtual machine.
pub struct Vm {
    name: &'static str,
    dir: PathBuf,
    jobs: AtomicUsize,
}

/// A command that was started on a VM.
pub struct Job {
    path: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
    /// When, in seconds since the VM's boot, by the VM's clock.
    pub end: f64,
}

impl Vm {
    pub(super) fn new(name: &'static str, lab: &Path) -> Self {
        Self { name, dir: lab.join(name), jobs: AtomicUsize::new(0) }
    }

    /// Its hostname. The RDMA device on the cable to it is `rxe_NAME`, on a hub `rxe_lan`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The end of what its kernel and first process said.
    pub fn console(&self) -> String {
        let bytes = std::fs::read(self.dir.join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(3000)..]).into_owned()
    }

    pub(super) fn job(&self) -> Job {
        Job { path: self.dir.join(format!("job-{}", self.jobs.fetch_add(1, Ordering::Relaxed))) }
    }
}

impl Job {
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap().display().to_string()
    }

    fn read(&self, what: &str) -> String {
        let bytes = std::fs::read(self.path.with_extension(what)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What it has printed so far.
    pub fn out(&self) -> String {
        self.read("out")
    }

    /// What it has complained about so far.
    pub fn err(&self) -> String {
        self.read("err")
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.path.with_extension("code").exists()
    }

    /// Waits for its end, which must come in time.
    pub fn end(self, bound: Duration) -> Ended {
        let start = Instant::now();
        while !self.has_ended() {
            assert!(start.elapsed() < bound, "runs after {bound:?}: {}\n{}", self.out(), self.err());
            std::thread::sleep(Duration::from_millis(20));
        }
        let code = self.read("code");
        let (code, end) = code.trim().split_once(' ').unwrap();
        Ended { code: code.parse().unwrap(), end: end.parse().unwrap(), out: self.out(), err: self.err() }
    }
}
