//! What `tbshard quantize` writes against what mlx_lm writes, and mlx_lm on what it writes. Needs `TBSHARD_PYTHON`.

use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

use super::{ids, set};
use crate::quantise::{goldens, quantized, read_json, tensors};
use crate::support::files;
use crate::support::program::command;

/// Runs scripts/mlx_reference.py.
fn mlx(python: &Path, args: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/mlx_reference.py");
    let output = Command::new(python).arg(script).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Tiny checkpoints that mlx_lm can convert: of the oracle if it is there, because their layers are wide enough for groups.
fn checkpoints() -> Vec<PathBuf> {
    let qwen = ["qwen2", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_5", "qwen3_5_moe"];
    let kimi = ["kimi_k25", "kimi_k25-int4", "kimi_linear"];
    let committed = files::fixtures().join("tiny");
    match files::oracle() {
        Some(oracle) => {
            let names = qwen.into_iter().chain(kimi);
            let more = ["llama", "deepseek_v3-fp8"].map(|name| committed.join(name));
            names.map(|name| oracle.join("tiny").join(name)).chain(more).collect()
        }
        None => ["llama", "qwen2", "qwen3", "qwen3_5", "deepseek_v3-fp8", "kimi_k25-int4", "kimi_linear"]
            .map(|name| committed.join(name))
            .to_vec(),
    }
}

/// config.json without what mlx_lm changes in passing, where it calls `rope_type` by its older name, and what it leaves
/// there of the source's own format.
fn config(dir: &Path) -> Value {
    let mut config = read_json(dir, "config.json");
    if let Some(rope) = config.pointer_mut("/text_config/rope_parameters").and_then(Value::as_object_mut)
        && let Some(kind) = rope.shift_remove("type")
    {
        rope.entry("rope_type").or_insert(kind);
    }
    if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
        text.shift_remove("quantization_config");
    }
    config
}

/// Runs scripts/mlx_reference.py for many commands at once, because its imports take longer than most of them.
fn mlx_each(python: &Path, commands: &[Vec<String>]) {
    let list = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(list.path(), serde_json::to_vec(commands).unwrap()).unwrap();
    mlx(python, &["each", list.path().to_str().unwrap()]);
}

fn words(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| part.to_string()).collect()
}

/// Converts every source in both programs by every one of the settings, and compares all they wrote but tokenizers and the
/// layout of files.
fn compare(python: &Path, sources: &[PathBuf], settings: &[[&str; 3]]) {
    let out = TempDir::new().unwrap();
    let (mut cases, mut commands) = (Vec::new(), Vec::new());
    for source in sources {
        for [mode, bits, group] in settings {
            let case = out.path().join(cases.len().to_string());
            let [ours, theirs] = ["ours", "theirs"].map(|name| case.join(name));
            std::fs::create_dir(&case).unwrap();
            quantized(source, &ours, &["--mode", mode, "--bits", bits, "--group", group]);
            let [from, to] = [source, &theirs].map(|path| path.to_str().unwrap());
            commands.push(words(&["convert", from, to, mode, bits, group]));
            cases.push((format!("{} {mode} {bits} {group}", source.display()), ours, theirs));
        }
    }
    mlx_each(python, &commands);
    for (place, ours, theirs) in cases {
        println!("{place}: {} tensors", same(&place, &ours, &theirs));
    }
}

/// Returns how many tensors both of two checkpoints have; fails where they differ.
fn same(place: &str, ours: &Path, theirs: &Path) -> usize {
    let [a, b] = [ours, theirs].map(tensors);
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{place}");
    for (name, tensor) in &a {
        assert!(tensor.0 == b[name].0 && tensor.1 == b[name].1, "{place}: {name}");
        assert!(tensor.2 == b[name].2, "{place}: the bytes of {name}");
    }
    assert_eq!(config(ours), config(theirs), "{place}");
    let table = |dir: &Path| read_json(dir, "config.json")["quantization"].to_string();
    assert_eq!(table(ours), table(theirs), "{place}");
    let index = "model.safetensors.index.json";
    assert_eq!(read_json(ours, index), read_json(theirs, index), "{place}");
    a.len()
}

#[test]
fn rows_by_the_million_become_mlx_s_bytes() {
    let Some(python) = set("TBSHARD_PYTHON") else { return };
    let out = TempDir::new().unwrap();
    let file = out.path().join("rows.safetensors");
    mlx(&python, &["rows", "11", file.to_str().unwrap()]);
    let bytes = std::fs::read(&file).unwrap();
    let (compared, wrong) = goldens::differences(&SafeTensors::deserialize(&bytes).unwrap(), 128);
    println!("{compared} bytes");
    assert_eq!(wrong, Vec::<String>::new());
    assert!(compared > 10_000_000, "{compared}");
}

#[test]
fn checkpoints_are_mlx_lm_s_byte_for_byte() {
    let Some(python) = set("TBSHARD_PYTHON") else { return };
    let settings = [["affine", "4", "64"], ["affine", "3", "32"], ["affine", "8", "128"], ["mxfp8", "8", "32"]];
    compare(&python, &checkpoints(), &settings);
}

#[test]
fn a_real_model_is_mlx_lm_s_byte_for_byte() {
    let (Some(model), Some(python)) = (set("TBSHARD_SMOLLM2"), set("TBSHARD_PYTHON")) else { return };
    compare(&python, &[model], &[["affine", "4", "64"]]);
}

/// The tensor `logits` of a file.
fn logits(file: &Path) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor("logits").unwrap().data().to_vec();
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn mlx_lm_loads_what_we_write_and_agrees() {
    let Some(python) = set("TBSHARD_PYTHON") else { return };
    let mut sources = checkpoints();
    // what mlx_lm does not read itself: FP8, and the bare text model
    sources.extend(
        ["qwen3_5_moe-fp8", "qwen3_5_text", "qwen3_moe-fp8"].map(|name| files::fixtures().join("tiny").join(name)),
    );
    let tokens = ids(&(0..24).map(|i| (i * i * 7 + 3 * i + 1) % 290).collect::<Vec<u32>>());
    let out = TempDir::new().unwrap();
    let (mut cases, mut commands) = (Vec::new(), Vec::new());
    for source in sources {
        for [mode, bits, group] in [["affine", "4", "32"], ["nvfp4", "4", "16"]] {
            let case = out.path().join(cases.len().to_string());
            let [dir, ours, theirs] = ["model", "ours.safetensors", "theirs.safetensors"].map(|name| case.join(name));
            std::fs::create_dir(&case).unwrap();
            quantized(&source, &dir, &["--mode", mode, "--bits", bits, "--group", group]);
            let [model, a, b] = [&dir, &ours, &theirs].map(|path| path.to_str().unwrap());
            let scored = command(&["score", "--model", model, "--prompt-tokens", &tokens, "--logits", a]).output();
            assert!(scored.unwrap().status.success());
            commands.push(words(&["logits", model, &tokens, b]));
            cases.push((format!("{} {mode}", source.display()), ours, theirs));
        }
    }
    mlx_each(&python, &commands);
    for (place, ours, theirs) in cases {
        let (ours, theirs) = (logits(&ours), logits(&theirs));
        assert_eq!(ours.len(), theirs.len());
        let delta = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{place}: max |Δ| {delta:.1e}");
        assert!(delta < 2e-3, "{place}: {delta}");
    }
}
