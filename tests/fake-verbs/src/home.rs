//! A fabric as a process has it: its files, what the process holds of it, and the log of violations.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use crate::board::{Board, Kind};
use crate::config::{Config, Personality};
use crate::rules::{self, Rule};

/// A lock that a panic elsewhere does not take away.
pub(crate) fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name that nobody else has.
pub(crate) fn token() -> String {
    let mut bytes = [0; 6];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    let random = bytes.iter().fold(u64::from(read.is_err()), |sum, byte| sum << 8 | u64::from(*byte));
    format!("{}-{random:012x}", std::process::id())
}

/// Waits for a lock on a file, or tries it.
fn flock(file: &File, operation: i32) -> bool {
    // SAFETY: an open descriptor.
    unsafe { libc::flock(file.as_raw_fd(), operation) == 0 }
}

/// A process that holds its file's lock lives: the kernel lets go of it whatever ends the process.
pub(crate) fn alive(dir: &Path, token: &str) -> bool {
    File::open(dir.join("processes").join(token)).is_ok_and(|file| !flock(&file, libc::LOCK_SH | libc::LOCK_NB))
}

/// The fabric.
pub(crate) struct Home {
    pub(crate) dir: PathBuf,
    pub(crate) config: Config,
    pub(crate) board: Board,
    pub(crate) token: String,
    _alive: File,
    live: Mutex<BTreeSet<String>>,
}

/// There is no room for one more.
pub(crate) struct Full {
    /// The process itself has them all, so it should have known.
    pub(crate) own: bool,
}

static HOMES: Mutex<Vec<Arc<Home>>> = Mutex::new(Vec::new());
static AT_EXIT: Once = Once::new();

extern "C" fn leave_all() {
    for home in locked(&HOMES).iter() {
        home.leave();
    }
}

thread_local! {
    static CHOSEN: RefCell<Option<(PathBuf, Option<String>)>> = const { RefCell::new(None) };
}

/// The fabric and the machine that this thread sees from now on, instead of those that the environment names.
pub(crate) fn choose(chosen: Option<(PathBuf, Option<String>)>) {
    CHOSEN.with(|cell| *cell.borrow_mut() = chosen);
}

#[allow(clippy::disallowed_methods, reason = "the library's user is a program that knows nothing of it")]
fn chosen() -> Option<(PathBuf, Option<String>)> {
    let text = |key| std::env::var_os(key).filter(|value| !value.is_empty());
    CHOSEN.with(|cell| cell.borrow().clone()).or_else(|| {
        let host = text("FAKE_VERBS_HOST").map(|host| host.to_string_lossy().into_owned());
        Some((text("FAKE_VERBS")?.into(), host))
    })
}

impl Home {
    /// The fabric of this thread, and the machine if one was named.
    pub(crate) fn current() -> Option<(Arc<Self>, Option<String>)> {
        let (dir, host) = chosen()?;
        let mut homes = locked(&HOMES);
        if let Some(home) = homes.iter().find(|home| home.dir == dir) {
            return Some((home.clone(), host));
        }
        match Self::open(&dir) {
            Ok(home) => {
                homes.push(Arc::new(home));
                // SAFETY: a function of this library, which stays loaded for as long as it has handlers.
                AT_EXIT.call_once(|| unsafe {
                    libc::atexit(leave_all);
                });
                homes.last().map(|home| (home.clone(), host))
            }
            Err(error) => {
                // a test that set this up wrongly would otherwise look for hours
                let _ = writeln!(std::io::stderr(), "fake-verbs: {error}");
                None
            }
        }
    }

    fn open(dir: &Path) -> Result<Self, String> {
        let config = Config::read(dir)?;
        let say = |error: std::io::Error| format!("{}: {error}", dir.display());
        for part in ["objects", "processes", "qps"] {
            std::fs::create_dir_all(dir.join(part)).map_err(say)?;
        }
        let board = Board::open(dir, &config)?;
        let token = token();
        let file = File::create(dir.join("processes").join(&token)).map_err(say)?;
        flock(&file, libc::LOCK_EX);
        Ok(Self { dir: dir.into(), config, board, token, _alive: file, live: Mutex::default() })
    }

    pub(crate) fn apple(&self) -> bool {
        self.config.personality == Personality::Apple
    }

    /// The errno of the system whose rules are kept: its numbers, whatever the system of the test.
    pub(crate) fn errno(&self, error: Errno) -> i32 {
        let (apple, linux) = match error {
            Errno::Invalid => (22, 22),
            Errno::Memory => (12, 12),
            Errno::Busy => (16, 16),
            Errno::Fault => (14, 14),
            Errno::TimedOut => (60, 110),
            Errno::Unsupported => (102, 95),
        };
        if self.apple() { apple } else { linux }
    }

    /// The errno, already set, with which a fault has a call fail.
    pub(crate) fn spoilt(&self, device: usize) -> Option<i32> {
        self.board.fault(&[Kind::Call], device, 0).map(|(_, code)| raise(code as i32))
    }

    /// Logs that the program broke a rule.
    pub(crate) fn violation(&self, rule: Rule, device: usize, detail: &str) {
        let key = self.config.devices.get(device).map_or(String::from("-"), |device| device.key());
        let line = format!("{}\t{key}\t{}\t{detail}\t{}\n", rule.name, std::process::id(), rule.hint);
        let file = OpenOptions::new().append(true).create(true).open(self.dir.join("violations"));
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        if written.is_err() {
            let _ = write!(std::io::stderr(), "fake-verbs: {line}");
        }
    }

    fn lock(&self) -> Option<File> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(self.dir.join("lock")).ok()?;
        flock(&file, libc::LOCK_EX);
        Some(file)
    }

    fn objects(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.join("objects")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Notes one more object of a device, unless `limit` are there.
    pub(crate) fn record(self: &Arc<Self>, device: usize, kind: &str, limit: u32) -> Result<Object, Full> {
        let _lock = self.lock();
        let mut there = self.objects();
        if !self.config.leak {
            there.retain(|name| self.keep(name));
        }
        let start = format!("{}~{kind}~", self.config.devices[device].key());
        there.retain(|name| name.starts_with(&start));
        if there.len() >= limit as usize {
            let mine = there.iter().filter(|name| name.contains(&self.token)).count();
            return Err(Full { own: mine >= limit as usize });
        }
        let number = self.board.number();
        let name = format!("{start}{}~{number}", self.token);
        let _ = File::create(self.dir.join("objects").join(&name));
        locked(&self.live).insert(name.clone());
        Ok(Object { home: self.clone(), name, number })
    }

    /// Removes what a dead process held, as a kernel does.
    fn keep(&self, name: &str) -> bool {
        let token = name.split('~').nth(2).unwrap_or_default();
        let keep = token == self.token || alive(&self.dir, token);
        if !keep {
            self.remove(name);
        }
        keep
    }

    fn remove(&self, name: &str) {
        let _ = std::fs::remove_file(self.dir.join("objects").join(name));
        if name.split('~').nth(1) == Some("qp") {
            let number = name.rsplit('~').next().unwrap_or_default();
            let _ = std::fs::remove_file(self.dir.join("qps").join(number));
        }
    }

    /// The process ends.
    fn leave(&self) {
        let live = std::mem::take(&mut *locked(&self.live));
        if live.is_empty() || !self.dir.exists() {
            return;
        }
        let mut kinds: Vec<&str> = live.iter().filter_map(|name| name.split('~').nth(1)).collect();
        kinds.sort_unstable();
        let device = live.first().and_then(|name| self.config.find(name.split('~').next()?)).unwrap_or(usize::MAX);
        self.violation(rules::LEAK_AT_EXIT, device, &kinds.join(" "));
        if !self.config.leak {
            live.iter().for_each(|name| self.remove(name));
        }
    }
}

/// An object of the device, known to all processes.
pub(crate) struct Object {
    home: Arc<Home>,
    name: String,
    pub(crate) number: u32,
}

impl Object {
    pub(crate) fn release(&self) {
        self.home.remove(&self.name);
        locked(&self.home.live).remove(&self.name);
    }
}

/// Errors that calls give.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Errno {
    Invalid,
    Memory,
    Busy,
    Fault,
    TimedOut,
    Unsupported,
}

/// Sets `errno` and gives it back.
pub(crate) fn raise(code: i32) -> i32 {
    #[cfg(target_os = "macos")]
    // SAFETY: the thread's own errno.
    unsafe {
        *libc::__error() = code;
    }
    #[cfg(not(target_os = "macos"))]
    // SAFETY: the thread's own errno.
    unsafe {
        *libc::__errno_location() = code;
    }
    code
}
