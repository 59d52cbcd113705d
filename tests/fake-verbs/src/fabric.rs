//! What tests build, change and read.

use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::board::{Board, Fault};
use crate::config::Config;
use crate::home;

/// A line of the log: a program broke a rule.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Its name, as in [`crate::rules`].
    pub rule: String,
    /// `host.device`.
    pub device: String,
    /// The process.
    pub pid: u32,
    /// What it did.
    pub detail: String,
}

/// An object that a process has made and not destroyed.
#[derive(Clone, Debug)]
pub struct Living {
    /// `host.device`.
    pub device: String,
    /// `context`, `pd`, `mr`, `cq` or `qp`.
    pub kind: String,
    /// Its process.
    pub pid: u32,
    /// That lives.
    pub alive: bool,
}

/// A fabric in a directory, which ends with the value.
pub struct Fabric {
    dir: PathBuf,
    json: Value,
    /// Made here, so removed here.
    own: bool,
}

fn hosts(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|at| format!("{prefix}{at}")).collect()
}

impl Fabric {
    /// `count` Macs, each with a cable to each other: `mac0` has `rdma_en2` to `mac1`, `rdma_en3` to `mac2` and so on.
    pub fn apple(count: usize) -> Self {
        let mut cables = Vec::new();
        for one in 0..count {
            cables.extend((one + 1..count).map(|other| (one, other)));
        }
        Self::cabled(count, &cables)
    }

    /// `count` Macs in a ring: `rdma_en2` and `rdma_en3` of each lead to its neighbours.
    pub fn ring(count: usize) -> Self {
        Self::cabled(count, &(0..count).map(|at| (at, (at + 1) % count)).collect::<Vec<_>>())
    }

    /// `count` Macs with these cables; the ports of each are numbered in the order of `cables`.
    pub fn cabled(count: usize, cables: &[(usize, usize)]) -> Self {
        let names = hosts("mac", count);
        let mut ports = vec![2; count];
        let mut devices = Vec::new();
        for (number, &(one, other)) in cables.iter().enumerate() {
            for (end, host) in [one, other].into_iter().enumerate() {
                devices.push(json!({
                    "name": format!("rdma_en{}", ports[host]),
                    "host": names[host],
                    "ipv4": format!("169.254.{number}.{}", end + 1),
                    "cable": format!("{number}: {}-{}", names[one], names[other]),
                }));
                ports[host] += 1;
            }
        }
        Self::new(json!({ "personality": "apple", "os": "26.4", "devices": devices }))
    }

    /// `count` Linux machines `linux0`… with a device `rxe0` each, which reach each other and themselves.
    pub fn rxe(count: usize) -> Self {
        let device = |(at, host): (usize, String)| {
            json!({
                "name": "rxe0", "host": host, "ipv4": format!("10.77.0.{}", at + 1), "cable": "segment", "hub": true,
            })
        };
        let devices: Vec<Value> = hosts("linux", count).into_iter().enumerate().map(device).collect();
        Self::new(json!({ "personality": "rxe", "devices": devices }))
    }

    /// Whatever `fabric.json` can say.
    pub fn new(json: Value) -> Self {
        // where memory is a file system nothing is ever written to a disk
        let shm = Path::new("/dev/shm");
        let root = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
        Self::at(&root.join(format!("fake-verbs-{}", home::token())), json)
    }

    /// The same in a directory of the test's, for programs that see not all of the file system.
    pub fn moved_to(self, dir: &Path) -> Self {
        Self::at(dir, self.json.clone())
    }

    /// Leaves the directory where it is.
    pub fn keep(mut self) -> PathBuf {
        self.own = false;
        self.dir.clone()
    }

    #[allow(clippy::expect_used, reason = "a test that cannot write its files is over")]
    fn at(dir: &Path, json: Value) -> Self {
        std::fs::create_dir_all(dir.join("lib")).expect("a directory for the fabric");
        // what an earlier fabric has left there
        for name in ["board", "violations"] {
            let _ = std::fs::remove_file(dir.join(name));
        }
        for name in ["objects", "processes", "qps"] {
            let _ = std::fs::remove_dir_all(dir.join(name));
        }
        let fabric = Self { dir: dir.into(), json, own: true };
        for name in ["libibverbs.so.1", "libibverbs.so", "librdma.dylib"] {
            let link = fabric.dir.join("lib").join(name);
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(built(), link).expect("a link to the library");
        }
        fabric.write();
        fabric
    }

    /// A fabric that another process has made, to change its faults or read its log.
    #[allow(clippy::expect_used, reason = "a test that cannot read its files is over")]
    pub fn attach(dir: &Path) -> Self {
        let text = std::fs::read(dir.join("fabric.json")).expect("the fabric's file");
        Self { dir: dir.into(), json: serde_json::from_slice(&text).expect("JSON"), own: false }
    }

    /// What this thread's next list of devices is of: the devices of a machine, or of all (named `rdma_en2.mac0` where
    /// several have one name). For tests that load the library into their own process.
    ///
    /// # Panics
    ///
    /// The library cannot be loaded.
    pub fn act_as(&self, host: Option<&str>) {
        let text = |text: &str| CString::new(text).unwrap_or_default();
        let (dir, host) = (text(&self.dir.display().to_string()), host.map(text));
        // SAFETY: the library runs nothing when it is loaded, and the function has this type.
        unsafe {
            let path = text(&self.library().display().to_string());
            let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            assert!(!library.is_null(), "the library cannot be loaded");
            let symbol = libc::dlsym(library, c"fake_verbs_use".as_ptr());
            assert!(!symbol.is_null(), "this is another library");
            let call: unsafe extern "C" fn(*const c_char, *const c_char) = std::mem::transmute(symbol);
            call(dir.as_ptr(), host.as_ref().map_or(std::ptr::null(), |host| host.as_ptr()));
        }
    }

    #[allow(clippy::expect_used, reason = "a test that cannot write its files is over")]
    fn write(&self) {
        Config::from_json(&self.json).expect("a fabric.json");
        let text = serde_json::to_vec_pretty(&self.json).expect("JSON");
        std::fs::write(self.dir.join("fabric.json"), text).expect("the fabric's file");
    }

    /// Another value of a key of `fabric.json`, before the first process looks.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.json[key] = value.into();
        self.write();
        self
    }

    /// The same for a device (`host.name`).
    pub fn with_device(mut self, device: &str, key: &str, value: impl Into<Value>) -> Self {
        let at = self.index(device);
        self.json["devices"][at][key] = value.into();
        self.write();
        self
    }

    /// Its directory: `FAKE_VERBS` of programs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The library, to be opened by its path.
    pub fn library(&self) -> PathBuf {
        self.lib_dir().join(if cfg!(target_os = "macos") { "librdma.dylib" } else { "libibverbs.so.1" })
    }

    /// A directory for `LD_LIBRARY_PATH`, with the library under its names.
    pub fn lib_dir(&self) -> PathBuf {
        self.dir.join("lib")
    }

    /// The environment of a program on the machine `host`.
    pub fn env(&self, host: &str) -> Vec<(String, String)> {
        let path = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
        vec![
            (String::from("FAKE_VERBS"), self.dir.display().to_string()),
            (String::from("FAKE_VERBS_HOST"), host.to_owned()),
            (path.to_owned(), self.lib_dir().display().to_string()),
        ]
    }

    #[allow(clippy::expect_used, reason = "a test that cannot read its files is over")]
    fn config(&self) -> Config {
        Config::read(&self.dir).expect("the fabric's file")
    }

    /// The device's place in `fabric.json`, if there is one.
    pub fn index_of(&self, device: &str) -> Option<usize> {
        self.config().find(device)
    }

    /// The device's place in `fabric.json`, which [`Fault::device`] wants.
    ///
    /// # Panics
    ///
    /// There is none of that name.
    pub fn index(&self, device: &str) -> usize {
        self.index_of(device).unwrap_or_else(|| panic!("there is no device {device}"))
    }

    /// The name of the first device of machine `from` with a cable to machine `to`.
    ///
    /// # Panics
    ///
    /// There is none.
    pub fn device(&self, from: &str, to: &str) -> String {
        let devices = self.config().devices;
        let leads = |cable: &str| devices.iter().any(|device| device.host == to && device.cable == cable);
        let found = devices.iter().find(|device| device.host == from && leads(&device.cable));
        found.unwrap_or_else(|| panic!("{from} has no cable to {to}")).name.clone()
    }

    #[allow(clippy::expect_used, reason = "a test that cannot write its files is over")]
    fn board(&self) -> Board {
        Board::open(&self.dir, &self.config()).expect("the fabric's board")
    }

    /// Takes the port of a device down, or up.
    pub fn set_port(&self, device: &str, up: bool) {
        self.board().set_port(self.index(device), up);
    }

    /// Makes a device stand still, as if its machine had frozen, or go on.
    pub fn set_still(&self, device: &str, still: bool) {
        self.board().set_still(self.index(device), still);
    }

    /// Lets something go wrong from now on.
    pub fn fault(&self, fault: Fault) {
        self.board().add(fault);
    }

    /// Nothing goes wrong from now on.
    pub fn clear_faults(&self) {
        self.board().clear();
    }

    /// What programs have done wrong so far.
    pub fn violations(&self) -> Vec<Violation> {
        let text = std::fs::read_to_string(self.dir.join("violations")).unwrap_or_default();
        let parse = |line: &str| {
            let mut words = line.split('\t').map(str::to_owned);
            let mut next = || words.next().unwrap_or_default();
            let (rule, device, pid, detail) = (next(), next(), next(), next());
            Violation { rule, device, pid: pid.parse().unwrap_or(0), detail }
        };
        text.lines().map(parse).collect()
    }

    /// The names of the rules that were broken so far, each once.
    pub fn broken(&self) -> Vec<String> {
        let mut rules: Vec<String> = self.violations().into_iter().map(|violation| violation.rule).collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    /// Forgets what was done wrong.
    pub fn clear_violations(&self) {
        let _ = std::fs::remove_file(self.dir.join("violations"));
    }

    /// What is there of objects, of all processes.
    pub fn objects(&self) -> Vec<Living> {
        let entries = std::fs::read_dir(self.dir.join("objects")).into_iter().flatten().flatten();
        let parse = |name: String| {
            let mut words = name.split('~');
            let mut next = || words.next().unwrap_or_default().to_owned();
            let (device, kind, token) = (next(), next(), next());
            let pid = token.split('-').next().and_then(|pid| pid.parse().ok()).unwrap_or(0);
            Living { device, kind, pid, alive: home::alive(&self.dir, &token) }
        };
        entries.map(|entry| parse(entry.file_name().to_string_lossy().into_owned())).collect()
    }

    /// How many there are of a kind.
    pub fn count(&self, kind: &str) -> usize {
        self.objects().iter().filter(|object| object.kind == kind).count()
    }

    /// What dead processes left behind is gone, as after a machine has booted.
    pub fn reboot(&self) {
        for entry in std::fs::read_dir(self.dir.join("objects")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !home::alive(&self.dir, name.split('~').nth(2).unwrap_or_default()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        if self.own {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// The library that cargo built beside this test.
#[allow(clippy::expect_used, reason = "a test without its library is over")]
fn built() -> PathBuf {
    let name = if cfg!(target_os = "macos") { "libfake_verbs.dylib" } else { "libfake_verbs.so" };
    let exe = std::env::current_exe().expect("the path of this program");
    let places = exe.ancestors().skip(1).take(3).flat_map(|dir| [dir.join(name), dir.join("deps").join(name)]);
    let found = places.into_iter().find(|path| path.exists());
    found.expect("libfake_verbs beside the program: cargo builds it with the crate fake-verbs")
}
