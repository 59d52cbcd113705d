//! Answers are those that `generate` gives, whatever is answered beside them, on however many ranks.

use serde_json::Value;

use super::{Desk, PROMPTS, id, text};
use crate::cli::tiny;
use crate::support::program::command;

fn generated(args: &[&str]) -> Value {
    let output = command(&[&["generate", "--json", "-q", "--threads", "1"], args].concat()).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", super::said(&output)))
}

#[test]
fn each_is_what_generate_answers() {
    let desk = Desk::new(PROMPTS.join("\n"));
    for flags in [&["-n", "24"][..], &["-n", "20", "--temp", "1.2", "--seed", "5"]] {
        desk.done(&[&["--overwrite"], flags].concat());
        let rows = desk.rows("out");
        assert_eq!(rows.len(), PROMPTS.len());
        for (at, prompt) in PROMPTS.iter().enumerate() {
            let row = rows.iter().find(|row| id(row) == format!("line-{}", at + 1)).unwrap();
            let one = generated(&[&["--prompt", prompt], flags].concat());
            assert_eq!(text(row), one["text"].as_str().unwrap(), "{prompt}");
            assert_eq!(row["response"]["body"]["usage"]["prompt_tokens"], one["prompt_tokens"]);
            assert_eq!(row["response"]["body"]["choices"][0]["finish_reason"], one["finish_reason"]);
        }
    }
}

#[test]
fn a_model_without_a_template_goes_on_with_the_text() {
    let model = tiny("llama");
    let desk = Desk::new("abc def\nthe fox\n");
    desk.done(&["--model", &model, "-n", "12", "--ordered", "--raw"]);
    for (row, prompt) in desk.rows("out").iter().zip(["abc def", "the fox"]) {
        let one = generated(&["--model", &model, "-n", "12", "--raw", "--prompt", prompt]);
        assert_eq!(text(row), one["text"].as_str().unwrap());
    }
}

#[test]
fn how_many_run_at_once_changes_nothing() {
    let desk = Desk::of_lines(40);
    desk.done(&["--max-concurrency", "1"]);
    let expected = desk.sorted("out");
    for flags in [
        &["--max-concurrency", "3"][..],
        &["--max-concurrency", "16"],
        &["--max-concurrency", "16", "--no-prefix-cache"],
        &["--local", "2"],
        &["--local", "2", "--pp", "2", "--max-concurrency", "5"],
    ] {
        desk.done(&[&["--overwrite"], flags].concat());
        assert_eq!(desk.sorted("out"), expected, "{flags:?}");
    }
    desk.done(&["--overwrite", "--ordered", "--max-concurrency", "7"]);
    let ordered = desk.text("out");
    desk.done(&["--overwrite", "--ordered", "--max-concurrency", "16"]);
    assert_eq!(desk.text("out"), ordered, "in order, byte for byte");
    let numbers: Vec<usize> =
        desk.rows("out").iter().map(|row| id(row).rsplit('-').next().unwrap().parse().unwrap()).collect();
    // lines without a name count from 1, the others from 0
    assert!(numbers.windows(2).all(|pair| pair[0] <= pair[1]), "{numbers:?}");
}

#[test]
fn names_are_random_unless_they_are_to_follow() {
    let desk = Desk::new("Hello\n");
    let run = |name: &str| {
        let output =
            command(&["batch", "in", "-o", name, "-n", "2", "-q"]).current_dir(desk.dir.path()).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", super::said(&output));
        desk.rows(name)[0].clone()
    };
    let (one, other) = (run("one"), run("other"));
    assert_ne!(one["id"], other["id"]);
    assert_ne!(one["response"]["body"]["id"], other["response"]["body"]["id"]);
    assert!(one["response"]["body"]["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(one["tbshard"], other["tbshard"]);
}
