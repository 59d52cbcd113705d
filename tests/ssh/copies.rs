//! Copies to another machine: whole, or not there.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tbshard::cluster::ssh::Target;
use tbshard::error::Result;

use super::{idle, says, shells, ssh};
use crate::lab::{Host, Lab, binary};

const PLACE: &str = "~/.local/bin/tbshard";
const THERE: &str = "/root/.local/bin/tbshard";

fn upload(lab: &Lab, host: &Host, from: &Path, to: &str) -> Result<(u64, u64)> {
    let mut seen = (0, 0);
    let target = Target::new(host.name());
    ssh(lab).upload((host.name(), &target), from, to, &mut |sent, size| seen = (sent, size)).map(|()| seen)
}

/// A file of `size` bytes of which no two kilobytes are alike.
fn file(lab: &Lab, size: usize) -> PathBuf {
    let path = lab.shared().join(format!("file-{size}"));
    let bytes: Vec<u8> = (0..size).map(|at| (at * 31 + at / 1021) as u8).collect();
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_copy_is_the_same_file_behind_every_shell_and_noise() {
    let Some(lab) = Lab::new(1) else { return };
    let alpha = &lab.hosts()[0];
    alpha.noisy_dotfiles();
    for (at, shell) in shells().into_iter().enumerate() {
        alpha.login_shell(shell);
        let from = file(&lab, [0, 1, 70_000, 3_000_001, 12][at]);
        let size = std::fs::metadata(&from).unwrap().len();
        for to in [PLACE, "~/it's \"here\"!/tb\\shard"] {
            assert_eq!(upload(&lab, alpha, &from, to).unwrap(), (size, size), "{shell}");
            let there = to.replace('~', "/root").replace('\'', "'\\''");
            alpha.run(&format!("cmp '{there}' '{}' && [ -x '{there}' ]", from.display()));
        }
        // a machine's processes are gone but for what ends within a second
        idle(alpha, Duration::from_secs(3));
    }
    assert_eq!(alpha.temp_files().len(), 2, "{:?}", alpha.temp_files());
    // one that runs is replaced nevertheless
    upload(&lab, alpha, Path::new("/bin/sleep"), PLACE).unwrap();
    let mut running = alpha.inside(std::process::Command::new(THERE).arg("100")).spawn().unwrap();
    upload(&lab, alpha, binary(), PLACE).unwrap();
    assert!(alpha.run(&format!("{THERE} --version")).contains("tbshard"));
    running.kill().unwrap();
    running.wait().unwrap();
}

#[test]
fn a_full_disk_keeps_nothing_of_a_copy_and_all_of_what_was_there() {
    let Some(lab) = Lab::new(1) else { return };
    let alpha = &lab.hosts()[0];
    upload(&lab, alpha, &file(&lab, 5000), PLACE).unwrap();
    alpha.fill_disk();
    let error = upload(&lab, alpha, &file(&lab, 3_000_000), PLACE).unwrap_err();
    says(&error, "alpha", &["no space is left there", PLACE, "df -h`"]);
    assert_eq!(alpha.temp_files(), [THERE]);
    assert_eq!(alpha.run(&format!("wc -c < {THERE}")).trim(), "5000");
    let error = upload(&lab, alpha, &file(&lab, 10), "/proc/nothing/tbshard").unwrap_err();
    says(&error, "alpha", &["/proc/nothing", "exit code 1", "mkdir"]);
    let error = upload(&lab, alpha, Path::new("/nowhere/file"), PLACE).unwrap_err();
    assert!(error.to_string().contains("/nowhere/file"));
}

/// Starts to copy something endless, does `what` as soon as it arrives, and returns how the copy ended.
fn interrupted(lab: &Lab, host: &Host, what: &(dyn Fn() + Sync)) -> tbshard::error::Error {
    let (from, target) = (lab.shared().join("large"), Target::new(host.name()));
    std::fs::File::create(&from).unwrap().set_len(1 << 30).unwrap();
    std::thread::scope(|scope| {
        let copy = scope.spawn(|| ssh(lab).upload((host.name(), &target), &from, PLACE, &mut |_, _| ()).unwrap_err());
        let start = Instant::now();
        while !host.temp_files().iter().any(|path| path.contains("tbshard-part")) {
            assert!(start.elapsed() < Duration::from_secs(20) && !copy.is_finished());
        }
        what();
        copy.join().unwrap()
    })
}

#[test]
fn a_copy_whose_sender_dies_leaves_nothing() {
    let Some(lab) = Lab::new(1) else { return };
    let alpha = &lab.hosts()[0];
    let error = interrupted(&lab, alpha, &|| lab.launcher().kill_all());
    says(&error, "alpha", &["cannot copy", "ssh was killed"]);
    idle(alpha, Duration::from_secs(10));
    assert_eq!(alpha.temp_files(), [""; 0]);
}

#[test]
fn a_copy_whose_network_dies_leaves_nothing() {
    let Some(lab) = Lab::new(1) else { return };
    let alpha = &lab.hosts()[0];
    let error = interrupted(&lab, alpha, &|| alpha.cut());
    says(&error, "alpha", &["cannot copy", "the connection to alpha went dead"]);
    idle(alpha, Duration::from_secs(5));
    assert_eq!(alpha.temp_files(), [""; 0]);
}

#[test]
fn what_a_killed_copy_left_is_swept_by_a_later_one() {
    let Some(lab) = Lab::new(1) else { return };
    let alpha = &lab.hosts()[0];
    let error = interrupted(&lab, alpha, &|| alpha.kill_all());
    says(&error, "alpha", &["cannot copy"]);
    let left = alpha.temp_files();
    assert!(left.len() == 1 && left[0].contains("/.tbshard-part.alpha."), "{left:?}");
    alpha.start_sshd();
    upload(&lab, alpha, &file(&lab, 10), PLACE).unwrap();
    assert_eq!(alpha.temp_files().len(), 2, "it may belong to a copy that runs");
    alpha.run(&format!("touch -d '2 hours ago' {}", left[0]));
    let mut file = std::fs::File::create(lab.shared().join("new")).unwrap();
    file.write_all(b"new").unwrap();
    upload(&lab, alpha, &lab.shared().join("new"), PLACE).unwrap();
    assert_eq!(alpha.temp_files(), [THERE]);
}
