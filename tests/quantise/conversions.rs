//! Whole checkpoints of every architecture: names, types, shapes and bytes are those that mlx_lm.convert wrote.

use serde_json::Value;
use sha2::{Digest, Sha256};
use tbshard::models::Blueprint;
use tbshard::weights::{Coding, hex};
use tempfile::TempDir;

use super::{quantized, read_json, tensors};
use crate::support::files;
use crate::support::specimen::Specimen;

/// SHA-256 over name, type, shape and bytes of all tensors, by name.
fn digest(dir: &std::path::Path) -> (usize, String) {
    let tensors = tensors(dir);
    let mut hash = Sha256::new();
    for (name, (dtype, shape, bytes)) in &tensors {
        let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        hash.update(format!("{name} {dtype} {shape}\n"));
        hash.update(bytes);
    }
    (tensors.len(), hex(hash))
}

#[test]
fn every_architecture_becomes_what_mlx_lm_makes_of_it() {
    let goldens = read_json(&files::fixtures(), "quantise.json");
    let mut wrong = Vec::new();
    for golden in goldens["conversions"].as_array().unwrap() {
        let checkpoint = golden["checkpoint"].as_str().unwrap();
        let specimen = Specimen::of(checkpoint);
        specimen.edit_json("config.json", |config| {
            for (key, value) in golden["edits"].as_object().unwrap() {
                config[key] = value.clone();
            }
        });
        let (mode, bits, group) = (golden["mode"].as_str().unwrap(), &golden["bits"], &golden["group"]);
        let out = TempDir::new().unwrap();
        let settings = ["--mode", mode, "--bits", &bits.to_string(), "--group", &group.to_string()];
        quantized(specimen.dir.path(), out.path(), &settings);
        let (count, sha256) = digest(out.path());
        let config = read_json(out.path(), "config.json");
        let model = Blueprint::open(specimen.dir.path()).unwrap();
        let coding = Coding::named(mode, bits.as_u64(), group.as_u64()).unwrap();
        let conversion = model.conversion(coding).unwrap();
        let names: Vec<String> = conversion.tensors().map(|tensor| tensor.name).collect();
        if hex(Sha256::new_with_prefix(names.join("\n"))) != golden["order"] {
            wrong.push(format!("{checkpoint} {mode} {bits} {group}: the order is {names:#?}"));
        }
        if conversion.parameters() != golden["parameters"].as_u64().unwrap() {
            wrong.push(format!("{checkpoint} {mode} {bits} {group}: {} parameters", conversion.parameters()));
        }
        // their order is that of the modules
        let texts = |table: &Value| table.to_string();
        if (count as u64, sha256.as_str()) != (golden["tensors"].as_u64().unwrap(), golden["sha256"].as_str().unwrap())
        {
            wrong.push(format!("{checkpoint} {mode} {bits} {group} {}: tensors", golden["edits"]));
        }
        if texts(&config["quantization"]) != texts(&golden["quantization"]) {
            wrong.push(format!("{checkpoint} {mode} {bits} {group}: {}", config["quantization"]));
        }
        assert_eq!(config["quantization"], config["quantization_config"]);
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn config_json_is_as_mlx_lm_writes_it() {
    let out = TempDir::new().unwrap();
    let source = files::fixtures().join("tiny/qwen3_5-fp8");
    quantized(&source, out.path(), &["--group", "32"]);
    let (before, after) = (read_json(&source, "config.json"), read_json(out.path(), "config.json"));
    let keys = |config: &Value| config.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert!(keys(&after).is_sorted(), "{:?}", keys(&after));
    // what the weights were, and the model that is left out
    assert!(before.get("quantization_config").is_some() && before.get("vision_config").is_some());
    assert_eq!(after["quantization_config"]["bits"], 4);
    assert_eq!(after.get("vision_config"), None);
    // the generation's end tokens are the model's
    assert_eq!(after["eos_token_id"], read_json(&source, "generation_config.json")["eos_token_id"]);
    assert_eq!(after["text_config"], before["text_config"]);
    for file in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(std::fs::read(source.join(file)).unwrap(), std::fs::read(out.path().join(file)).unwrap(), "{file}");
    }
    assert!(!out.path().join("fixture.json").exists());
}

#[test]
fn a_bare_text_model_is_wrapped_for_mlx_lm() {
    let out = TempDir::new().unwrap();
    let source = files::fixtures().join("tiny/qwen3_5_text");
    quantized(&source, out.path(), &["--mode", "nvfp4"]);
    let (before, after) = (read_json(&source, "config.json"), read_json(out.path(), "config.json"));
    assert_eq!(after["model_type"], "qwen3_5");
    assert_eq!(after["text_config"], before);
    assert_eq!(after["architectures"], before["architectures"]);
}

#[test]
fn the_index_lists_every_tensor_once() {
    let out = TempDir::new().unwrap();
    quantized(&files::fixtures().join("tiny/qwen3_moe-fp8"), out.path(), &["--group", "32"]);
    let index = read_json(out.path(), "model.safetensors.index.json");
    let listed: Vec<&String> = index["weight_map"].as_object().unwrap().keys().collect();
    let tensors = tensors(out.path());
    assert_eq!(listed, tensors.keys().collect::<Vec<_>>());
    let bytes: usize = tensors.values().map(|(_, _, bytes)| bytes.len()).sum();
    assert_eq!(index["metadata"]["total_size"], bytes);
}
