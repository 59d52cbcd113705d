//! `bench load`: phases of cold and warm starts.

use serde_json::Value;

use super::{formats_agree, json, refused};
use crate::cli::tiny;

const PHASES: [&str; 7] = ["start", "open", "tokenizer", "load", "prefill", "first token", "total"];

fn of<'a>(rows: &'a [Value], cache: &str) -> Vec<&'a Value> {
    rows.iter().filter(|row| row["cache"] == cache).collect()
}

/// Whether this system can be asked to forget files.
const FORGETS: bool = cfg!(target_os = "linux");

#[test]
fn both_starts_have_all_phases_and_they_add_up() {
    for model in [&[][..], &["--model", &tiny("qwen2"), "--prompt", "the fox"]] {
        let rows = json(&[&["load", "--reps", "2"], model].concat());
        for cache in if FORGETS { &["cold", "warm"][..] } else { &["warm"] } {
            let rows = of(&rows, cache);
            assert_eq!(rows.iter().map(|row| row["phase"].as_str().unwrap()).collect::<Vec<_>>(), PHASES);
            for rep in 0..2 {
                let seconds = |row: &Value| row["samples_s"][rep].as_f64().unwrap();
                assert!(rows.iter().all(|row| seconds(row) > 0.0));
                let sum: f64 = rows[..6].iter().map(|row| seconds(row)).sum();
                assert!((sum - seconds(rows[6])).abs() < 1e-9);
            }
            if FORGETS {
                let bytes = |row: &Value| row["bytes"].as_f64().unwrap();
                let sum: f64 = rows[..6].iter().map(|row| bytes(row)).sum();
                assert!((sum - bytes(rows[6])).abs() < 1.0 && sum > 1e6);
            }
        }
    }
}

#[test]
fn the_first_token_is_that_of_generate() {
    let model = tiny("qwen3");
    let args =
        ["generate", "--model", &model, "--prompt", "the fox", "--temp", "0", "-n", "1", "--ignore-eos", "--json"];
    let output = crate::support::program::command(&args).output().unwrap();
    let generated: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = json(&["load", "--model", &model, "--prompt", "the fox", "--reps", "1"]);
    assert!(rows.iter().all(|row| row["token"] == generated["tokens"][0]));
    assert!(rows.iter().all(|row| row["prompt_tokens"] == generated["prompt_tokens"]));
}

#[test]
fn all_formats_have_the_same_rows() {
    formats_agree(&["load", "--reps", "1"], if FORGETS { 14 } else { 7 });
}

#[test]
fn what_cannot_be_is_refused() {
    refused(&["load", "--reps", "0"], 2, &["--reps 0"]);
    refused(&["load", "--weights", "random"], 2, &["random"]);
    refused(&["load", "--prompt", ""], 2, &["empty"]);
    refused(&["load", "--threads", "0"], 2, &["--threads 0"]);
    // what the program that is timed says is what the user reads
    refused(&["load", "--ctx", "2"], 1, &["positions do not fit a context of 2"]);
}
