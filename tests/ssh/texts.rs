//! What ssh's lines mean, without an ssh: those that this one does not print, and those that say two things at once.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use tbshard::cluster::ssh::{Ssh, Target, missing};
use tbshard::error::{Error, Kind};

fn explain(code: i32, stderr: &str) -> Error {
    let target = Target { user: Some("ann".into()), port: Some(2222), ..Target::new("mac2") };
    Ssh::default().explain(("host mac2", &target), ExitStatus::from_raw(code << 8), stderr)
}

#[test]
fn macs_and_jump_hosts_and_old_servers() {
    let cases = [
        ("ssh: Could not resolve hostname mac2: nodename nor servname provided, or not known", "has no address"),
        ("ssh: connect to host mac2 port 22: Operation timed out", "does not answer within 10 s"),
        ("ssh: connect to host mac2 port 22: Host is down", "no way to host mac2"),
        ("ssh: connect to host mac2 port 22: Undefined error: 0", "ssh to host mac2 failed"),
        ("ssh_exchange_identification: Connection closed by remote host", "before the login"),
        (
            "channel 0: open failed: connect failed: No route to host\r\nstdio forwarding failed\r\n\
             Connection closed by UNKNOWN port 65535",
            "no way to host mac2",
        ),
        (
            "sign_and_send_pubkey: signing failed for ED25519 \"/home/ann/.ssh/id\" from agent: agent refused operation\r\n\
             ann@mac2: Permission denied (publickey).",
            "is locked",
        ),
        ("client_loop: send disconnect: Broken pipe\r\n", "closed the connection (client_loop"),
        ("Bad owner or permissions on /home/ann/.ssh/config", "does not accept its configuration"),
    ];
    for (said, means) in cases {
        let error = explain(255, said);
        assert!(error.kind() == Kind::Cluster && error.to_string().contains(means), "{said}: {error:?}");
        assert!(error.hint_text().is_some());
    }
}

#[test]
fn commands_to_type_name_user_and_port() {
    let denied = explain(255, "ann@mac2: Permission denied (publickey,password).");
    let hint = denied.hint_text().unwrap();
    assert!(
        hint.contains("`ssh-copy-id -p 2222 ann@mac2`") && hint.contains("`ssh -v -p 2222 -l ann mac2 true`"),
        "{hint}"
    );
    let changed = explain(
        255,
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n\
         Offending ECDSA key in /home/ann m/.ssh/known_hosts:7\r\nHost key verification failed.\r\n",
    );
    // not every ssh gives advice of its own
    let hint = changed.hint_text().unwrap();
    assert!(hint.contains("`ssh-keygen -f '/home/ann m/.ssh/known_hosts' -R '[mac2]:2222'`"), "{hint}");
    assert!(!changed.to_string().contains("WARNING"), "{changed}");
}

#[test]
fn what_a_remote_command_says_is_neither_lost_nor_obeyed() {
    let error = explain(3, "noise\nerror: rank 2 \u{1b}[31mwas lost\n\n");
    assert_eq!(error.to_string(), "host mac2: the command there ended with exit code 3: error: rank 2 [31mwas lost");
    // only 255 is ssh's own: a command may well print what ssh prints
    assert!(explain(1, "x: Connection refused").to_string().contains("exit code 1"));
    assert!(explain(255, "").to_string().contains("ssh to host mac2 failed"));
    let target = Target::new("mac2");
    let killed = Ssh::default().explain(("host mac2", &target), ExitStatus::from_raw(9), "");
    assert!(killed.to_string().contains("ssh was killed (signal: 9"), "{killed}");
    assert_eq!(missing("tbshard-missing: Darwin arm64\r"), Some("Darwin arm64"));
    assert_eq!(missing("no tbshard-missing: here"), None);
}
