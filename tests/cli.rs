//! The binary as its user runs it: what goes to stdout, what to stderr, and the exit code.

mod chat;
mod selftest;

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::support::files;
use crate::support::program::command;

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn tiny(name: &str) -> String {
    files::fixtures().join("tiny").join(name).display().to_string()
}

/// The ranks of a `tiktoken.model` that knows bytes alone.
fn byte_ranks() -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |at: usize| char::from(DIGITS[at]);
    (0..256).map(|byte| format!("{}{}== {byte}\n", digit(byte >> 2), digit((byte & 3) << 4))).collect()
}

fn fixture(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(Path::new(&tiny(name)).join("fixture.json")).unwrap()).unwrap()
}

fn list(value: &Value) -> String {
    value.as_array().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Fails with the exit code `code`, one `error:` line with every word of `words`, one `hint:` line, nothing on stdout.
fn refused(output: &Output, code: i32, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(stdout(output), "");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.iter().filter(|line| line.starts_with("error: ")).count(), 1, "{text}");
    assert_eq!(lines.iter().filter(|line| line.starts_with("hint: ")).count(), 1, "{text}");
    assert!(!text.contains("panicked") && !text.contains("RUST_BACKTRACE"), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

#[test]
fn generate_prints_the_references_tokens_as_json() {
    for name in ["llama", "qwen2", "qwen3", "qwen3_moe", "qwen3_5", "qwen3_5_moe-fp8", "qwen3_next"] {
        let prompt = &fixture(name)["prompts"][0];
        let (ids, count) = (list(&prompt["input_ids"]), prompt["greedy"].as_array().unwrap().len().to_string());
        let args = ["generate", "--model", &tiny(name), "--prompt-tokens", &ids, "--temp", "0", "-n", &count];
        let output = run(&[&args[..], &["--ignore-eos", "--json"]].concat());
        let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(json["tokens"], prompt["greedy"], "{name}");
        assert_eq!(json["finish_reason"], "length");
        assert_eq!(json["prompt_tokens"], prompt["input_ids"].as_array().unwrap().len());
        assert!(json["timings"]["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
        assert!(json["text"].is_string() && json["model_digest"].as_str().unwrap().len() == 64);
        assert!(stderr(&output).contains(" tok/s · "), "{}", stderr(&output));
        assert_eq!(stdout(&output).lines().count(), 1);
    }
}

#[test]
fn text_tokens_and_every_way_to_give_a_prompt_agree() {
    let (model, text) = (tiny("qwen3"), "the fox and the wörld");
    let base = ["generate", "--model", &model, "-n", "6", "--temp", "0", "--ignore-eos", "-q"];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt");
    std::fs::write(&file, text).unwrap();
    let first = run(&[&base[..], &["--prompt", text]].concat());
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    assert_eq!(stderr(&first), "", "--quiet says nothing");
    let from_file = run(&[&base[..], &["--prompt-file", file.to_str().unwrap()]].concat());
    assert_eq!(first.stdout, from_file.stdout);
    for stdin in [&["--prompt", "-"], &["--prompt-file", "-"]] {
        let mut child = command(&[&base[..], stdin].concat());
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert_eq!(child.wait_with_output().unwrap().stdout, first.stdout);
    }
    let json = run(&[&base[..], &["--prompt", text, "--json"]].concat());
    let json: Value = serde_json::from_str(&stdout(&json)).unwrap();
    assert_eq!(json["text"], stdout(&first));
    let raw = run(&[&base[..], &["--prompt", text, "--raw"]].concat());
    assert_ne!(raw.stdout, first.stdout, "--raw leaves the chat template out");
}

#[test]
fn the_chat_template_and_thinking_reach_the_prompt() {
    let chat = &fixture("qwen3_5")["chat"];
    let user = chat["messages"].as_array().unwrap().iter().find(|m| m["role"] == "user").unwrap();
    let system = chat["messages"].as_array().unwrap().iter().find(|m| m["role"] == "system");
    let model = tiny("qwen3_5");
    let mut args =
        vec!["generate", "--model", &model, "--json", "-n", "1", "--prompt", user["content"].as_str().unwrap()];
    if let Some(system) = system {
        args.extend(["--system", system["content"].as_str().unwrap()]);
    }
    let output = run(&args);
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let ids =
        chat.as_object().unwrap().values().find(|value| value.as_array().is_some_and(|a| a.iter().all(Value::is_u64)));
    assert_eq!(json["prompt_tokens"], ids.unwrap().as_array().unwrap().len());
}

#[test]
fn seeds_fix_the_answer_and_stop_strings_end_it() {
    let model = tiny("qwen3");
    let base = ["generate", "--model", &model, "--prompt", "abc", "-n", "24", "--ignore-eos", "-q", "--temp", "1.5"];
    let with = |more: &[&str]| stdout(&run(&[&base[..], more].concat()));
    let one = with(&["--seed", "1"]);
    assert_eq!(one, with(&["--seed", "1", "--threads", "1"]));
    assert_ne!(one, with(&["--seed", "2"]));
    let letters: Vec<char> = one.chars().collect();
    let stop: String = letters[letters.len() / 2..letters.len() / 2 + 3].iter().collect();
    let cut = with(&["--seed", "1", "--stop", &stop]);
    assert_eq!(cut, one[..one.find(&stop).unwrap()]);
}

#[test]
fn what_cannot_be_is_refused_with_a_hint() {
    let model = tiny("llama");
    let m = ["generate", "--model", &model];
    let case = |args: &[&str], code: i32, words: &[&str]| refused(&run(args), code, words);
    case(
        &["generate", "--model", "demo", "--revision", "v1", "--prompt", "x"],
        2,
        &["--revision", "embedded", "hint: "],
    );
    case(&["generate", "--model", "/no/such/dir", "--prompt", "x"], 2, &["/no/such/dir", "hint: "]);
    case(&["generate", "--model", "qwen3.6-72b", "--prompt", "x"], 2, &["qwen3.6-72b", "hint: ", "qwen3.6-27b"]);
    case(&["generate", "--model", "Qwen/Qwen3-0.6B", "--prompt", "x"], 1, &["Qwen/Qwen3-0.6B", "hint: "]);
    case(
        &["generate", "--model", "kimi-k2.6", "--weights", "random", "--prompt-tokens", "1"],
        1,
        &["591.9 GB of weights are to be made in ", "free memory", "hint: ", "--layers"],
    );
    case(&m, 2, &["no prompt", "hint: "]);
    case(&[&m[..], &["--prompt", ""]].concat(), 2, &["empty"]);
    case(&[&m[..], &["--prompt-file", "/no/file"]].concat(), 1, &["/no/file", "hint: "]);
    case(&[&m[..], &["--prompt-tokens", "1,x"]].concat(), 2, &["`x`"]);
    case(&[&m[..], &["--prompt-tokens", "999999"]].concat(), 2, &["999999"]);
    case(&[&m[..], &["--prompt", "x", "--temp", "-1"]].concat(), 2, &["--temp"]);
    case(&[&m[..], &["--prompt", "x", "--top-p", "1.5"]].concat(), 2, &["--top-p"]);
    case(&[&m[..], &["--prompt", "x", "--threads", "0"]].concat(), 2, &["--threads"]);
    case(&[&m[..], &["--prompt", "x", "--threads", "1000000"]].concat(), 2, &["--threads 1000000"]);
    case(&[&m[..], &["--prompt", "x", "--ctx", "100000000000000"]].concat(), 1, &["--ctx"]);
    case(&[&m[..], &["--prompt", "x", "--ctx", "18446744073709551615"]].concat(), 1, &["--ctx"]);
    case(&[&m[..], &["--prompt", "x", "--revision", "v1"]].concat(), 2, &["--revision"]);
    case(&[&m[..], &["--prompt", "x", "--layers", "2"]].concat(), 2, &["--layers"]);
    case(&[&m[..], &["--prompt", "a b c d e f g", "--raw", "--ctx", "2"]].concat(), 1, &["context", "hint: "]);
    case(
        &[&m[..], &["--prompt", "abc", "--ctx", "64", "-n", "100"]].concat(),
        1,
        &["--max-tokens 100", "64", "hint: "],
    );
    case(&["score", "--model", &model, "--prompt-tokens", "1"], 1, &["too few"]);
    case(&["score", "--model", &model, "--prompt-tokens", "1,2", "--ctx", "1"], 1, &["--ctx"]);
    case(&["score", "--model", &model, "--prompt-tokens", "1,2", "--logits", "/"], 2, &["--logits"]);
    case(&["bench", "tokens-per-sec", "--model", &model, "--pp", "0", "--tg", "0"], 2, &["--pp 0"]);
    case(&["bench", "tokens-per-sec", "--model", &model, "--reps", "0"], 2, &["--reps"]);
}

#[test]
fn usage_errors_of_the_parser_end_with_2_and_help_with_0() {
    for args in [&["generate", "--no-such-flag"][..], &["generate", "--fence", "wall"], &["nonsense"], &["score"], &[]]
    {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
    for args in [&["--help"][..], &["generate", "--help"], &["--version"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty() && output.stderr.is_empty());
    }
}

#[test]
fn prompts_that_are_not_utf8_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("latin1.txt");
    std::fs::write(&file, b"caf\xe9").unwrap();
    let output = run(&["generate", "--model", &tiny("llama"), "--prompt-file", file.to_str().unwrap()]);
    refused(&output, 1, &["latin1.txt", "byte 3", "hint: "]);
    let mut command = command(&["generate", "--model", &tiny("llama"), "--prompt"]);
    let foreign = std::os::unix::ffi::OsStrExt::from_bytes(b"caf\xe9");
    refused(&command.arg::<&std::ffi::OsStr>(foreign).output().unwrap(), 2, &["argument 5", "hint: "]);
}

#[test]
fn score_agrees_with_the_reference_and_writes_its_logits() {
    let prompt = &fixture("qwen3_next")["prompts"][0];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("logits.safetensors");
    let (model, ids) = (tiny("qwen3_next"), list(&prompt["input_ids"]));
    let args = ["score", "--model", &model, "--prompt-tokens", &ids, "--json", "--logits", file.to_str().unwrap()];
    let output = run(&args);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();

    let floats = |path: &Path, name: &str| {
        let bytes = std::fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let view = tensors.tensor(name).unwrap();
        let values: Vec<f32> = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (view.shape().to_vec(), values)
    };
    let (shape, ours) = floats(&file, "logits");
    let (theirs_shape, theirs) = floats(&Path::new(&model).join("fixture.safetensors"), "p0.logits");
    assert_eq!(shape, theirs_shape);
    assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() <= 2e-3));
    // the reference's perplexity, from its own logits
    let targets = prompt["input_ids"].as_array().unwrap()[1..].iter().map(|id| id.as_u64().unwrap() as usize);
    let losses: Vec<f64> = theirs
        .chunks_exact(shape[1])
        .zip(targets)
        .map(|(row, target)| row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln() - f64::from(row[target]))
        .collect();
    let mean = losses.iter().sum::<f64>() / losses.len() as f64;
    assert!((json["mean_nll"].as_f64().unwrap() - mean).abs() < 1e-4);
    assert_eq!(json["predicted"], losses.len());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
}

#[test]
fn a_full_disk_is_an_error() {
    if !Path::new("/dev/full").exists() {
        println!("skipped: no /dev/full here");
        return;
    }
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let model = tiny("llama");
    for args in [
        &["generate", "--model", &model, "--prompt", "x", "-n", "4"][..],
        &["generate", "--model", &model, "--prompt", "x", "-n", "4", "--json"],
        &["score", "--model", &model, "--prompt-tokens", "1,2,3"],
        &["models"],
        &["schema"],
    ] {
        let output = command(args).stdout(full()).stderr(Stdio::piped()).output().unwrap();
        refused(&output, 1, &["standard output", "No space left", "hint: "]);
    }
    let output = run(&["score", "--model", &model, "--prompt-tokens", "1,2,3", "--logits", "/dev/full"]);
    refused(&output, 1, &["/dev/full", "No space left", "hint: "]);
}

#[test]
fn models_print_tables_and_json() {
    let listed: Value = serde_json::from_str(&stdout(&run(&["models", "--json"]))).unwrap();
    let named = |name: &str| listed.as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap().clone();
    assert_eq!(named("qwen3.6-27b")["supported"], true);
    assert_eq!(named("kimi-k2.6")["supported"], true);
    let schema: Value = serde_json::from_str(&stdout(&run(&["schema"]))).unwrap();
    assert_eq!(schema, tbshard::cluster::json_schema());
    assert!(stdout(&run(&["models"])).lines().any(|line| line.starts_with("qwen3.6-27b ") && line.contains("55.6 GB")));
}

/// A copy of a tiny checkpoint without its tokenizer.
fn without_tokenizer(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tiny(name)).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("tokenizer.json") {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

#[test]
fn a_vocabulary_of_kimi_is_read_and_ends_answers_where_no_config_says_so() {
    let dir = without_tokenizer("qwen3_5");
    let prompt = &fixture("qwen3_5")["prompts"][0];
    let (ids, greedy) = (list(&prompt["input_ids"]), prompt["greedy"].as_array().unwrap());
    assert_eq!(greedy[4], 273);
    // the bytes are the ranks, and what the model says at last is a special token
    std::fs::write(dir.path().join("tiktoken.model"), byte_ranks()).unwrap();
    let model = dir.path().display().to_string();
    let said = |end: &str, prompt: [&str; 2]| {
        let added = |text: &str| json!({"content": text, "special": true});
        let config = json!({
            "added_tokens_decoder": {"256": added("<|im_middle|>"), "257": added("[EOS]"), "273": added(end)},
            "chat_template": "{{ messages[0].content }}<|im_middle|>",
        });
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let args = [&["generate", "--model", &model, "-n", "8", "--temp", "0", "--json"][..], &prompt].concat();
        serde_json::from_str::<Value>(&stdout(&run(&args))).unwrap()
    };
    let ended = said("<|im_end|>", ["--prompt-tokens", &ids]);
    assert_eq!((ended["tokens"].as_array().unwrap().len(), &ended["finish_reason"]), (4, &json!("stop")), "{ended}");
    let full = said("<|im_user|>", ["--prompt-tokens", &ids]);
    assert_eq!((full["tokens"].as_array().unwrap(), &full["finish_reason"]), (greedy, &json!("length")), "{full}");
    let text = said("<|im_end|>", ["--prompt", "hé"]);
    assert_eq!(text["prompt_tokens"], 4, "{text}");
    std::fs::write(dir.path().join("tiktoken.model"), "AA== 1").unwrap();
    let broken = run(&["generate", "--model", &model, "--prompt", "x"]);
    refused(&broken, 1, &[&model, "tiktoken.model: line 1: the rank is `1`, where 0 follows"]);
}

#[test]
fn a_model_without_a_tokenizer_takes_token_ids() {
    let dir = without_tokenizer("qwen2");
    let (bare, whole) = (dir.path().display().to_string(), tiny("qwen2"));
    let tokens = |model: &str| {
        let args = ["generate", "--model", model, "--prompt-tokens", "5,6,7", "-n", "5", "--ignore-eos", "--json"];
        serde_json::from_str::<Value>(&stdout(&run(&args))).unwrap()["tokens"].clone()
    };
    assert_eq!(tokens(&bare), tokens(&whole));
    refused(&run(&["generate", "--model", &bare, "--prompt", "x"]), 1, &["tokenizer.json", "hint: "]);
}

#[test]
fn a_broken_stderr_is_no_failure() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let model = tiny("llama");
    let output = command(&["generate", "--model", &model, "--prompt", "x", "-n", "3"]).stderr(full).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
}
