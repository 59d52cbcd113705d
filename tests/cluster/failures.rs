//! The reliability table of the README: what goes wrong → what is said, within how many seconds, and nothing left behind.

use std::time::Duration;

use super::{endless, generate, nothing_is_left, ranks, run};
use crate::lab::{Host, Lab, binary};

/// Fails with exit code 3 within `seconds`, saying `words` in the last error line and one hint.
fn refused(ended: &super::Ended, seconds: f64, words: &[&str]) {
    println!("{:.1} s: {}", ended.seconds, ended.err);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let errors: Vec<&str> = ended.err.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{ended:?}");
    assert!(words.iter().all(|word| errors[0].contains(word)), "{words:?}: {ended:?}");
    assert!(ended.err.lines().any(|line| line.starts_with("hint: ")), "{ended:?}");
    assert!(ended.seconds < seconds, "{ended:?}");
}

#[test]
fn a_host_that_is_not_reachable() {
    let Some(lab) = Lab::new(2) else { return };
    lab.hosts()[1].cut();
    refused(&run(generate(&lab, &[])), 12.0, &["bravo"]);
    lab.hosts()[1].mend();
    nothing_is_left(&lab);
}

#[test]
fn a_host_with_another_key() {
    let Some(lab) = Lab::new(2) else { return };
    lab.hosts()[1].change_host_key();
    refused(&run(generate(&lab, &[])), 8.0, &["bravo", "key"]);
    nothing_is_left(&lab);
}

#[test]
fn a_host_that_does_not_let_us_in() {
    let Some(lab) = Lab::new(2) else { return };
    lab.hosts()[1].refuse_auth();
    refused(&run(generate(&lab, &[])), 8.0, &["bravo"]);
    nothing_is_left(&lab);
}

#[test]
fn a_host_without_the_binary() {
    let Some(lab) = Lab::new(2) else { return };
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    hosts[0].install(binary(), None);
    let file = lab.cluster_yaml(&hosts, None, "");
    let ended = run(lab.command(&["generate", "--hosts", file.to_str().unwrap()]));
    refused(&ended, 8.0, &["bravo", "has no tbshard"]);
    assert!(ended.err.contains("--deploy"), "{ended:?}");
    nothing_is_left(&lab);
}

#[test]
fn a_host_with_another_version() {
    let Some(lab) = Lab::new(2) else { return };
    let mut other = std::fs::read(binary()).unwrap();
    let build = env!("TBSHARD_BUILD").as_bytes();
    let places: Vec<usize> =
        other.windows(build.len()).enumerate().filter(|(_, at)| *at == build).map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| other[*at..*at + 4].copy_from_slice(b"0123"));
    let path = lab.shared().join("other");
    std::fs::write(&path, other).unwrap();
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    hosts[0].install(binary(), None);
    hosts[1].install(&path, None);
    let file = lab.cluster_yaml(&hosts, None, "");
    let ended = run(lab.command(&["generate", "--hosts", file.to_str().unwrap()]));
    refused(&ended, 8.0, &["bravo", "another tbshard", "build 0123"]);
    let ended = run(lab.command(&["generate", "--hosts", file.to_str().unwrap(), "--deploy", "-n", "3", "-q"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    nothing_is_left(&lab);
}

#[test]
fn a_model_that_one_host_does_not_have() {
    let Some(lab) = Lab::new(2) else { return };
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let model = crate::cli::tiny("qwen3");
    let mut text = std::fs::read_to_string(lab.cluster_yaml(&hosts, Some(binary()), "")).unwrap();
    text += "    models: {small: /no/such/place}\n";
    text = text.replacen("  - name: bravo", &format!("    models: {{small: {model}}}\n  - name: bravo"), 1);
    let file = lab.shared().join("models.yaml");
    std::fs::write(&file, text).unwrap();
    let ask = ["--model", "small", "--prompt-tokens", "1,2,3", "-n", "3"];
    let ended = run(lab.command(&[&["generate", "--hosts", file.to_str().unwrap()][..], &ask].concat()));
    refused(&ended, 10.0, &["rank 1 (bravo, ", "there is no directory `/no/such/place`"]);
    nothing_is_left(&lab);
}

#[test]
fn a_disk_without_room_for_the_binary() {
    let Some(lab) = Lab::new(2) else { return };
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    hosts[0].install(binary(), None);
    hosts[1].fill_disk();
    let file = lab.cluster_yaml(&hosts, None, "");
    let ended = run(lab.command(&["generate", "--hosts", file.to_str().unwrap(), "--deploy"]));
    refused(&ended, 20.0, &["bravo", "no space"]);
    nothing_is_left(&lab);
}

#[test]
fn a_rank_that_is_killed() {
    let Some(lab) = Lab::new(3) else { return };
    let running = endless(&lab);
    ranks(&lab.hosts()[2]).iter().for_each(|pid| kill(*pid));
    let ended = running.end(Duration::from_secs(8));
    refused(&ended, 30.0, &["rank 2 (charlie, ", "killed by signal 9"]);
    nothing_is_left(&lab);
}

#[test]
fn rank_0_that_is_killed() {
    let Some(lab) = Lab::new(2) else { return };
    let running = endless(&lab);
    ranks(&lab.hosts()[0]).iter().for_each(|pid| kill(*pid));
    let ended = running.end(Duration::from_secs(8));
    refused(&ended, 30.0, &["rank 0 (alpha) ended: killed by signal 9"]);
    nothing_is_left(&lab);
}

#[test]
fn an_agent_that_is_killed_takes_its_rank_along() {
    let Some(lab) = Lab::new(2) else { return };
    let running = endless(&lab);
    let agents = lab.hosts()[1].processes().into_iter().filter(|(_, line)| line.ends_with(" agent"));
    agents.for_each(|(pid, _)| kill(pid));
    let ended = running.end(Duration::from_secs(12));
    refused(&ended, 40.0, &["bravo"]);
    nothing_is_left(&lab);
}

#[test]
fn a_link_that_is_cut() {
    let Some(lab) = Lab::new(3) else { return };
    let running = endless(&lab);
    lab.hosts()[1].cut();
    let ended = running.end(Duration::from_secs(12));
    refused(&ended, 40.0, &["rank 1 (bravo, ", "sent nothing for 2.0 s"]);
    // what is on the host that nobody reaches ends by itself
    nothing_is_left(&lab);
}

#[test]
fn a_host_that_is_frozen() {
    let Some(lab) = Lab::new(3) else { return };
    let running = endless(&lab);
    lab.hosts()[2].freeze();
    let ended = running.end(Duration::from_secs(15));
    refused(&ended, 40.0, &["rank 2 (charlie, ", "sent nothing for 2.0 s"]);
    lab.hosts()[2].thaw();
    nothing_is_left(&lab);
}

#[test]
fn a_host_that_is_slow_is_not_dead() {
    let Some(lab) = Lab::new(2) else { return };
    let mut running = endless(&lab);
    for _ in 0..5 {
        lab.hosts()[1].freeze();
        std::thread::sleep(Duration::from_millis(900));
        lab.hosts()[1].thaw();
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(running.is_running());
    running.signal("-INT");
    let ended = running.end(Duration::from_secs(8));
    assert_eq!(ended.code, Some(130), "{ended:?}");
    nothing_is_left(&lab);
}

#[test]
fn a_flood_of_strangers() {
    let Some(lab) = Lab::new(3) else { return };
    // another machine of the network connects to every port of rank 0's host while runs begin, and says things
    let [alpha, _, charlie] = lab.hosts() else { panic!("three hosts") };
    let hosts: Vec<&Host> = lab.hosts()[..2].iter().collect();
    let file = lab.cluster_yaml(&hosts, Some(binary()), "");
    let script = lab.shared().join("flood");
    let text = format!(
        "n=0; while [ $SECONDS -lt 6 ]; do\n\
         for port in $(seq 32768 400 60999); do\n\
         (exec 3<>/dev/tcp/{}/$port && printf 'GET / HTTP/1.1\\r\\n\\r\\n' >&3) 2>/dev/null & n=$((n + 1))\n\
         done; wait; done; echo $n\n",
        alpha.address()
    );
    std::fs::write(&script, text).unwrap();
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| charlie.run(&format!("bash '{}'", script.display())));
        for _ in 0..4 {
            let ended =
                run(lab.command(&["generate", "--hosts", file.to_str().unwrap(), "--prompt", "Hi", "-n", "30"]));
            assert_eq!(ended.code, Some(0), "{ended:?}");
        }
        let strangers: usize = flood.join().unwrap().trim().parse().unwrap();
        assert!(strangers > 1000, "{strangers}");
    });
    nothing_is_left(&lab);
}

fn kill(pid: u32) {
    assert!(std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
}
