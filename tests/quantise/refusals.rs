//! What `tbshard quantize` refuses, and what it says then.

use std::process::Output;

use tempfile::TempDir;

use super::{hollow, quantize, quantized};
use crate::cli::tiny;
use crate::support::program::command;
use crate::support::specimen::Specimen;

/// Exit code `code`, and every word in the error and its hint.
fn refused(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains("error: ") && text.contains("hint: ") && !text.contains("panicked"), "{text}");
    words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is not in {text}"));
}

#[test]
fn settings_that_cannot_be() {
    let out = TempDir::new().unwrap();
    for (args, words) in [
        (&["--bits", "7"][..], &["there is no affine format of 7 bits in groups of 64"][..]),
        (&["--bits", "4", "--group", "16"], &["groups of 16", "32, 64 or 128"]),
        (&["--mode", "mxfp4", "--bits", "8"], &["mxfp4 has 4 bits in groups of 32, not 8 in 32"]),
        (&["--mode", "int4"], &["`int4` is not known", "nvfp4"]),
        (&["--file-size", "0"], &["--file-size 0"]),
        (&["--threads", "0"], &["--threads 0"]),
    ] {
        refused(&quantize(tiny("qwen3").as_ref(), out.path(), args), 2, words);
    }
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    let output = command(&["quantize", "--model", &tiny("qwen3")]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--output <DIR>"));
}

#[test]
fn a_directory_with_something_else_in_it() {
    let out = TempDir::new().unwrap();
    std::fs::write(out.path().join("letter.txt"), "dear").unwrap();
    let output = quantize(tiny("qwen3").as_ref(), out.path(), &["--group", "32"]);
    refused(&output, 2, &["is not empty: it has `letter.txt`", "does not exist yet"]);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
    // the model's own directory is one of these, and so is what is complete
    let specimen = Specimen::of("qwen3");
    refused(&quantize(specimen.dir.path(), specimen.dir.path(), &[]), 2, &["is not empty"]);
    let out = TempDir::new().unwrap();
    quantized(tiny("qwen3").as_ref(), out.path(), &["--group", "32"]);
    refused(&quantize(tiny("qwen3").as_ref(), out.path(), &["--group", "32"]), 2, &["is not empty"]);
    // a file is no directory
    let file = out.path().join("config.json");
    refused(&quantize(tiny("qwen3").as_ref(), &file, &[]), 2, &["config.json` is a file"]);
}

#[test]
fn an_unfinished_conversion_of_something_else() {
    let specimen = Specimen::of("qwen3");
    let out = TempDir::new().unwrap();
    // a NaN ends it after it has begun
    let tensor = "model.layers.3.mlp.down_proj.weight";
    let file = specimen.edit_tensor(tensor, |plain| plain.bytes[2..4].copy_from_slice(&0x7fc0_u16.to_le_bytes()));
    let broken = quantize(specimen.dir.path(), out.path(), &["--mode", "nvfp4"]);
    refused(&broken, 1, &[&file, tensor, "NaN", "row 0, column 1"]);
    assert!(!out.path().join("config.json").exists());
    let again = quantize(specimen.dir.path(), out.path(), &["--mode", "mxfp4"]);
    refused(&again, 2, &["unfinished conversion of", "nvfp4 4 bits", "not of", "mxfp4 4 bits", "remove the directory"]);
    let other = quantize(tiny("qwen3").as_ref(), out.path(), &["--mode", "nvfp4"]);
    refused(&other, 2, &["unfinished conversion of"]);
    // the same names and shapes, but written later: another model
    specimen.edit_tensor(tensor, |plain| plain.bytes[2..4].copy_from_slice(&[0, 0]));
    refused(&quantize(specimen.dir.path(), out.path(), &["--mode", "nvfp4"]), 2, &["unfinished conversion of"]);
}

#[test]
fn values_that_are_no_numbers_are_named_with_their_tensor() {
    // in every mode, and in a tensor that becomes a part of another
    let expert = "model.language_model.layers.2.mlp.experts.gate_up_proj";
    for mode in ["nvfp4", "affine"] {
        let specimen = Specimen::of("qwen3_5_moe");
        // expert 3, row 17 of 32 (its up projection), column 5 of 48
        let at = 2 * ((3 * 32 + 17) * 48 + 5);
        specimen.edit_tensor(expert, |plain| plain.bytes[at..at + 2].copy_from_slice(&0x7f80_u16.to_le_bytes()));
        let out = TempDir::new().unwrap();
        let output = quantize(specimen.dir.path(), out.path(), &["--mode", mode]);
        if mode == "nvfp4" {
            refused(&output, 1, &[expert, "inf", "row 113, column 5", "fetch it again"]);
        } else {
            // 48 columns are no whole groups of 64: they are copied as they are
            assert!(output.status.success());
        }
    }
    // of what is packed already the scales are looked at, written or used at once
    let specimen = Specimen::of("kimi_k25-int4");
    for expert in 0..4 {
        let scale = format!("language_model.model.layers.1.mlp.experts.{expert}.up_proj.weight_scale");
        specimen.edit_tensor(&scale, |plain| plain.bytes[..2].copy_from_slice(&0x7fc0_u16.to_le_bytes()));
    }
    let out = TempDir::new().unwrap();
    let words = ["up_proj.weight`: one of the scales is NaN", "fetch it again"];
    refused(&quantize(specimen.dir.path(), out.path(), &[]), 1, &words);
    let model = specimen.dir.path().display().to_string();
    let output = command(&["generate", "--model", &model, "--quantize", "4:32", "--prompt-tokens=5,6,7"]).output();
    refused(&output.unwrap(), 1, &["up_proj.weight_scale` holds values that are not numbers"]);
    // what float16 cannot hold
    let specimen = Specimen::of("qwen3");
    specimen.edit_json("config.json", |config| config["torch_dtype"] = "float16".into());
    let tensor = "model.layers.0.mlp.up_proj.weight";
    specimen.edit_tensor(tensor, |plain| plain.bytes[..2].copy_from_slice(&0x4780_u16.to_le_bytes()));
    let out = TempDir::new().unwrap();
    refused(&quantize(specimen.dir.path(), out.path(), &[]), 1, &[tensor, "inf as F16 in row 0, column 0"]);
}

#[test]
fn models_that_are_quantised_already_or_no_models() {
    let out = TempDir::new().unwrap();
    let (first, second) = (out.path().join("a"), out.path().join("b"));
    quantized(tiny("qwen3").as_ref(), &first, &["--group", "32"]);
    refused(&quantize(&first, &second, &[]), 1, &["is quantised already", "as its maker publishes it"]);
    refused(&quantize("/nonexistent/model".as_ref(), &second, &[]), 2, &["there is no directory"]);
    let specimen = Specimen::of("llama");
    specimen.edit_json("config.json", |config| config["model_type"] = "gpt2".into());
    refused(&quantize(specimen.dir.path(), &second, &[]), 1, &["`gpt2` is not supported"]);
    assert!(!second.exists());
}

#[test]
fn a_disk_without_room() {
    // 270 GB of nothing; whoever runs this with more than 140 GB free has to find out otherwise
    let free = rustix::fs::statvfs(std::env::temp_dir().as_path()).unwrap();
    if free.f_bavail * free.f_frsize > 130_000_000_000 {
        println!("skipped: there is too much room");
        return;
    }
    let model = hollow(1, 8192, 16_000_000);
    let out = TempDir::new().unwrap();
    let output = quantize(model.path(), out.path(), &["--bits", "8"]);
    refused(&output, 1, &["GB free, the quantised model needs 14", "on another"]);
    // nothing was begun, so other settings are welcome
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn two_at_once() {
    let model = hollow(2, 1024, 60_000);
    let out = TempDir::new().unwrap();
    let dir = out.path().display().to_string();
    let model = model.path().display().to_string();
    let mut first = command(&["quantize", "-q", "--model", &model, "--output", &dir]).spawn().unwrap();
    let mark = out.path().join(".tbshard-quantize.json");
    while !mark.metadata().is_ok_and(|found| found.len() > 0) {
        assert_eq!(first.try_wait().unwrap(), None, "it ended too early");
    }
    // or it might be done before the other has begun
    let pid = rustix::process::Pid::from_child(&first);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let second = quantize(model.as_ref(), out.path(), &[]);
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    refused(&second, 1, &["another process writes to", "wait for it to end"]);
    assert!(first.wait().unwrap().success());
}

#[test]
fn a_dry_run_touches_nothing() {
    let out = TempDir::new().unwrap();
    let dir = out.path().join("new");
    let dry = |args: &[&str]| {
        let output =
            command(&[&["quantize", "--dry-run", "--output", &dir.display().to_string()], args].concat()).output();
        let output = output.unwrap();
        assert!(!dir.exists());
        (String::from_utf8(output.stdout.clone()).unwrap(), output)
    };
    let (text, _) = dry(&["--model", "qwen3.6-27b"]);
    for words in ["26.9 B", "53.8 GB", "affine 4 bits, groups of 64", "15.1 GB", "4.501 bits a weight"] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    // what it says is what it writes
    let (text, _) = dry(&["--model", &tiny("qwen3"), "--mode", "mxfp8"]);
    let said = quantized(tiny("qwen3").as_ref(), &out.path().join("written"), &["--mode", "mxfp8"]);
    let bits = said.split(", ").find(|part| part.ends_with("bits a weight")).unwrap();
    assert!(text.contains(bits), "{text}{said}");
    let (_, output) = dry(&["--model", "someone/something"]);
    refused(&output, 2, &["--dry-run downloads nothing"]);
}
