//! The lab itself: its machines see each other, differ, fail as they are told to, and leave nothing behind.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Lab, binary};

fn ssh(lab: &Lab, host: &str, line: &str) -> std::process::Output {
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(lab.ssh_config()).args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=2", host, line]);
    lab.launcher().inside(&ssh).output().unwrap()
}

fn gone(pids: &[u32]) {
    let deadline = Instant::now() + Duration::from_secs(5);
    // zombies have no network
    while pids.iter().any(|pid| std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok()) {
        assert!(Instant::now() < deadline, "{pids:?} still run");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn pids(host: &super::Host) -> Vec<u32> {
    host.processes().into_iter().map(|(pid, _)| pid).collect()
}

#[test]
fn machines_have_names_homes_processes_and_addresses_of_their_own() {
    let start = Instant::now();
    let Some(lab) = Lab::new(3) else { return };
    println!("3 hosts after {:?}", start.elapsed());
    for (at, host) in lab.hosts().iter().enumerate() {
        let output =
            ssh(&lab, host.name(), "hostname; pwd; echo $$; ls -A /root /tmp | wc -l; touch /root/mine /tmp/mine");
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], [host.name(), "/root"], "{}", String::from_utf8_lossy(&output.stderr));
        assert!(lines[2].parse::<u32>().unwrap() < 200, "processes are numbered for each host: {text}");
        let others: Vec<String> = lab.hosts()[at + 1..].iter().flat_map(|host| host.temp_files()).collect();
        assert_eq!(others, [""; 0]);
        assert_eq!(host.temp_files(), ["/root/mine", "/tmp/mine"]);
        assert!(host.run(&format!("ip -4 addr show eth0; ls {}", binary().display())).contains(&host.address()));
        assert_eq!(host.processes(), []);
    }
    let output = lab.command(&["--version"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("tbshard"), "{output:?}");
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap();
    assert!(!devices.contains("alpha") && !devices.contains("br0"), "the lab leaked into this machine: {devices}");
}

#[test]
fn cables_can_be_pulled_and_machines_frozen() {
    let Some(lab) = Lab::new(2) else { return };
    let [alpha, bravo] = lab.hosts() else { panic!("two hosts") };
    let works = |host: &super::Host| {
        let output = ssh(&lab, host.name(), "true");
        println!("{}: {}", host.name(), String::from_utf8_lossy(&output.stderr));
        output.status.success()
    };
    alpha.cut();
    assert!(!works(alpha) && works(bravo));
    alpha.mend();
    assert!(works(alpha));
    bravo.freeze();
    assert!(!works(bravo) && works(alpha));
    bravo.thaw();
    assert!(works(bravo));
    alpha.stop_sshd();
    assert!(!works(alpha));
    alpha.start_sshd();
    assert!(works(alpha));
    alpha.kill_all();
    assert!(!works(alpha));
    bravo.change_host_key();
    assert!(!works(bravo));
    lab.know_hosts();
    assert!(works(bravo));
    bravo.refuse_auth();
    assert!(!works(bravo));
    lab.launcher().cut();
    assert!(!works(bravo));
}

#[test]
fn everything_that_runs_on_a_machine_is_seen_and_ends_with_it() {
    let Some(lab) = Lab::new(1) else { return };
    let alpha = &lab.hosts()[0];
    let mut session = Command::new("ssh");
    session.arg("-F").arg(lab.ssh_config()).args(["alpha", "sleep 1000"]);
    let mut session = lab.launcher().inside(&session).spawn().unwrap();
    let orphan = ssh(&lab, "alpha", "setsid -f sleep 2000 >/dev/null 2>&1 </dev/null");
    assert!(orphan.status.success());
    let deadline = Instant::now() + Duration::from_secs(5);
    let all = loop {
        let all = alpha.processes();
        if all.len() == 2 {
            break all;
        }
        assert!(Instant::now() < deadline, "{all:?}");
    };
    assert!(
        all.iter().any(|(_, line)| line.ends_with("sleep 1000"))
            && all.iter().any(|(_, line)| line.ends_with("sleep 2000"))
    );
    assert_eq!(lab.launcher().processes()[0].0, session.id());
    let dir = lab.shared().to_owned();
    drop(lab);
    gone(&all.into_iter().map(|(pid, _)| pid).collect::<Vec<_>>());
    assert!(!session.wait().unwrap().success());
    assert!(!dir.exists());
}

#[test]
#[ignore = "is started and killed by the next one"]
fn a_victim() {
    let Some(lab) = Lab::new(1) else { return };
    let sleep = |host: &super::Host| host.inside(Command::new("sleep").arg("3000")).spawn().unwrap();
    let _sleepers = [sleep(lab.launcher()), sleep(&lab.hosts()[0])];
    lab.hosts()[0].freeze();
    println!("dir {}", lab.shared().display());
    println!("pids {:?}", [pids(lab.launcher()), pids(&lab.hosts()[0])].concat());
    std::thread::sleep(Duration::from_secs(3000));
}

#[test]
fn a_killed_test_takes_its_machines_with_it_and_the_next_removes_its_files() {
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args(["--exact", "lab::check::a_victim", "--ignored", "--nocapture"]);
    let mut victim = victim.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines().map(Result::unwrap);
    let Some(dir) = lines.find_map(|line| line.strip_prefix("dir ").map(str::to_owned)) else {
        println!("skipped: there is no lab");
        victim.wait().unwrap();
        return;
    };
    let pids = lines.find_map(|line| line.strip_prefix("pids ").map(str::to_owned)).unwrap();
    let pids: Vec<u32> = pids.trim_matches(['[', ']']).split(", ").map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 2);
    victim.kill().unwrap();
    victim.wait().unwrap();
    gone(&pids);
    let dir = std::path::Path::new(&dir);
    assert!(dir.exists());
    let next = Lab::new(1).unwrap();
    assert!(!dir.exists() && next.shared().exists());
}

#[test]
fn disks_fill_up_and_shells_and_dotfiles_differ() {
    let Some(lab) = Lab::new(1) else { return };
    let alpha = &lab.hosts()[0];
    alpha.noisy_dotfiles();
    for shell in ["/bin/dash", "/bin/bash", "/bin/zsh", "/usr/bin/fish", "/bin/tcsh"] {
        if !std::path::Path::new(shell).exists() {
            println!("skipped: {shell} is not installed");
            continue;
        }
        alpha.login_shell(shell);
        let output = ssh(&lab, "alpha", "sh -c 'readlink /proc/$PPID/exe'; true");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let name = shell.rsplit('/').next().unwrap();
        assert!(text.contains(name) && text.contains("Welcome home!"), "{shell}: {output:?}");
    }
    assert_eq!(alpha.temp_files(), [""; 0]);
    alpha.fill_disk();
    let output = alpha.try_run("head -c 100000 /dev/zero > /root/big");
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"), "{output:?}");
}
