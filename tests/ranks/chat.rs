//! A rank that dies while the user is asked: the chat ends at once, with the cause on a line of its own and the terminal
//! as it was.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

use super::processes::{children, gone};
use crate::support::program::{command, signal};

/// No chat goes on for longer after a death that is seen at once.
const BOUND: Duration = Duration::from_secs(5);

/// A chat on a terminal of its own.
struct Chat {
    child: Child,
    master: File,
    // kept open, so that the terminal outlives the chat and can be looked at
    slave: File,
    before: Termios,
    shown: Arc<Mutex<String>>,
    others: Vec<u32>,
}

impl Chat {
    fn start(args: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
        let before = tcgetattr(&slave).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let args = [&["chat", "--heartbeat-timeout", "1", "-n", "400"], args].concat();
        let mut command = command(&args);
        let command = command
            .env("NO_COLOR", "1")
            .env("TERM", "xterm")
            .env("RUST_BACKTRACE", "0")
            .stdin(end())
            .stdout(end())
            .stderr(end());
        let child = command.spawn().unwrap();
        let master = File::from(master);
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut reader, all) = (master.try_clone().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                all.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        let mut chat = Self { child, master, slave, before, shown, others: Vec::new() };
        // the editor has begun, which the bars before it also show a `>` of
        chat.shows("\x1b[?2004h");
        chat.others = children(chat.child.id());
        chat
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the terminal has shown `text`.
    fn shows(&self, text: &str) {
        let start = Instant::now();
        while !self.shown.lock().unwrap().contains(text) {
            assert!(start.elapsed() < Duration::from_secs(20), "{text:?} is not in {:?}", self.shown.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the end; returns the exit code and all that was shown, once the terminal is seen to be as before.
    fn end(mut self) -> (Option<i32>, String) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < BOUND, "the chat goes on: {:?}", self.shown.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        };
        self.shows("hint: ");
        let after = tcgetattr(&self.slave).unwrap();
        assert_eq!(format!("{after:?}"), format!("{:?}", self.before), "the terminal is left otherwise");
        gone(&self.others, BOUND);
        let text = self.shown.lock().unwrap().clone();
        assert_eq!(text.matches("\x1b[?2004h").count(), text.matches("\x1b[?2004l").count(), "{text:?}");
        (status.code(), text)
    }
}

fn one_cause(code: Option<i32>, text: &str) {
    assert_eq!(code, Some(3), "{text:?}");
    assert_eq!(text.matches("\nerror:").count(), 1, "{text:?}");
    assert!(text.contains("\r\nerror: rank 1 (127.0.0.1:"), "not on a line of its own: {text:?}");
}

#[test]
fn a_rank_that_dies_under_the_line_editor_leaves_the_terminal_as_it_was() {
    for (name, fabric) in [("-KILL", "shm"), ("-ABRT", "tcp"), ("-STOP", "shm"), ("-STOP", "tcp")] {
        let mut chat = Chat::start(&["--local", "3", "--transport", fabric]);
        assert!(chat.is_raw(), "the editor does not run");
        chat.types("half a li");
        chat.shows("half a li");
        std::thread::sleep(Duration::from_millis(100));
        signal(chat.others[0], name);
        let (code, text) = chat.end();
        one_cause(code, &text);
    }
}

#[test]
fn a_rank_that_dies_in_an_answer_leaves_the_terminal_as_it_was() {
    for fault in ["1:compute#30:kill", "1:compute#30:panic", "1:compute#30:stop"] {
        let mut chat = Chat::start(&["--local", "2", "--fault", fault]);
        chat.types("Tell me a story about a fox.\r");
        let (code, text) = chat.end();
        one_cause(code, &text);
    }
}

#[test]
fn a_chat_over_a_pipe_ends_as_soon_as_a_rank_does() {
    for name in ["-KILL", "-STOP"] {
        let mut command = command(&["chat", "--local", "2", "-n", "5", "--heartbeat-timeout", "1"]);
        let mut chat = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = chat.stdin.take().unwrap();
        stdin.write_all(b"Hello!\n").unwrap();
        chat.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let others = children(chat.id());
        signal(others[0], name);
        let start = Instant::now();
        let output = chat.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(start.elapsed() < BOUND);
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(text.contains("error: rank 1 (127.0.0.1:") && text.contains("while idle"), "{text}");
        gone(&others, BOUND);
        drop(stdin);
    }
}
