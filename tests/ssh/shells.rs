//! The remote command line, read by real shells.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tbshard::cluster::ssh::{Ssh, Target, missing, quote, remote, tbshard};

use super::{fails, run, says, sh, shells, ssh};
use crate::lab::{Lab, binary};

/// Everything that some shell treats as its own, and some of everything else.
fn texts() -> impl Strategy<Value = String> {
    let special = r#"'"\!`$&|;<>()[]{}*?~#=%^, "#.chars().chain("\t\r\n\u{1}\u{1b}\u{7f}é日\u{a0}-az09".chars());
    let letters = proptest::sample::select(special.collect::<Vec<_>>());
    proptest::collection::vec(letters, 0..12).prop_map(|letters| letters.into_iter().collect())
}

fn checked(count: u32, check: impl Fn(&str, &[String]) -> std::result::Result<(), TestCaseError>) {
    for shell in shells() {
        let mut runner = TestRunner::new(Config { cases: count, failure_persistence: None, ..Config::default() });
        let result = runner.run(&proptest::collection::vec(texts(), 1..20), |words| check(shell, &words));
        result.unwrap_or_else(|error| panic!("{shell}: {error}"));
    }
}

#[test]
fn a_quoted_word_is_the_same_word_in_every_shell() {
    checked(64, |shell, words| {
        let words: Vec<String> = words.iter().map(|word| word.replace('\n', "")).collect();
        let line: String = words.iter().map(|word| format!(" {}", quote(word))).collect();
        let output = sh(shell, &format!("exec /usr/bin/printf {}{line}", quote("%s\\0")));
        prop_assert_eq!(String::from_utf8_lossy(&output.stdout), words.join("\0") + "\0");
        Ok(())
    });
}

#[test]
fn a_script_and_its_words_survive_every_shell() {
    checked(64, |shell, words| {
        let line: String = words.iter().map(|word| format!(" {}", quote(word))).collect();
        let print = format!("printf {}{line}", quote("%s\\0"));
        for script in [print.clone(), format!("if true\nthen {print}\nelse exit 9\nfi\n")] {
            let output = sh(shell, &remote(&script));
            prop_assert_eq!(String::from_utf8_lossy(&output.stdout), words.join("\0") + "\0");
        }
        Ok(())
    });
}

#[test]
fn exit_codes_and_processes_are_the_scripts_own() {
    for shell in shells() {
        assert_eq!(sh(shell, &remote("exit 7")).status.code(), Some(7), "{shell}");
        // the login shell is gone: whoever signals the command signals the script
        let child = Command::new(shell).args(["-c", &remote("echo $$")]).stdout(Stdio::piped()).spawn().unwrap();
        let own = child.id().to_string();
        assert_eq!(String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).trim(), own, "{shell}");
    }
}

#[test]
fn ssh_is_called_so_that_it_asks_nothing_and_ends() {
    let ssh = Ssh::new("ssh -F 'my config'").unwrap().with_connect_timeout(Duration::from_millis(10));
    let target = Target { user: Some("ann".into()), port: Some(2200), ..Target::new("-oProxyCommand=evil") };
    let command = ssh.command(&target, "exec true");
    let words: Vec<&str> = command.get_args().map(|word| word.to_str().unwrap()).collect();
    assert_eq!(words[..2], ["-F", "my config"], "the user's own options come first and win");
    assert_eq!(words[words.len() - 7..], ["-p", "2200", "-l", "ann", "--", "-oProxyCommand=evil", "exec true"]);
    for setting in ["BatchMode=yes", "ConnectTimeout=1", "ControlPath=none", "ClearAllForwardings=yes"] {
        assert!(words.contains(&setting), "{setting}");
    }
    assert_eq!(ssh.show(&Target { port: Some(7), ..Target::new("b") }, "true"), "ssh -F 'my config' -p 7 b true");
    for wrong in ["", "  ", "ssh -F 'my config"] {
        assert!(Ssh::new(wrong).unwrap_err().to_string().contains("is not a command that calls ssh"));
    }
}

#[test]
fn tbshard_is_found_behind_every_shell_and_noise() {
    let Some(lab) = Lab::new(1) else { return };
    let (alpha, ssh) = (&lab.hosts()[0], ssh(&lab));
    alpha.noisy_dotfiles();
    let awkward = "it's a \"word\"!\n\\n $HOME";
    for shell in shells() {
        alpha.login_shell(shell);
        let nowhere = run(&ssh, "alpha", &tbshard(None, &[])).unwrap();
        assert_eq!(nowhere.status.code(), Some(127), "{shell}: {nowhere:?}");
        let kinds: BTreeSet<&str> = nowhere.stdout.lines().filter_map(missing).collect();
        assert_eq!(kinds, BTreeSet::from([alpha.run("uname -sm").trim()]), "{shell}: {nowhere:?}");
        alpha.place("/root/echo", format!("#!/bin/sh\n/usr/bin/printf '%s\\0' {shell} \"$@\"\n").as_bytes());
        alpha.run("chmod 755 /root/echo");
        for place in [None, Some("~/my bin/tbshard"), Some("/tmp/a \"$b\"\\/tbshard")] {
            let absolute = place.map(|place| place.replace('~', "/root"));
            alpha.install(std::path::Path::new("/root/echo"), absolute.as_deref());
            let reply = run(&ssh, "alpha", &tbshard(place, &["agent", awkward, ""])).unwrap();
            let said = reply.stdout.strip_suffix('\0').unwrap().rsplit(shell).next().unwrap();
            assert_eq!(said.split('\0').skip(1).collect::<Vec<_>>(), ["agent", awkward, ""], "{shell}: {reply:?}");
            assert!(reply.status.success());
        }
        alpha.run("rm -r /root/.local '/root/my bin' /tmp/a*");
    }
    assert_eq!(alpha.temp_files(), [""; 0]);
    let wrong_place = run(&ssh, "alpha", &tbshard(Some("/nowhere/tbshard"), &[])).unwrap();
    assert_eq!(wrong_place.status.code(), Some(127));
    let built = run(&ssh, "alpha", &tbshard(binary().to_str(), &["--version"])).unwrap();
    assert!(built.stdout.contains("tbshard"), "{built:?}");
}

#[test]
fn a_binary_that_is_not_for_that_machine_is_called_that() {
    let Some(lab) = Lab::new(1) else { return };
    let (alpha, ssh) = (&lab.hosts()[0], ssh(&lab));
    says(&fails(&ssh, "alpha", &tbshard(None, &[])), "alpha", &["has no tbshard", "--deploy"]);
    // this machine's own format with the mark of another processor
    let mut program = std::fs::read("/bin/true").unwrap();
    program[18] ^= 0xff;
    alpha.place("/root/.local/bin/tbshard", &program);
    alpha.run("chmod 755 /root/.local/bin/tbshard");
    let words = ["cannot run the tbshard that it has", "xec format error", "alpha uname -sm`"];
    says(&fails(&ssh, "alpha", &tbshard(None, &["agent"])), "alpha", &words);
}
