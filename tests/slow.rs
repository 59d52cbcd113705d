//! A real model against transformers on the same weights. Needs `TBSHARD_SMOLLM2` (what scripts/get-smollm2.sh prints)
//! and `TBSHARD_PYTHON` (an interpreter of scripts/python-env.sh); skipped without.

mod batch;
mod mlx;
mod openai;
mod serve;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::program::command;

#[allow(clippy::disallowed_methods, reason = "tests are configured by the environment")]
fn set(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).map(PathBuf::from);
    if value.is_none() {
        println!("skipped: {name} is not set");
    }
    value
}

fn ours(args: &[&str]) -> Value {
    let output = command(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn theirs(python: &Path, model: &str, args: &[&str]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/reference.py");
    let output = Command::new(python).arg(script).arg(model).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn ids(tokens: &[u32]) -> String {
    tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn the_capital_of_france_is_paris() {
    let Some(model) = set("TBSHARD_SMOLLM2") else { return };
    let model = model.display().to_string();
    let output =
        command(&["generate", "--model", &model, "--prompt", "What is the capital of France?"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Paris"), "{text}");
}

#[test]
fn greedy_output_is_that_of_transformers() {
    let (Some(model), Some(python)) = (set("TBSHARD_SMOLLM2"), set("TBSHARD_PYTHON")) else { return };
    let dir = model.display().to_string();
    let tokenizer = tbshard::text::Tokenizer::open(&model).unwrap();
    for text in
        ["Once upon a time, in a small village by the sea,", "def fibonacci(n):\n", "The three largest planets are"]
    {
        let tokens = ids(&tokenizer.encode(text, true).unwrap());
        let reference = theirs(&python, &dir, &["--prompt-tokens", &tokens, "--new", "48"]);
        let args = ["generate", "--model", &dir, "--prompt-tokens", &tokens, "-n", "48", "--ignore-eos", "--json"];
        assert_eq!(ours(&args)["tokens"], reference["greedy"], "{text:?}: {reference}");
    }
}

#[test]
fn perplexity_of_a_page_is_that_of_transformers() {
    let (Some(model), Some(python)) = (set("TBSHARD_SMOLLM2"), set("TBSHARD_PYTHON")) else { return };
    let dir = model.display().to_string();
    let page = crate::support::files::fixtures().join("page.txt");
    let text = std::fs::read_to_string(&page).unwrap();
    let tokens = tbshard::text::Tokenizer::open(&model).unwrap().encode(&text, true).unwrap();
    let list = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(list.path(), serde_json::to_vec(&tokens).unwrap()).unwrap();
    let reference = theirs(&python, &dir, &["--perplexity-tokens", list.path().to_str().unwrap()]);
    let score = ours(&["score", "--model", &dir, "--file", page.to_str().unwrap(), "--json"]);
    let (a, b) = (score["perplexity"].as_f64().unwrap(), reference["perplexity"].as_f64().unwrap());
    println!("perplexity {a} here, {b} in transformers");
    assert!((a / b - 1.0).abs() < 1e-4, "{a} {b}");
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/LICENSE-APACHE");
    for format in [&[][..], &["--quantize", "8"], &["--quantize", "4"]] {
        let perplexity = |arithmetic: &str| {
            let args = ["score", "--model", &dir, "--file", text, "--json", "--arithmetic", arithmetic];
            ours(&[&args[..], format].concat())["perplexity"].as_f64().unwrap()
        };
        let (exact, fast) = (perplexity("exact"), perplexity("fast"));
        println!("perplexity {format:?}: {exact} exact, {fast} fast");
        assert!((fast / exact - 1.0).abs() < 0.005, "{format:?}: {exact} {fast}");
        assert_ne!(exact, fast);
    }
}
