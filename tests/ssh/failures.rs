//! Every way in which ssh fails, brought about for real.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tbshard::cluster::ssh::{Ssh, Target, remote};

use super::{commands, fails, idle, run, says, ssh};
use crate::lab::Lab;

fn with(lab: &Lab, options: &str) -> Ssh {
    Ssh::new(&format!("{} {options}", lab.ssh_from_outside())).unwrap().with_connect_timeout(Duration::from_secs(4))
}

/// Runs one of a hint's commands where the test is.
fn by_hand(line: &str) -> std::process::Output {
    Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn names_and_routes_that_do_not_exist() {
    let Some(lab) = Lab::new(1) else { return };
    let ssh = with(&lab, "");
    says(&fails(&ssh, "nobody", "true"), "nobody", &["the name of nobody has no address", "`Host nobody`"]);
    let words = ["there is no way to 10.77.0.200", "No route to host", "`ping 10.77.0.200`"];
    says(&fails(&ssh, "10.77.0.200", "true"), "10.77.0.200", &words);
    says(&fails(&ssh, "192.0.2.1", "true"), "192.0.2.1", &["there is no way to", "Network is unreachable"]);
}

#[test]
fn servers_that_do_not_answer() {
    let Some(lab) = Lab::new(2) else { return };
    let (ssh, [alpha, bravo]) = (ssh(&lab), lab.hosts()) else { panic!("two hosts") };
    let start = Instant::now();
    alpha.cut();
    says(&fails(&ssh, "alpha", "true"), "alpha", &["alpha does not answer within 2 s", "`ping alpha`"]);
    bravo.freeze();
    says(&fails(&ssh, "bravo", "true"), "bravo", &["accepts the connection and then says nothing for 2 s"]);
    bravo.thaw();
    bravo.stop_sshd();
    says(
        &fails(&ssh, "bravo", "true"),
        "bravo",
        &["no ssh server listens on bravo", "Connection refused", "port 2212"],
    );
    alpha.mend();
    assert!(run(&ssh, "alpha", "true").unwrap().status.success());
    // it greets nobody: its child finds no host key
    alpha.lose_host_key();
    let error = fails(&ssh, "alpha", "true");
    says(&error, "alpha", &["alpha closed the connection before the login", "journalctl"]);
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn host_keys_that_are_unknown_or_changed() {
    let Some(lab) = Lab::new(1) else { return };
    let (ssh, alpha) = (ssh(&lab), &lab.hosts()[0]);
    std::fs::write(lab.known_hosts(), "").unwrap();
    for options in ["", "-o StrictHostKeyChecking=yes"] {
        let error = fails(&with(&lab, options), "alpha", "true");
        says(&error, "alpha", &["the host key of alpha is not known here", "StrictHostKeyChecking=ask", "alpha true`"]);
    }
    lab.know_hosts();
    assert!(run(&ssh, "alpha", "true").unwrap().status.success());
    alpha.change_host_key();
    let error = fails(&ssh, "alpha", "true");
    says(&error, "alpha", &["the host key of alpha is not the one that is known here", "in its place"]);
    // the hint's command does what it says
    let forget = commands(&error).into_iter().next().unwrap();
    assert!(forget.starts_with("ssh-keygen ") && by_hand(&forget).status.success(), "{forget}");
    says(&fails(&ssh, "alpha", "true"), "alpha", &["is not known here"]);
    std::fs::write(lab.known_hosts(), format!("@revoked {}", alpha.known_hosts_line())).unwrap();
    says(&fails(&ssh, "alpha", "true"), "alpha", &["marked as revoked"]);
}

#[test]
fn keys_that_are_not_accepted() {
    let Some(lab) = Lab::new(1) else { return };
    let alpha = &lab.hosts()[0];
    let own = lab.shared().join("other");
    let key = |path: &std::path::Path| {
        let mut command = Command::new("ssh-keygen");
        assert!(command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status().unwrap().success());
    };
    key(&own);
    let seven: Vec<_> = (0..7).map(|at| lab.shared().join(format!("wrong-{at}"))).collect();
    seven.iter().for_each(|path| key(path));
    let options: String = seven.iter().map(|path| format!("-i '{}' ", path.display())).collect();
    says(
        &fails(&with(&lab, &options), "alpha", "true"),
        "alpha",
        &["too many keys", "IdentitiesOnly", " -v alpha true`"],
    );
    Command::new("chmod").arg("644").arg(lab.shared().join("key")).status().unwrap();
    let error = fails(&ssh(&lab), "alpha", "true");
    says(&error, "alpha", &["may be read by others", "`chmod 600 "]);
    assert!(by_hand(&commands(&error)[0]).status.success());
    assert!(run(&ssh(&lab), "alpha", "true").unwrap().status.success());
    alpha.refuse_auth();
    alpha.noisy_dotfiles();
    let error = fails(&ssh(&lab), "alpha", "true");
    says(&error, "alpha", &["alpha accepts no key of this user", "Permission denied (publickey)", "`ssh-copy-id -F "]);
}

#[test]
fn an_ssh_that_cannot_work_here() {
    let Some(lab) = Lab::new(1) else { return };
    let words = ["does not accept its configuration", "nonsense"];
    let alone = |words: &str| Ssh::new(words).unwrap();
    says(&fails(&with(&lab, "-o Nonsense=1"), "alpha", "true"), "", &words);
    let missing = fails(&alone("ssh -F /nowhere/config"), "alpha", "true");
    says(&missing, "", &["does not accept its configuration", "/nowhere/config"]);
    let old = with(&lab, "-o KexAlgorithms=diffie-hellman-group1-sha1");
    says(&fails(&old, "alpha", "true"), "alpha", &["no algorithm in common", "no matching key exchange method"]);
    let error = run(&alone("/nowhere/ssh"), "alpha", "true").unwrap_err();
    says(&error, "", &["cannot start `/nowhere/ssh`", "TBSHARD_SSH"]);
}

#[test]
fn connections_that_end() {
    let Some(lab) = Lab::new(2) else { return };
    let [alpha, bravo] = lab.hosts() else { panic!("two hosts") };
    let start = Instant::now();
    let during = |host: &crate::lab::Host, what: &(dyn Fn() + Sync)| {
        std::thread::scope(|scope| {
            let session = scope.spawn(|| fails(&ssh(&lab), host.name(), &remote("sleep 100")));
            while !host.processes().iter().any(|(_, line)| line.contains("sleep 100")) {
                assert!(start.elapsed() < Duration::from_secs(50) && !session.is_finished());
                std::thread::sleep(Duration::from_millis(10));
            }
            what();
            session.join().unwrap()
        })
    };
    let error = during(alpha, &|| alpha.kill_all());
    says(&error, "alpha", &["alpha closed the connection"]);
    let before = Instant::now();
    let error = during(bravo, &|| bravo.cut());
    says(&error, "bravo", &["the connection to bravo went dead", "Timeout, server", "its cable"]);
    assert!(before.elapsed() < Duration::from_secs(25), "{:?}", before.elapsed());
}

#[test]
fn a_silent_command_is_given_up_and_ends_there() {
    let Some(lab) = Lab::new(1) else { return };
    let (ssh, alpha) = (ssh(&lab), &lab.hosts()[0]);
    let target = Target::new("alpha");
    let cat = remote("echo here; cat");
    let input = Endless;
    let run = |command: &str| ssh.run(("alpha", &target), command, input, Duration::from_secs(1), &mut |_| ());
    let error = run(&remote("echo here; sleep 3 <&0")).unwrap_err();
    says(&error, "alpha", &["alpha was silent over ssh for 1 s", "alpha uptime`"]);
    alpha.freeze();
    says(&run(&cat).unwrap_err(), "alpha", &["silent"]);
    alpha.thaw();
    idle(alpha, Duration::from_secs(10));
    assert_eq!(lab.launcher().processes(), []);
}

/// An input that never comes to an end, nor gives anything.
#[derive(Clone, Copy)]
struct Endless;

impl std::io::Read for Endless {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        std::thread::sleep(Duration::from_secs(1000));
        Ok(0)
    }
}
