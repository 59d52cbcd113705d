//! The system's ssh, as a way to run commands on other machines: the user's configuration, agent and known hosts apply.

mod explain;
mod quote;
mod run;
mod upload;

use std::process::Command;
use std::time::Duration;

use crate::error::{Error, Result};

pub use quote::{for_show, quote, remote};
pub use run::Reply;

/// How often ssh asks a silent server for a sign of life, in seconds, and how many answers may be missing.
const ALIVE: (u32, u32) = (3, 3);

/// How ssh is called.
#[derive(Debug, Clone)]
pub struct Ssh {
    words: Vec<String>,
    connect_timeout: Duration,
}

/// Whom ssh connects to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A host's name or address, or an alias of `~/.ssh/config`.
    pub destination: String,
    /// Whom to log in as, if not whom ssh would choose.
    pub user: Option<String>,
    /// Which port to connect to, if not the one that ssh would choose.
    pub port: Option<u16>,
}

impl Target {
    /// Leaves user and port to ssh.
    pub fn new(destination: impl Into<String>) -> Self {
        Self { destination: destination.into(), user: None, port: None }
    }

    fn options(&self) -> Vec<String> {
        let port = self.port.map(|port| ["-p".to_owned(), port.to_string()]);
        let user = self.user.clone().map(|user| ["-l".to_owned(), user]);
        port.into_iter().chain(user).flatten().collect()
    }
}

impl Default for Ssh {
    fn default() -> Self {
        Self { words: vec!["ssh".to_owned()], connect_timeout: Duration::from_secs(10) }
    }
}

impl Ssh {
    /// Calls ssh by `command_line`: a program and options, quoted as in a shell.
    ///
    /// # Errors
    /// If there is no program in it, or a quote is not closed.
    pub fn new(command_line: &str) -> Result<Self> {
        let words = shlex::split(command_line).filter(|words| !words.is_empty());
        let words = words.ok_or_else(|| Error::usage(format!("`{command_line}` is not a command that calls ssh")));
        let hint = "set TBSHARD_SSH to something like `ssh -F ~/.ssh/cluster_config`, or unset it";
        Ok(Self { words: words.map_err(|error| error.hint(hint))?, ..Self::default() })
    }

    /// Gives up on a server that does not greet within `connect_timeout`.
    #[must_use]
    pub fn with_connect_timeout(self, connect_timeout: Duration) -> Self {
        Self { connect_timeout, ..self }
    }

    /// What runs `remote_command` on `target`; [`remote`] and [`tbshard`] write ones that every login shell understands.
    ///
    /// It never asks anything, has no terminal, and notices a dead network within some twelve seconds. Connections are
    /// not shared (`ControlPath`): a master that goes into the background keeps our pipes open, and one whose network
    /// died hangs whoever joins it without any of these timeouts. The user's own options come first and so win.
    pub fn command(&self, target: &Target, remote_command: &str) -> Command {
        let (program, options) = self.words.split_first().map_or(("ssh", &[][..]), |(first, rest)| (first, rest));
        let mut command = Command::new(program);
        command.args(options).args(["-T", "-x", "-a", "-e", "none"]);
        let timeout = self.connect_timeout.as_secs().max(1);
        let settings = [
            "BatchMode=yes".to_owned(),
            format!("ConnectTimeout={timeout}"),
            format!("ServerAliveInterval={}", ALIVE.0),
            format!("ServerAliveCountMax={}", ALIVE.1),
            "ClearAllForwardings=yes".to_owned(),
            "ControlMaster=no".to_owned(),
            "ControlPath=none".to_owned(),
            "PermitLocalCommand=no".to_owned(),
            "RemoteCommand=none".to_owned(),
            // at ERROR it does not say that a server went dead
            "LogLevel=INFO".to_owned(),
        ];
        settings.iter().for_each(|setting| _ = command.args(["-o", setting]));
        command.args(target.options()).args(["--", &target.destination, remote_command]);
        // `explain` reads English. Not LC_ALL: many configurations send it on, and a program there would lose its UTF-8
        command.env_remove("LC_ALL").env("LC_MESSAGES", "C").env("SSH_ASKPASS_REQUIRE", "never");
        // a terminal's Ctrl-C is for us to pass on
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }

    /// What a person types to run `remote_command` on `target` by hand.
    pub fn show(&self, target: &Target, remote_command: &str) -> String {
        self.show_with(&[], target, remote_command)
    }

    fn show_with(&self, more: &[&str], target: &Target, remote_command: &str) -> String {
        let options = target.options();
        let (words, options) = (self.words.iter().map(String::as_str), options.iter().map(String::as_str));
        let words = words.chain(more.iter().copied()).chain(options).chain([target.destination.as_str()]);
        let words: Vec<String> = words.map(quote::for_show).collect();
        format!("{} {remote_command}", words.join(" "))
    }
}

/// A remote command that becomes `tbshard` with `args`: the binary at `path`, or else the first in `~/.local/bin`, on
/// the PATH or in `~/.cargo/bin`. Where there is none it prints a line that [`missing`] knows and exits with 127.
pub fn tbshard(path: Option<&str>, args: &[&str]) -> String {
    let usual = r#""$HOME/.local/bin/tbshard" "$(command -v tbshard)" "$HOME/.cargo/bin/tbshard""#;
    let places = path.map_or_else(|| usual.to_owned(), quote::path);
    let args: String = args.iter().map(|arg| format!(" {}", quote(arg))).collect();
    // the empty line ends whatever a dotfile left without an end
    remote(&format!(
        "for b in {places}; do if [ -f \"$b\" ] && [ -x \"$b\" ]; then exec \"$b\"{args}; fi; done; \
         echo; echo \"{MISSING}$(uname -sm)\"; exit 127"
    ))
}

const MISSING: &str = "tbshard-missing: ";

/// The `uname -sm` of a host without a binary, if `line` of its output says so.
pub fn missing(line: &str) -> Option<&str> {
    line.trim_end().strip_prefix(MISSING)
}
