//! Runs that work: the same answer over ssh as alone, from a member or from elsewhere, with noise or without a binary.

use std::process::Stdio;

use serde_json::Value;

use super::{generate, nothing_is_left, run};
use crate::lab::{Host, Lab, binary};

const ASK: [&str; 5] = ["-n", "30", "--json", "--ignore-eos", "-q"];

fn tokens(out: &str) -> Value {
    let answer: Value = serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out:?}"));
    answer["tokens"].clone()
}

fn alone() -> Value {
    let args = [&["generate", "--prompt", "Tell me a story."][..], &ASK].concat();
    let output = crate::support::program::command(&args).output().unwrap();
    tokens(&String::from_utf8(output.stdout).unwrap())
}

#[test]
fn three_hosts_give_the_answer_of_one_from_a_machine_that_is_none_of_them() {
    let Some(lab) = Lab::new(3) else { return };
    let ended = run(generate(&lab, &ASK));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(tokens(&ended.out), alone());
    nothing_is_left(&lab);
}

#[test]
fn a_member_runs_rank_0_itself_wherever_it_is_in_the_file() {
    let Some(lab) = Lab::new(2) else { return };
    let [alpha, bravo] = lab.hosts() else { panic!("two hosts") };
    let file = lab.cluster_yaml(&[alpha, lab.launcher(), bravo], Some(binary()), "parallel: {pp: 3}\n");
    let all = ["generate", "--hosts", file.to_str().unwrap(), "--prompt", "Tell me a story."];
    let ended = run(lab.command(&[&all[..], &ASK].concat()));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(tokens(&ended.out), alone());
    nothing_is_left(&lab);
}

#[test]
fn noise_of_dotfiles_and_banners_changes_nothing() {
    let Some(lab) = Lab::new(2) else { return };
    lab.hosts().iter().for_each(Host::noisy_dotfiles);
    let ended = run(generate(&lab, &ASK));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(tokens(&ended.out), alone());
    nothing_is_left(&lab);
}

#[test]
fn deploy_brings_the_binary() {
    let Some(lab) = Lab::new(2) else { return };
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let file = lab.cluster_yaml(&hosts, None, "");
    let all = ["generate", "--hosts", file.to_str().unwrap(), "--deploy", "--prompt", "Tell me a story."];
    let ended = run(lab.command(&[&all[..], &ASK].concat()));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(tokens(&ended.out), alone());
    for host in lab.hosts() {
        assert_eq!(host.temp_files(), ["/root/.local/bin/tbshard"], "{}", host.name());
    }
    // and now it is there
    let again =
        run(lab.command(&[&["generate", "--hosts", file.to_str().unwrap(), "--prompt", "Hi"][..], &ASK].concat()));
    assert_eq!(again.code, Some(0), "{again:?}");
}

#[test]
fn score_and_chat_talk_with_rank_0_on_another_machine() {
    let Some(lab) = Lab::new(2) else { return };
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let file = lab.cluster_yaml(&hosts, Some(binary()), "");
    let text = lab.shared().join("text");
    std::fs::write(&text, "Once upon a time, there was a fox.").unwrap();
    let args = ["score", "--hosts", file.to_str().unwrap(), "--file", text.to_str().unwrap(), "--json", "-q"];
    let ended = run(lab.command(&args));
    let alone = crate::support::program::command(&["score", "--file", text.to_str().unwrap(), "--json", "-q"])
        .output()
        .unwrap();
    assert_eq!(ended.out, String::from_utf8(alone.stdout).unwrap(), "{ended:?}");

    let input = lab.shared().join("input");
    std::fs::write(&input, "What is two plus three?\n/quit\n").unwrap();
    let mut chat = lab.command(&["chat", "--hosts", file.to_str().unwrap(), "-q"]);
    chat.stdin(Stdio::from(std::fs::File::open(&input).unwrap()));
    let ended = run(chat);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("five"), "{ended:?}");
    nothing_is_left(&lab);
}
