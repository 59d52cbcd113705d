//! How a model is parted into files, and the files themselves.

use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

use super::{quantized, read_json, solid, tensors};

/// The tensors of every file, in the order of the model.
fn parts(dir: &std::path::Path) -> Vec<(String, usize)> {
    let index = read_json(dir, "model.safetensors.index.json");
    let mut files: Vec<String> =
        index["weight_map"].as_object().unwrap().values().map(|file| file.as_str().unwrap().to_owned()).collect();
    files.sort();
    files.dedup();
    let bytes = |file: &String| {
        let bytes = std::fs::read(dir.join(file)).unwrap();
        SafeTensors::deserialize(&bytes).unwrap().tensors().iter().map(|(_, view)| view.data().len()).sum()
    };
    files.iter().map(|file| (file.clone(), bytes(file))).collect()
}

#[test]
fn files_are_as_large_as_allowed_and_have_mlx_lm_s_names() {
    let model = solid(3, 256, 4000);
    let out = TempDir::new().unwrap();
    let (one, many) = (out.path().join("one"), out.path().join("many"));
    quantized(model.path(), &one, &[]);
    assert_eq!(parts(&one).len(), 1);
    assert_eq!(parts(&one)[0].0, "model.safetensors");
    let said = quantized(model.path(), &many, &["--file-size", "1"]);
    let files = parts(&many);
    assert!(files.len() > 1 && said.contains(&format!("in {} files", files.len())), "{said}");
    for (index, (name, bytes)) in files.iter().enumerate() {
        assert_eq!(*name, format!("model-{:05}-of-{:05}.safetensors", index + 1, files.len()));
        assert!(*bytes <= 1 << 20, "{name} has {bytes} bytes");
    }
    // greedily filled: what begins a file had no room in the one before
    assert!(tensors(&one) == tensors(&many));
    let map = read_json(&many, "model.safetensors.index.json");
    let file_of = |tensor: &str| map["weight_map"][tensor].as_str().unwrap().to_owned();
    // a codes' file may not be that of its scales: 4000 × 256 codes of 4 bits, then 32 kB of scales and of biases
    assert_eq!(file_of("model.embed_tokens.weight"), files[0].0);
}

#[test]
fn headers_are_aligned_and_say_mlx() {
    let out = TempDir::new().unwrap();
    quantized(crate::cli::tiny("qwen3_5_moe-fp8").as_ref(), out.path(), &["--mode", "nvfp4"]);
    let bytes = std::fs::read(out.path().join("model.safetensors")).unwrap();
    let (length, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(length % 8, 0);
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "mlx");
    for (name, info) in metadata.tensors() {
        assert_eq!(info.data_offsets.0 % (info.dtype.bitsize() / 8), 0, "{name}");
    }
}

#[test]
fn a_model_alone_in_a_directory_has_what_it_had() {
    // no tokenizer, no generation_config.json: they are not invented
    let model = solid(1, 128, 300);
    let out = TempDir::new().unwrap();
    quantized(model.path(), out.path(), &[]);
    let mut names: Vec<_> = std::fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "model.safetensors.index.json"]);
    let config = read_json(out.path(), "config.json");
    assert_eq!(config.get("eos_token_id"), None::<&Value>);
}

#[test]
fn the_demo_model_is_one_too() {
    let out = TempDir::new().unwrap();
    let dir = out.path().join("demo").display().to_string();
    let run = |args: &[&str]| {
        let output = crate::support::program::command(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["quantize", "--mode", "mxfp8", "--output", &dir]);
    let story = ["--prompt", "Tell me a story about a fox", "-n", "30", "--temp", "0"];
    let written = run(&[&["generate", "--model", &dir], &story[..]].concat());
    assert_eq!(written, run(&[&["generate", "--quantize", "mxfp8"], &story[..]].concat()));
    assert!(written.contains("fox"), "{written}");
}
