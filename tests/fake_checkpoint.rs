//! Checkpoints of true names and shapes without weights: opened at once, touched where they must be, or the very random weights.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::program::command;

/// The example beside the tests.
fn fake(args: &[&str]) -> Output {
    let tests = std::env::current_exe().unwrap();
    let example = tests.parent().unwrap().parent().unwrap().join("examples/fake_checkpoint");
    Command::new(example).args(args).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Kimi's proportions in little: INT4 experts in groups of 32.
fn small(dir: &Path) -> PathBuf {
    let weights = json!({ "num_bits": 4, "type": "int", "symmetric": true, "group_size": 32 });
    let config = json!({ "model_type": "kimi_k25", "text_config": {
        "model_type": "kimi_k2", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "q_lora_rank": 32,
        "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "vocab_size": 100,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "intermediate_size": 96, "moe_intermediate_size": 32,
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
        "quantization_config": { "quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": { "group_0": { "weights": weights } } },
    }});
    let path = dir.join("small.json");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

#[test]
fn random_weights_are_those_that_are_invented() {
    let dir = tempfile::tempdir().unwrap();
    let (config, files) = (small(dir.path()), dir.path().join("files"));
    let output = fake(&[text(&config), text(&files), "--random", "--shard-bytes", "40000"]);
    assert!(output.status.success(), "{output:?}");
    assert!(!fake(&[text(&config), text(&files)]).status.success(), "written over what was there");
    // the same config beside no weights
    let invented = dir.path().join("invented");
    std::fs::create_dir(&invented).unwrap();
    std::fs::copy(&config, invented.join("config.json")).unwrap();
    let answer = |args: &[&str]| {
        let all =
            [&["generate", "--prompt-tokens", "1,2,3,4", "--max-tokens", "12", "--json", "--model"], args].concat();
        let output = command(&all).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["tokens"].clone()
    };
    let read = answer(&[text(&files)]);
    assert_eq!(read, answer(&[text(&invented), "--weights", "random"]));
    assert_eq!(read, answer(&[text(&files), "--local", "3", "--tp", "3"]));
    assert!(std::fs::read_dir(&files).unwrap().count() > 4, "one file");
}

/// Bytes of mapped checkpoints that this process has in memory.
#[cfg(target_os = "linux")]
fn resident(dir: &Path) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut inside, mut kib) = (false, 0);
    for line in maps.lines() {
        if let Some(rss) = line.strip_prefix("Rss:") {
            kib += if inside { rss.split_whitespace().next().unwrap().parse::<u64>().unwrap() } else { 0 };
        } else if line.contains('-') && line.split(' ').next().is_some_and(|range| range.contains('-')) {
            inside = line.contains(text(dir));
        }
    }
    kib << 10
}

#[cfg(target_os = "linux")]
#[test]
fn a_trillion_parameters_are_mapped_and_not_read() {
    use std::time::Instant;
    use tbshard::models::Blueprint;
    use tbshard::partition::{Layout, Plan};

    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("k2.6");
    let output = fake(&["kimi-k2.6", text(&files)]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("208215 tensors, 594205858816 bytes in 64 files"), "{output:?}");
    let start = Instant::now();
    let blueprint = Blueprint::open(&files).unwrap();
    println!("opened in {:?}", start.elapsed());
    let (headers, layout) = (resident(&files), Layout { world_size: 4, tp: Some(2), pp: Some(2), ..Layout::default() });
    let plan = Plan::new(blueprint.geometry.layers, blueprint.geometry.heads, &layout).unwrap();
    let model = blueprint.load(&plan, 1, &|_, _| ()).unwrap();
    let held = model.share.bytes();
    println!("rank 1 of 4 holds {held} bytes; in memory: {headers} after opening, {} after loading", resident(&files));
    // norms, routers' biases and the pages around them
    assert!(resident(&files) - headers < 64 << 20);
    assert!((140..160).contains(&(held / 1_000_000_000)), "{held}");
    // of a layer's experts only this rank's columns
    let gate = "language_model.model.layers.5.mlp.experts.7.gate_proj.weight_packed";
    let bytes: u64 = model.share.byte_ranges(gate).iter().map(|range| range.end - range.start).sum();
    assert_eq!(bytes, 2048 * 7168 / 2 / 2);
}
