//! `--quantize`: quantised while it is loaded, a model has the bits of the directory that `tbshard quantize` writes.

use tbshard::comm::Algorithm;
use tbshard::models::Blueprint;
use tbshard::partition::{Layout, Plan};
use tbshard::weights::Coding;
use tempfile::TempDir;

use super::quantized;
use crate::support::files;
use crate::support::program::command;
use crate::support::ranks::{mesh, run};

const CODINGS: [Coding; 3] =
    [Coding::Affine { bits: 4, group: 32 }, Coding::Nvfp4, Coding::Affine { bits: 3, group: 32 }];

fn layout(tp: usize, pp: usize) -> Layout {
    Layout { world_size: tp * pp, tp: Some(tp), pp: Some(pp), ..Layout::default() }
}

/// Settings that say `coding`.
fn settings(coding: Coding) -> [String; 6] {
    let (mode, bits, group) = (coding.mode().to_owned(), coding.bits().to_string(), coding.group().to_string());
    ["--mode".to_owned(), mode, "--bits".to_owned(), bits, "--group".to_owned(), group]
}

#[test]
fn in_memory_and_on_disk_the_bits_are_the_same_on_every_layout() {
    for name in [
        "llama",
        "qwen2",
        "qwen3",
        "qwen3-fp8",
        "qwen3_moe-fp8",
        "qwen3_next",
        "qwen3_5-fp8",
        "qwen3_5_text",
        "qwen3_5_moe",
        "qwen3_5_moe-fp8",
        "deepseek_v3",
        "deepseek_v3-fp8",
        "kimi_k25-int4",
        "kimi_linear",
    ] {
        let source = files::fixtures().join("tiny").join(name);
        for coding in CODINGS {
            let out = TempDir::new().unwrap();
            quantized(&source, out.path(), &settings(coding).each_ref().map(String::as_str));
            let on_disk = || Blueprint::open(out.path()).unwrap();
            let alone = Layout { world_size: 1, ..Layout::default() };
            let expected = run(&on_disk, &alone, Algorithm::Auto, mesh(1));
            let in_memory = || Blueprint::open(&source).unwrap().quantised(coding, 2).unwrap();
            for layout in [layout(1, 1), layout(2, 1), layout(3, 1), layout(1, 2), layout(2, 2)] {
                let hashes = run(&in_memory, &layout, Algorithm::Auto, mesh(layout.world_size));
                assert_eq!(hashes, expected, "{name} {coding:?} {layout:?}");
            }
            let plain = run(&|| Blueprint::open(&source).unwrap(), &alone, Algorithm::Auto, mesh(1));
            let matrices = Blueprint::open(&source).unwrap().conversion(coding).unwrap().modules()[0];
            // rows of 48 values are no groups of 32
            assert_eq!(plain != expected, matrices > 0, "{name} {coding:?}: {matrices} are quantised");
            assert!(matrices > 0 || coding.group() == 32, "{name} {coding:?}");
        }
    }
}

/// What a rank holds of the weights is what it would hold of the directory, tensor by tensor.
#[test]
fn a_rank_makes_its_own_part() {
    let coding = Coding::Nvfp4;
    for name in ["qwen3_5_moe-fp8", "deepseek_v3-fp8", "kimi_k25-int4"] {
        let source = files::fixtures().join("tiny").join(name);
        let out = TempDir::new().unwrap();
        quantized(&source, out.path(), &settings(coding).each_ref().map(String::as_str));
        let in_memory = Blueprint::open(&source).unwrap().quantised(coding, 1).unwrap();
        let on_disk = Blueprint::open(out.path()).unwrap();
        let geometry = on_disk.geometry;
        for layout in [layout(3, 1), layout(2, 2)] {
            let plan = Plan::new(geometry.layers, geometry.heads, &layout).unwrap();
            for rank in 0..layout.world_size {
                let [ours, theirs] = [&in_memory, &on_disk].map(|blueprint| blueprint.share(&plan, rank).unwrap());
                let pieces = |share: &tbshard::weights::Share| format!("{:?}", share.tensors().collect::<Vec<_>>());
                assert_eq!(pieces(&ours), pieces(&theirs), "{name}: rank {rank} of {layout:?}");
            }
        }
    }
}

#[test]
fn quantised_models_do_not_pass_for_each_other() {
    let source = files::fixtures().join("tiny/qwen3");
    let digest = |coding| Blueprint::open(&source).unwrap().quantised(coding, 1).unwrap().digest;
    let mut digests: Vec<String> = CODINGS.map(digest).to_vec();
    digests.push(Blueprint::open(&source).unwrap().digest);
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), 4);
}

#[test]
fn every_command_knows_the_flag() {
    let model = crate::cli::tiny("qwen3");
    let out = TempDir::new().unwrap();
    quantized(model.as_ref(), out.path(), &["--group", "32"]);
    let written = out.path().display().to_string();
    let run = |args: &[&str]| {
        let output = command(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let tokens = "--prompt-tokens=5,6,7,8,9";
    let generate = |args: &[&str]| {
        let text = run(&[&["generate", tokens, "-n", "8", "--ignore-eos", "--json"], args].concat());
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        answer["tokens"].clone()
    };
    let expected = generate(&["--model", &written]);
    assert_eq!(generate(&["--model", &model, "--quantize", "4:32"]), expected);
    assert_eq!(generate(&["--model", &model, "--quantize", "4:32", "--local", "2"]), expected);
    assert_ne!(generate(&["--model", &model, "--quantize", "2:32"]), expected);
    let score = |args: &[&str]| run(&[&["score", tokens], args].concat());
    assert_eq!(score(&["--model", &model, "--quantize", "4:32"]), score(&["--model", &written]));
    let bench = ["bench", "tokens-per-sec", "--model", &model, "--quantize", "mxfp8"];
    let table = run(&[&bench[..], &["--pp", "4", "--tg", "2", "--reps", "1"]].concat());
    assert!(table.contains("mxfp8"), "{table}");
    // invented weights of any model
    let random = ["--weights", "random", "--layers", "1", "--quantize", "4"];
    assert_eq!(generate(&[&["--model", &model], &random[..]].concat()).as_array().unwrap().len(), 8);
}

#[test]
fn values_of_the_flag_that_cannot_be() {
    for (value, words) in [
        ("7", "there is no affine format of 7 bits in groups of 64"),
        ("4:48", "in groups of 48"),
        ("four", "the quantisation mode `four` is not known"),
        ("4:", "`` is no number"),
        ("-3", "`-3` is no number"),
        ("", "`` is no number"),
    ] {
        let output = command(&["generate", &format!("--quantize={value}")]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(words), "{value:?}: {text}");
    }
    let out = TempDir::new().unwrap();
    quantized(crate::cli::tiny("qwen3").as_ref(), out.path(), &["--group", "32"]);
    let model = out.path().display().to_string();
    let output = command(&["generate", "--model", &model, "--quantize", "4", "--prompt", "x"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("is quantised already"), "{text}");
}
