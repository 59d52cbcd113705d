//! Writing quantised weights: codes and scales as MLX's, whole checkpoints as mlx_lm's, and what happens when one is killed.

mod conversions;
pub mod goldens;
mod loading;
mod memory;
mod refusals;
mod resume;
mod writing;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::program::command;

/// A tensor of a checkpoint: type, shape, bytes.
pub type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// All tensors of the checkpoint in `dir`.
pub fn tensors(dir: &Path) -> BTreeMap<String, Tensor> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let bytes = std::fs::read(&path).unwrap();
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
                assert_eq!(all.insert(name.clone(), tensor), None, "{name} is in two files");
            }
        }
    }
    all
}

/// The JSON file `name` of `dir`.
pub fn read_json(dir: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap()
}

/// Runs `tbshard quantize`.
pub fn quantize(model: &Path, out: &Path, args: &[&str]) -> Output {
    let (model, out) = (model.display().to_string(), out.display().to_string());
    command(&[&["quantize", "--model", &model, "--output", &out], args].concat()).output().unwrap()
}

/// Runs `tbshard quantize`, which has to succeed; returns what it says.
pub fn quantized(model: &Path, out: &Path, args: &[&str]) -> String {
    let output = quantize(model, out, args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(output.stdout.is_empty());
    text
}

/// Such a model with weights that are not zero.
pub fn solid(layers: usize, hidden: usize, vocab: usize) -> TempDir {
    let dir = hollow(layers, hidden, vocab);
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut state = 1_u32;
    for value in bytes[start..].chunks_exact_mut(2) {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // about ±0.03, and of many magnitudes
        let [_, mantissa, exponent, sign] = state.to_le_bytes();
        let bits = u16::from(mantissa & 0x7f) | (120 - u16::from(exponent & 3)) << 7 | u16::from(sign & 0x80) << 8;
        value.copy_from_slice(&bits.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    dir
}

/// A `qwen3` of any size whose weights are all zero, in a file with holes: it costs no space on the disk.
pub fn hollow(layers: usize, hidden: usize, vocab: usize) -> TempDir {
    let inner = 3 * hidden;
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for layer in 0..layers {
        let mut add =
            |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        for (name, rows) in [("q", hidden), ("k", hidden / 2), ("v", hidden / 2), ("o", hidden)] {
            add(&format!("self_attn.{name}_proj"), &[rows, hidden]);
        }
        for (name, rows, columns) in [("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)] {
            add(&format!("mlp.{name}_proj"), &[rows, columns]);
        }
        for name in ["self_attn.q_norm", "self_attn.k_norm"] {
            add(name, &[64]);
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            add(name, &[hidden]);
        }
    }
    shapes.push(("model.norm.weight".to_owned(), vec![hidden]));
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes {
        let end = at + 2 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let dir = TempDir::new().unwrap();
    let file = std::fs::File::create(dir.path().join("model.safetensors")).unwrap();
    std::io::Write::write_all(&mut &file, &(header.len() as u64).to_le_bytes()).unwrap();
    std::io::Write::write_all(&mut &file, header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + at) as u64).unwrap();
    let config = json!({
        "model_type": "qwen3", "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner,
        "num_attention_heads": hidden / 64, "num_key_value_heads": hidden / 128, "head_dim": 64, "vocab_size": vocab,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "rope_theta": 10000.0,
    });
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}
