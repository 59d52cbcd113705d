//! One machine of the lab: what a test does to it, and what it sees of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use super::namespace::{Kind, Namespace, PATH, Switch, signal};

/// A machine of the lab.
pub struct Host {
    name: String,
    number: u8,
    dir: PathBuf,
    machine: Namespace,
    switch: Arc<Switch>,
    /// Files that the test put there itself.
    placed: Mutex<BTreeSet<String>>,
}

/// The address of the machine with `number`.
pub fn address(number: u8) -> String {
    format!("10.77.0.{number}")
}

/// The port of its sshd.
pub fn port(number: u8) -> u16 {
    2200 + u16::from(number)
}

impl Host {
    /// Starts a machine; [`Host::wait_ready`] comes next.
    pub(super) fn spawn(kind: Kind, name: &str, number: u8, lab: &Path, switch: Arc<Switch>) -> Self {
        let dir = lab.join(name);
        std::fs::create_dir(&dir).unwrap();
        let copy = |from: &Path, to: &str| std::fs::copy(from, dir.join(to)).unwrap();
        copy(&lab.join("hosts"), "hosts");
        std::fs::write(dir.join("nsswitch.conf"), "passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
            .unwrap();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let others: Vec<&str> = passwd.lines().filter(|line| !line.starts_with("root:")).collect();
        std::fs::write(dir.join("passwd"), format!("{ROOT}/bin/bash\n{}\n", others.join("\n"))).unwrap();
        std::fs::write(dir.join("shadow"), "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n").unwrap();
        if kind == Kind::Host {
            copy(&lab.join("key.pub"), "authorized_keys");
            super::keygen(&dir.join("host_key"));
            let config = format!(
                "Port {}\nListenAddress 0.0.0.0\nHostKey \"{dir}/host_key\"\nAuthorizedKeysFile \"{dir}/authorized_keys\"\n\
                 StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
                 PermitRootLogin yes\nUseDNS no\nPrintMotd no\nPidFile /run/sshd.pid\nLogLevel VERBOSE\n\
                 Banner \"{dir}/banner\"\n",
                port(number),
                dir = dir.display()
            );
            std::fs::write(dir.join("sshd_config"), config).unwrap();
            std::fs::write(dir.join("banner"), "").unwrap();
        }
        let machine = Namespace::spawn(kind, name, &dir);
        Self { name: name.to_owned(), number, dir, machine, switch, placed: Mutex::default() }
    }

    pub(super) fn wait_ready(&mut self) {
        self.machine.wait_ready();
    }

    pub(super) fn plug(&self) -> (&Namespace, &str, String) {
        (&self.machine, &self.name, self.address())
    }

    /// Its hostname, which ssh knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub fn address(&self) -> String {
        address(self.number)
    }

    /// The port of its sshd.
    pub fn port(&self) -> u16 {
        port(self.number)
    }

    /// Lets known-hosts lists know its key.
    pub fn known_hosts_line(&self) -> String {
        let key = std::fs::read_to_string(self.dir.join("host_key.pub")).unwrap();
        format!("[{}]:{} {key}", self.name, self.port())
    }

    /// What runs `command` on this machine. On the launcher the child is the command itself; on a host it is one that
    /// waits for it, because only a child can be in another namespace of processes.
    pub fn inside(&self, command: &Command) -> Command {
        let mut inside = self.machine.enter();
        inside.arg("--").arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside.env("HOME", "/root").env("PATH", PATH).env_remove("TMPDIR").env_remove("SSH_AUTH_SOCK");
        inside
    }

    /// Runs a line of shell on this machine.
    pub fn try_run(&self, line: &str) -> Output {
        let mut command = self.machine.enter();
        command.args(["--wdns=/root", "sh", "-c", line]).env_clear().env("PATH", PATH).env("HOME", "/root");
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a line of shell that must succeed, and returns what it printed.
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{}: {line}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What runs here besides sshd, with the numbers of the tests' machine.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let all = self.machine.processes().into_iter().map(|(pid, arguments)| (pid, arguments.join(" ")));
        all.filter(|(_, line)| !is_sshd(line)).collect()
    }

    fn everything(&self) -> Vec<u32> {
        self.machine.processes().into_iter().map(|(pid, _)| pid).collect()
    }

    /// Stops every process here, as a machine that swaps itself to death. Its kernel still answers.
    pub fn freeze(&self) {
        // those that started others meanwhile are stopped by then
        (0..3).for_each(|_| signal("STOP", &self.everything()));
    }

    /// Lets everything go on.
    pub fn thaw(&self) {
        signal("CONT", &self.everything());
    }

    /// Kills every process here with SIGKILL, sshd too.
    pub fn kill_all(&self) {
        (0..3).for_each(|_| signal("KILL", &self.everything()));
    }

    /// Pulls the cable.
    pub fn cut(&self) {
        self.switch.namespace.ip(&format!("link set {} down\n", self.name));
    }

    /// Plugs the cable in again. Nobody remembers that it was not there.
    pub fn mend(&self) {
        self.switch.namespace.ip(&format!("link set {} up\n", self.name));
        self.run("until [ $(cat /sys/class/net/eth0/operstate) = up ]; do sleep 0.01; done");
        self.switch.forget();
    }

    /// Ends the sshd that listens; its sessions go on.
    pub fn stop_sshd(&self) {
        self.run("kill $(cat /run/sshd.pid) && while [ -e /run/sshd.pid ]; do sleep 0.01; done");
    }

    /// Starts sshd again.
    pub fn start_sshd(&self) {
        let start = format!("/usr/sbin/sshd -f '{0}/sshd_config' -E '{0}/sshd.log'", self.dir.display());
        self.run(&format!("{start} && until [ -s /run/sshd.pid ]; do sleep 0.01; done"));
    }

    /// Gives it a host key that nobody knows.
    pub fn change_host_key(&self) {
        super::keygen(&self.dir.join("host_key"));
        self.stop_sshd();
        self.start_sshd();
    }

    /// Has no host key any more: sshd accepts connections and ends them.
    pub fn lose_host_key(&self) {
        std::fs::remove_file(self.dir.join("host_key")).unwrap();
    }

    /// Accepts nobody's key any more.
    pub fn refuse_auth(&self) {
        std::fs::write(self.dir.join("authorized_keys"), "").unwrap();
    }

    /// The shell of whoever logs in.
    pub fn login_shell(&self, shell: &str) {
        self.run(&format!("sed 's,^root:.*,{ROOT}{shell},' /etc/passwd > /tmp/.passwd && cat /tmp/.passwd > /etc/passwd && rm /tmp/.passwd"));
    }

    /// Lets every shell, and sshd itself, say things that nobody asked for.
    pub fn noisy_dotfiles(&self) {
        std::fs::write(self.dir.join("banner"), "*** authorised use only: permission denied to all others ***\n")
            .unwrap();
        let lines = "echo 'Welcome home!'\nprintf 'no end of line'\n";
        let more = format!("{lines}echo 'no such file or directory' >&2\n");
        for file in [".bashrc", ".profile", ".zshenv", ".zshrc", ".config/fish/config.fish", ".ssh/rc"] {
            self.place(&format!("/root/{file}"), more.as_bytes());
        }
        self.place("/root/.cshrc", lines.as_bytes());
    }

    /// Puts an executable at `path`; without one, at the place where `tbshard` is looked for first.
    pub fn install(&self, program: &Path, path: Option<&str>) {
        let path = path.unwrap_or("/root/.local/bin/tbshard");
        self.place(path, &[]);
        self.run(&format!("cp '{}' '{path}' && chmod 755 '{path}'", program.display()));
    }

    /// Writes a file on this machine.
    pub fn place(&self, path: &str, content: &[u8]) {
        self.placed.lock().unwrap().insert(path.to_owned());
        std::fs::write(self.dir.join("placed"), content).unwrap();
        self.run(&format!("mkdir -p \"$(dirname '{path}')\" && cp '{}/placed' '{path}'", self.dir.display()));
    }

    /// The files at home and in temporary places that no test placed.
    pub fn temp_files(&self) -> Vec<String> {
        let found = self.run("find /root /tmp /dev/shm /run -xdev ! -type d");
        let placed = self.placed.lock().unwrap();
        // what sshd and fish keep for themselves
        let own = |path: &str| path == "/run/sshd.pid" || path.contains("/fish/");
        found.lines().filter(|path| !own(path) && !placed.contains(*path)).map(str::to_owned).collect()
    }

    /// Leaves no space at home and in `/tmp`.
    pub fn fill_disk(&self) {
        for place in ["/root", "/tmp"] {
            let line = format!(
                "used=$(df --output=used -B4096 {place} | tail -n 1); mount -n -o remount,size=$(((used > 0 ? used : 1) * 4096)) {place}"
            );
            self.run(&line);
        }
    }
}

/// The record of the user who logs in, up to the shell.
const ROOT: &str = "root:x:0:0:root:/root:";

fn is_sshd(line: &str) -> bool {
    let program = line.split([' ', ':']).next().unwrap_or_default();
    program.rsplit('/').next().is_some_and(|name| name == "sshd" || name.starts_with("sshd-"))
}
