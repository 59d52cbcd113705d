//! Machines for tests: each host is a set of namespaces with a real sshd, a home, a hostname and a cable that can be pulled.
//!
//! ```text
//! launcher ──┐                 one network namespace a machine, a bridge in another;
//! alpha ─────┤ switch          nothing in the machine's own, no address outside is ever reached
//! bravo ─────┘
//! ```

mod check;
mod host;
mod namespace;

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

/// Every machine sees it at the same path.
pub use crate::support::program::binary;
pub use host::Host;
use namespace::{Kind, Switch};

/// What hosts are called.
const NAMES: [&str; 8] = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"];

/// A launcher and some hosts that see each other and nothing else. Dropping it ends them and all that runs there.
pub struct Lab {
    launcher: Host,
    hosts: Vec<Host>,
    // after the hosts, which must be gone before their files are
    dir: TempDir,
    _alive: File,
}

impl Lab {
    /// Starts `count` hosts, or says why this machine cannot.
    pub fn new(count: usize) -> Option<Self> {
        assert!((1..=NAMES.len()).contains(&count));
        if let Err(lacks) = namespace::possible() {
            println!("skipped: {lacks}");
            return None;
        }
        let (dir, alive) = directory();
        let key = dir.path().join("key");
        keygen(&key);
        let names: Vec<&str> = NAMES[..count].to_vec();
        write_shared(dir.path(), &names);
        let switch = Arc::new(Switch::start(dir.path()));
        let start = |kind, name: &str, number| Host::spawn(kind, name, number, dir.path(), switch.clone());
        let mut launcher = start(Kind::Launcher, "launcher", 1);
        let mut hosts: Vec<Host> =
            names.iter().enumerate().map(|(at, name)| start(Kind::Host, name, 11 + at as u8)).collect();
        let mut all: Vec<&mut Host> = hosts.iter_mut().chain([&mut launcher]).collect();
        all.iter_mut().for_each(|host| host.wait_ready());
        switch.plug(&all.iter().map(|host| host.plug()).collect::<Vec<_>>());
        let lab = Self { launcher, hosts, dir, _alive: alive };
        lab.know_hosts();
        Some(lab)
    }

    /// Lets the launcher know the key of every host.
    pub fn know_hosts(&self) {
        let lines: String = self.hosts.iter().map(Host::known_hosts_line).collect();
        std::fs::write(self.known_hosts(), lines).unwrap();
    }

    /// The machine that [`Lab::command`] runs on. It has an address and no sshd.
    pub fn launcher(&self) -> &Host {
        &self.launcher
    }

    /// The hosts, in the order of their addresses.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Runs the built `tbshard` on the launcher.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.launcher.inside(&crate::support::program::command(args));
        command.env("TBSHARD_SSH", self.ssh());
        command
    }

    /// What `TBSHARD_SSH` says: an ssh that knows the hosts by name.
    pub fn ssh(&self) -> String {
        format!("ssh -F '{}'", self.ssh_config().display())
    }

    /// The same ssh for a test that calls it from outside of the launcher.
    pub fn ssh_from_outside(&self) -> String {
        let mut ssh = Command::new("ssh");
        let inside = self.launcher.inside(ssh.arg("-F").arg(self.ssh_config()));
        let words = [inside.get_program()].into_iter().chain(inside.get_args());
        words.map(|word| format!("'{}' ", word.to_str().unwrap())).collect()
    }

    /// The launcher's `~/.ssh/config`.
    pub fn ssh_config(&self) -> PathBuf {
        self.dir.path().join("ssh_config")
    }

    /// The launcher's list of known host keys.
    pub fn known_hosts(&self) -> PathBuf {
        self.dir.path().join("known_hosts")
    }

    /// A directory for a test's own files that every machine sees. It is not `/tmp`, which each has for itself.
    pub fn shared(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a cluster file of `hosts`, whose binary is `binary`, with `rest` after it, and says where.
    pub fn cluster_yaml(&self, hosts: &[&Host], binary: Option<&Path>, rest: &str) -> PathBuf {
        let mut text = "hosts:\n".to_owned();
        for host in hosts {
            write!(text, "  - name: {0}\n    ssh: {0}\n    addresses: [{1}]\n", host.name(), host.address()).unwrap();
            binary.iter().for_each(|binary| writeln!(text, "    binary: {}", binary.display()).unwrap());
        }
        let names: Vec<&str> = hosts.iter().map(|host| host.name()).collect();
        let path = self.dir.path().join(format!("cluster-{}.yaml", names.join("-")));
        std::fs::write(&path, text + rest).unwrap();
        path
    }
}

/// A directory of this lab's own, and what is locked for as long as it lives; those of the dead are removed.
fn directory() -> (TempDir, File) {
    let labs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lab");
    std::fs::create_dir_all(&labs).unwrap();
    let door = File::create(labs.join("door")).unwrap();
    door.lock().unwrap();
    for entry in std::fs::read_dir(&labs).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir()) {
        let dead = File::open(entry.path().join("alive")).map_or(true, |alive| alive.try_lock().is_ok());
        if dead {
            // a process that ended just now may still hold a mount in it: next time
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let dir = tempfile::Builder::new().prefix("lab-").tempdir_in(&labs).unwrap();
    let alive = File::create(dir.path().join("alive")).unwrap();
    alive.lock().unwrap();
    (dir, alive)
}

/// Makes a key pair without a passphrase.
fn keygen(path: &Path) {
    for old in [path.to_owned(), path.with_extension("pub")] {
        // there is none the first time
        let _ = std::fs::remove_file(old);
    }
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"]).arg(path).stdin(Stdio::null());
    assert!(command.status().unwrap().success());
}

/// Writes what all machines share: who has which address, and how the launcher reaches them.
fn write_shared(dir: &Path, names: &[&str]) {
    let mut config = format!(
        "Host *\n  User root\n  IdentityFile \"{0}/key\"\n  IdentitiesOnly yes\n  IdentityAgent none\n  \
         UserKnownHostsFile \"{0}/known_hosts\"\n  GlobalKnownHostsFile /dev/null\n",
        dir.display()
    );
    let mut addresses = format!("127.0.0.1 localhost\n{} launcher\n", host::address(1));
    for (at, name) in names.iter().enumerate() {
        let number = 11 + at as u8;
        writeln!(config, "Host {name}\n  HostName {name}\n  Port {}", host::port(number)).unwrap();
        writeln!(addresses, "{} {name}", host::address(number)).unwrap();
    }
    std::fs::write(dir.join("ssh_config"), config).unwrap();
    std::fs::write(dir.join("hosts"), addresses).unwrap();
}
