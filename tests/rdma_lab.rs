//! RDMA between small virtual machines with real verbs: see `rdma-lab/README.md`.
//!
//! ```text
//! alpha ──cable── bravo        the VMs see this machine's files by their own paths, read-only; the lab's directory
//!   └─────lan──────┘           is shared for writing, and what a command there says is found in it
//! ```

mod check;
mod faults;
mod runs;
mod vm;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::program;

pub use vm::{Ended, Job, Vm};

/// What VMs are called.
const NAMES: [&str; 8] = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"];

/// No command takes longer, however slow the emulation is.
const PATIENCE: Duration = Duration::from_secs(180);

/// The code of `lab.sh` where this machine lacks something.
const LACKS: i32 = 77;

/// Where RDMA devices have cables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// Between every two VMs.
    Mesh,
    /// Between neighbours.
    Ring,
    /// One device a VM, all on one segment.
    Hub,
}

/// VMs that see each other and nothing else. Dropping it ends them.
pub struct Lab {
    script: Child,
    orders: Mutex<Option<ChildStdin>>,
    vms: Vec<Vm>,
    dir: TempDir,
}

impl Lab {
    /// Starts `count` VMs, or says why this machine cannot.
    pub fn new(count: usize, wiring: Wiring) -> Option<Self> {
        let labs = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = tempfile::Builder::new().prefix("rdma-lab-").tempdir_in(labs).unwrap();
        let wiring = match wiring {
            Wiring::Mesh => "mesh",
            Wiring::Ring => "ring",
            Wiring::Hub => "hub",
        };
        let start = Instant::now();
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rdma-lab/lab.sh"));
        command.args(["up", "-n", &count.to_string(), "-w", wiring, "-b"]).arg(program::binary()).arg("-d");
        command.arg(dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut script = command.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(script.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let complaints = BufReader::new(script.stderr.take().unwrap());
        if said != "ready\n" {
            let complaints: Vec<String> = complaints.lines().map(Result::unwrap).collect();
            let complaints = complaints.join("\n");
            assert_eq!(script.wait().unwrap().code(), Some(LACKS), "the lab does not start: {complaints}");
            println!("skipped: {complaints}");
            return None;
        }
        std::thread::spawn(move || complaints.lines().map_while(Result::ok).for_each(|line| println!("{line}")));
        println!("{count} VMs after {:?}", start.elapsed());
        let orders = Mutex::new(script.stdin.take());
        let vms = NAMES[..count].iter().map(|name| Vm::new(name, dir.path())).collect();
        Some(Self { script, orders, vms, dir })
    }

    /// The VMs, rank 0 first.
    pub fn vms(&self) -> &[Vm] {
        &self.vms
    }

    /// Starts a line of bash on a VM.
    pub fn start(&self, vm: &Vm, line: &str) -> Job {
        assert!(!line.contains('\n'), "a line: {line}");
        let job = vm.job();
        self.order(&format!("start {} {} {line}", vm.name(), job.name()));
        job
    }

    /// Runs a line of bash on a VM to its end.
    pub fn try_run(&self, vm: &Vm, line: &str) -> Ended {
        self.start(vm, line).end(PATIENCE)
    }

    /// Runs a line of bash that must succeed, and returns what it printed.
    pub fn run(&self, vm: &Vm, line: &str) -> String {
        let ended = self.try_run(vm, line);
        assert_eq!(ended.code, 0, "{}: {line}: {ended:?}", vm.name());
        ended.out
    }

    /// Seconds since a VM's boot, by its own clock.
    pub fn now(&self, vm: &Vm) -> f64 {
        self.run(vm, "cut -d' ' -f1 /proc/uptime").trim().parse().unwrap()
    }

    /// Ends a VM, as a power cut does.
    pub fn kill(&self, vm: &Vm) {
        self.order(&format!("kill {}", vm.name()));
    }

    /// Stops a VM's processor. Its network cards stop, too.
    pub fn freeze(&self, vm: &Vm) {
        self.order(&format!("freeze {}", vm.name()));
    }

    /// Lets it go on.
    pub fn thaw(&self, vm: &Vm) {
        self.order(&format!("thaw {}", vm.name()));
    }

    /// Lets what a VM sends through `card` suffer `netem`: `loss 2%`, `delay 5ms reorder 25%`.
    pub fn spoil(&self, vm: &Vm, card: &str, netem: &str) {
        self.run(vm, &format!("tc qdisc replace dev {card} root netem limit 10000 {netem}"));
    }

    /// Ends that.
    pub fn mend(&self, vm: &Vm, card: &str) {
        self.run(vm, &format!("tc qdisc del dev {card} root"));
    }

    /// Writes a cluster file of all VMs with `rest` after it, and says where every VM sees it.
    pub fn cluster_yaml(&self, rest: &str) -> PathBuf {
        let hosts = std::fs::read_to_string(self.dir.path().join("hosts.yaml")).unwrap();
        let at = (0..).map(|number| self.dir.path().join(format!("cluster-{number}.yaml"))).find(|at| !at.exists());
        let at = at.unwrap();
        // an emulated processor that shares a busy one is slow, not dead
        let patient = "timeouts: {connect: 60s, start: 3min, heartbeat: 10s}\n";
        let timeouts = if rest.contains("timeouts:") { "" } else { patient };
        std::fs::write(&at, hosts + rest + timeouts).unwrap();
        at
    }

    fn order(&self, line: &str) {
        let mut orders = self.orders.lock().unwrap();
        orders.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).expect("the lab has ended");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for vm in &self.vms {
                println!("console of {}: {}", vm.name(), vm.console());
            }
        }
        drop(self.orders.lock().unwrap().take());
        // its end is all that is asked for
        let _ = self.script.wait();
    }
}

/// The program under test, which every VM sees at the same path.
pub fn binary() -> std::path::Display<'static> {
    program::binary().display()
}
