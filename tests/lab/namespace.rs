//! Namespaces that live as long as a pipe: a process that dies, however it dies, takes its machines with it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// Where programs lie on a machine of the lab.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The process that waits for the end of a machine's pipe.
const HOLDER: [&str; 3] = ["cat", "--", "-"];

/// What a set of namespaces is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Holds the bridge.
    Switch,
    /// Has a network, files and a hostname. Its processes have numbers of the machine that tests run on, because a
    /// command that is started there must be the child that a test kills.
    Launcher,
    /// Has its own processes as well, and an sshd.
    Host,
}

/// Running namespaces. Dropping it ends all processes in them.
pub struct Namespace {
    child: Child,
    first: u32,
    kind: Kind,
    /// Which namespace says what runs here, and its name.
    belongs: (&'static str, String),
    log: PathBuf,
}

/// Whether this machine can make namespaces, and if not, why.
pub fn possible() -> Result<(), String> {
    if !cfg!(target_os = "linux") {
        return Err("the lab's machines are Linux namespaces".to_owned());
    }
    for (program, package) in [("unshare", "util-linux"), ("ip", "iproute2"), ("ssh-keygen", "openssh-client")] {
        if Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            return Err(format!("the lab needs `{program}` (package {package})"));
        }
    }
    if !Path::new("/usr/sbin/sshd").exists() {
        return Err("the lab needs /usr/sbin/sshd (package openssh-server)".to_owned());
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "--mount", "--pid", "--uts", "--fork", "sh", "-c"]);
    unshare.arg("mount -t tmpfs none /mnt && ip link add lab0 type bridge && ip link add lab1 type veth");
    let output = unshare.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("the lab needs root and namespaces: {}", text.trim())) }
}

impl Namespace {
    /// Starts one whose files are in `dir`; [`Namespace::wait_ready`] comes next.
    pub fn spawn(kind: Kind, name: &str, dir: &Path) -> Self {
        let mut command = Command::new("unshare");
        command.arg("--net");
        let (mount, processes) = (["--mount", "--uts", "--ipc"], ["--pid", "--fork", "--kill-child"]);
        command.args(if kind == Kind::Switch { &[][..] } else { &mount });
        command.args(if kind == Kind::Host { &processes[..] } else { &[] });
        let word = match kind {
            Kind::Switch => "switch",
            Kind::Launcher => "launcher",
            Kind::Host => "host",
        };
        command.args(["/bin/sh", "-c", include_str!("machine.sh"), "machine", word, name]).arg(dir);
        // what /tmp and /root of a machine would hide
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        command.args([Path::new(env!("CARGO_MANIFEST_DIR")), super::binary().parent().unwrap(), target]);
        command.env_clear().env("PATH", PATH).stdin(Stdio::piped()).stdout(Stdio::piped());
        let log = dir.join("machine.log");
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        // a host's processes have numbers of their own; who only waits outside for one of them is not on the host
        let which = if kind == Kind::Host { "pid" } else { "net" };
        Self { child, first: 0, kind, belongs: (which, String::new()), log }
    }

    /// Waits until the first process has set everything up.
    pub fn wait_ready(&mut self) {
        let mut line = String::new();
        BufReader::new(self.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let first = line.trim_end().strip_suffix(" ready").and_then(|first| first.parse().ok());
        let said = || std::fs::read_to_string(&self.log).unwrap();
        self.first = first.unwrap_or_else(|| panic!("a machine did not start: {}", said()));
        self.belongs.1 = namespace(self.first, self.belongs.0).unwrap();
    }

    /// Every process here but those that hold it up, numbered as the tests' machine does, with its arguments.
    pub fn processes(&self) -> Vec<(u32, Vec<String>)> {
        let entries = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
        let numbers = entries.filter_map(|name| name.to_str()?.parse().ok());
        let here = numbers.filter(|pid| namespace(*pid, self.belongs.0).as_ref() == Some(&self.belongs.1));
        let others = here.filter(|pid| *pid != self.first);
        others.filter_map(|pid| Some((pid, arguments(pid)?))).filter(|(_, arguments)| arguments != &HOLDER).collect()
    }

    /// Starts the command line of something that runs here.
    pub fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first.to_string(), "--net", "--mount", "--uts", "--ipc"]);
        command.args(if self.kind == Kind::Host { &["--pid"][..] } else { &[] });
        command
    }

    /// Runs lines of `ip` here.
    pub fn ip(&self, lines: &str) {
        assert!(run_ip(self.first, lines), "ip: {lines}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let mut all: Vec<u32> = self.processes().into_iter().map(|(pid, _)| pid).collect();
        all.extend((self.first != 0).then_some(self.first));
        signal("KILL", &all);
        drop(self.child.stdin.take());
        // its end is all that is asked for
        let _ = self.child.wait();
    }
}

/// A bridge in a namespace of its own, and the machines that are plugged into it.
pub struct Switch {
    pub namespace: Namespace,
    machines: Mutex<Vec<u32>>,
}

impl Switch {
    /// Starts one whose log is in `dir`.
    pub fn start(dir: &Path) -> Self {
        let mut namespace = Namespace::spawn(Kind::Switch, "switch", dir);
        namespace.wait_ready();
        namespace.ip("link add bridge type bridge\nlink set bridge up\n");
        Self { namespace, machines: Mutex::default() }
    }

    /// Plugs machines in: each with the name of its port and its address.
    pub fn plug(&self, machines: &[(&Namespace, &str, String)]) {
        let plug = |(machine, port, _): &(&Namespace, &str, String)| {
            let first = machine.first;
            format!("link add {port} type veth peer name eth0 netns {first}\nlink set {port} master bridge up\n")
        };
        self.namespace.ip(&machines.iter().map(plug).collect::<String>());
        for (machine, _, address) in machines {
            machine.ip(&format!("addr add {address}/24 dev eth0\nlink set eth0 up\n"));
        }
        self.machines.lock().unwrap().extend(machines.iter().map(|(machine, ..)| machine.first));
    }

    /// Lets every machine look for its neighbours anew.
    pub fn forget(&self) {
        for first in self.machines.lock().unwrap().iter() {
            // a machine that ended has no neighbours
            let _ = run_ip(*first, "neigh flush dev eth0\n");
        }
    }
}

/// Runs lines of `ip` where the process `first` is.
fn run_ip(first: u32, lines: &str) -> bool {
    let mut command = Command::new("nsenter");
    command.args(["--target", &first.to_string(), "--net", "ip", "-batch", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait().unwrap().success()
}

/// Sends a signal to processes, of which some may have ended.
pub fn signal(name: &str, pids: &[u32]) {
    if !pids.is_empty() {
        let pids = pids.iter().map(u32::to_string);
        Command::new("kill").arg(format!("-{name}")).args(pids).stderr(Stdio::null()).status().unwrap();
    }
}

fn namespace(pid: u32, which: &str) -> Option<String> {
    Some(std::fs::read_link(format!("/proc/{pid}/ns/{which}")).ok()?.display().to_string())
}

/// The arguments of a process that is not a zombie.
fn arguments(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = text.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let mut words: Vec<String> = words.collect();
    words.pop();
    (!words.is_empty()).then_some(words)
}
