//! What ssh's many ways to fail mean, and the command that mends each.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use super::quote::for_show;
use super::{Ssh, Target};
use crate::error::Error;

/// What failed, in the order in which it is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    KeyChanged,
    KeyRevoked,
    KeyUnknown,
    TooManyKeys,
    KeyReadable,
    KeyLocked,
    Refused,
    NoAddress,
    NobodyListens,
    SaysNothing,
    NoRoute,
    NoAnswer,
    WentAway,
    NoCommonCipher,
    Configuration,
    TurnedAway,
    Lost,
}

use Trouble::*;

/// What ssh prints → what it means. Some print more than one of these lines; the first row that fits is the cause.
const SAID: &[(&str, Trouble)] = &[
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", KeyChanged),
    ("REVOKED HOST KEY", KeyRevoked),
    ("Host key verification failed", KeyUnknown),
    ("Too many authentication failures", TooManyKeys),
    ("UNPROTECTED PRIVATE KEY FILE", KeyReadable),
    ("signing failed for", KeyLocked),
    ("Permission denied (", Refused),
    ("Could not resolve hostname", NoAddress),
    (": Connection refused", NobodyListens),
    ("during banner exchange", SaysNothing),
    (": No route to host", NoRoute),
    (": Network is unreachable", NoRoute),
    (": Host is down", NoRoute),
    ("Timeout, server", WentAway),
    (": Connection timed out", NoAnswer),
    (": Operation timed out", NoAnswer),
    ("Unable to negotiate with", NoCommonCipher),
    ("Bad configuration option", Configuration),
    ("Bad owner or permissions on", Configuration),
    ("Can't open user config file", Configuration),
    ("kex_exchange_identification:", TurnedAway),
    ("ssh_exchange_identification:", TurnedAway),
    ("closed by remote host", Lost),
    ("Connection closed by", TurnedAway),
    ("Connection reset by", TurnedAway),
    ("client_loop:", Lost),
    ("Broken pipe", Lost),
];

impl Ssh {
    /// What a failed ssh means: `status` is its own, `stderr` what it and the remote command said.
    pub fn explain(&self, (host, target): (&str, &Target), status: ExitStatus, stderr: &str) -> Error {
        let lines: Vec<String> = stderr.lines().map(printable).filter(|line| !line.is_empty()).collect();
        let last = lines.last().map(|line| format!(": {line}")).unwrap_or_default();
        let look = format!("`{}` shows more", self.show_with(&["-v"], target, "true"));
        match status.code() {
            Some(255) => {}
            Some(127) => {
                let error = Error::cluster(format!("{host} has no tbshard{last}"));
                return error.hint(
                    "add `--deploy` to copy this one there, or say where it is with `binary:` in the cluster file",
                );
            }
            Some(126) => {
                let error = Error::cluster(format!("{host} cannot run the tbshard that it has{last}"));
                let look = self.show(target, "uname -sm");
                return error.hint(format!(
                    "it may be for another kind of machine, or not executable; `{look}` says what {host} is"
                ));
            }
            Some(code) => {
                return Error::cluster(format!("{host}: the command there ended with exit code {code}{last}"))
                    .hint(look);
            }
            None => return Error::cluster(format!("{host}: ssh was killed ({status})")).hint(look),
        }
        let found =
            SAID.iter().find_map(|(text, trouble)| Some((lines.iter().find(|line| line.contains(text))?, *trouble)));
        let Some((line, trouble)) = found else {
            return Error::cluster(format!("ssh to {host} failed{last}")).hint(look);
        };
        let cause = trouble.cause(host, self.connect_timeout);
        // a line of decoration says nothing, and a list of algorithms says too much
        let line = line.split(" Their offer").next().filter(|line| !line.starts_with('@'));
        let said = line.map(|line| format!(" ({line})")).unwrap_or_default();
        Error::cluster(format!("{cause}{said}")).hint(self.mend(trouble, (host, target), &lines))
    }

    /// Why ssh itself could not be started.
    pub fn not_started(&self, error: &io::Error) -> Error {
        let program = self.words.first().map_or("ssh", String::as_str);
        let message = format!("cannot start `{program}`: {error}");
        Error::cluster(message)
            .hint("install OpenSSH's client (Debian: `sudo apt install openssh-client`), or check TBSHARD_SSH")
    }

    /// Nothing came or went for `patience`.
    pub(super) fn silent(&self, host: &str, target: &Target, patience: Duration) -> Error {
        let error = Error::cluster(format!("{host} was silent over ssh for {} s", patience.as_secs()));
        error.hint(format!("it may be frozen or overloaded: see whether `{}` answers", self.show(target, "uptime")))
    }

    fn mend(&self, trouble: Trouble, (host, target): (&str, &Target), lines: &[String]) -> String {
        let log_in = self.show(target, "true");
        let verbose = self.show_with(&["-v"], target, "true");
        let named = for_show(&target.destination);
        match trouble {
            KeyChanged | KeyRevoked => {
                let forget = forget(&named, target.port, lines);
                format!("if {host} was set up anew, run `{forget}` and then `{log_in}` to accept its new key; if not, somebody may be answering in its place")
            }
            KeyUnknown => {
                format!("run `{}` once, and accept the key if it is the right one", self.show_with(&["-o", "StrictHostKeyChecking=ask"], target, "true"))
            }
            TooManyKeys => format!("put `IdentityFile` and `IdentitiesOnly yes` under `Host {named}` in ~/.ssh/config; `{verbose}` shows which keys were offered"),
            KeyReadable => {
                let file = lines.iter().find(|line| line.starts_with("Permissions ")).and_then(|line| line.split('\'').nth(1));
                format!("run `chmod 600 {}`", file.map_or_else(|| "THE-KEY".to_owned(), for_show))
            }
            KeyLocked => format!("run `ssh-add` to unlock the key, then `{log_in}`"),
            Refused => format!("let it know your key with `{}`; `{verbose}` shows which keys were offered", self.copy_id(target)),
            NoAddress => format!("check `ssh:` in the cluster file, or put `Host {named}` with a `HostName` into ~/.ssh/config"),
            NobodyListens => "start its ssh server (macOS: `sudo systemsetup -setremotelogin on`, Linux: `sudo systemctl enable --now ssh`), or check the port".to_owned(),
            SaysNothing => format!("it may be frozen or overloaded: see whether `{log_in}` answers after a while"),
            NoRoute | NoAnswer => format!("is it on, awake and on this network? `ping {named}` asks it, `{verbose}` shows more"),
            WentAway => format!("check its cable and whether it sleeps; `{log_in}` shows when it is back"),
            NoCommonCipher => format!("one of the two OpenSSH is very old: update it; `{verbose}` shows what each offers"),
            Configuration => "mend what it names, or set TBSHARD_SSH to an ssh with another configuration".to_owned(),
            TurnedAway => format!("its ssh server's log says why (Linux: `journalctl -u ssh -n 20` there); `{verbose}` shows how far it got"),
            Lost => format!("it may have been restarted or its ssh server ended; `{log_in}` shows whether it is back"),
        }
    }

    /// The command that takes our key there, through the same configuration.
    fn copy_id(&self, target: &Target) -> String {
        let config = self.words.iter().position(|word| word == "-F").and_then(|at| self.words.get(at + 1));
        let config = config.map(|file| format!(" -F {}", for_show(file))).unwrap_or_default();
        let port = target.port.map(|port| format!(" -p {port}")).unwrap_or_default();
        let user = target.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        format!("ssh-copy-id{config}{port} {}", for_show(&format!("{user}{}", target.destination)))
    }
}

impl Trouble {
    fn cause(self, host: &str, timeout: Duration) -> String {
        match self {
            KeyChanged => format!("the host key of {host} is not the one that is known here"),
            KeyRevoked => format!("the host key of {host} is marked as revoked here"),
            KeyUnknown => format!("the host key of {host} is not known here"),
            TooManyKeys => format!("{host} was offered too many keys before the right one"),
            KeyReadable => format!("the key for {host} may be read by others, so ssh does not use it"),
            KeyLocked => format!("the key for {host} is locked"),
            Refused => format!("{host} accepts no key of this user"),
            NoAddress => format!("the name of {host} has no address"),
            NobodyListens => format!("no ssh server listens on {host}"),
            SaysNothing => format!("{host} accepts the connection and then says nothing for {} s", timeout.as_secs()),
            NoRoute => format!("there is no way to {host}"),
            NoAnswer => format!("{host} does not answer within {} s", timeout.as_secs()),
            WentAway => format!("the connection to {host} went dead"),
            NoCommonCipher => format!("ssh here and on {host} have no algorithm in common"),
            Configuration => "ssh does not accept its configuration on this machine".to_owned(),
            TurnedAway => format!("{host} closed the connection before the login"),
            Lost => format!("{host} closed the connection"),
        }
    }
}

/// The command that removes the key which is known: ssh's own advice if it gives one.
fn forget(named: &str, port: Option<u16>, lines: &[String]) -> String {
    if let Some(advice) = lines.iter().find(|line| line.starts_with("ssh-keygen ")) {
        return advice.clone();
    }
    // `Offending ED25519 key in /home/ann/.ssh/known_hosts:7`
    let place = lines.iter().find(|line| line.starts_with("Offending ")).and_then(|line| line.split_once(" key in "));
    let file = place.and_then(|(_, place)| place.rsplit_once(':')).map(|(file, _)| format!(" -f {}", for_show(file)));
    let name = port.map_or_else(|| named.to_owned(), |port| format!("'[{named}]:{port}'"));
    format!("ssh-keygen{} -R {name}", file.unwrap_or_default())
}

/// A line without what could move a terminal's cursor.
fn printable(line: &str) -> String {
    line.chars().filter(|letter| !letter.is_control()).collect::<String>().trim().to_owned()
}
