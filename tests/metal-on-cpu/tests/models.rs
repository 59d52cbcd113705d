//! Whole models on the emulated device against the reference implementation: prompt and decode, one rank and several.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use metal_on_cpu::{Emulator, Options, Order};
use tbshard::backend::Metal;
use tbshard::engine::{Engine, Wanted};
use tbshard::models::Model;

/// Tokens of a prompt, and of an answer, that are compared: an emulated thread is a fiber.
const PROMPT: usize = 24;
const ANSWER: usize = 4;

fn fixtures() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tiny");
    let mut dirs: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    dirs
}

fn engine(dir: &Path, options: Options) -> Engine {
    let model = Model::open(dir, &|_, _| ()).unwrap_or_else(|error| panic!("{}: {error:?}", dir.display()));
    Engine::new(model, Box::new(Metal::new(Arc::new(Emulator::new(options)))), 256, 1).unwrap()
}

struct Prompt {
    ids: Vec<u32>,
    greedy: Vec<u32>,
    logits: Vec<f32>,
    decode: Vec<f32>,
}

/// The shortest prompt of a fixture, with what the reference says to it.
fn reference(dir: &Path) -> Prompt {
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("fixture.json")).unwrap()).unwrap();
    let bytes = std::fs::read(dir.join("fixture.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: String| {
        let data = tensors.tensor(&name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect::<Vec<f32>>()
    };
    let ids = |value: &serde_json::Value| {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<u32>>()
    };
    let prompts = json["prompts"].as_array().unwrap();
    let (at, prompt) = prompts.iter().enumerate().min_by_key(|(_, prompt)| ids(&prompt["input_ids"]).len()).unwrap();
    Prompt {
        ids: ids(&prompt["input_ids"]),
        greedy: ids(&prompt["greedy"]),
        logits: floats(format!("p{at}.logits")),
        decode: floats(format!("p{at}.decode_logits")),
    }
}

fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    let differences =
        ours.iter().zip(theirs).map(|(a, b)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() });
    differences.fold(0.0, f32::max)
}

/// Compares the logits of a prompt and of the answer to it; returns the largest difference.
fn compare(dir: &Path, options: Options) -> f32 {
    let name = dir.file_name().unwrap().to_string_lossy().into_owned();
    let Prompt { ids, greedy, logits, decode } = reference(dir);
    let vocab = logits.len() / ids.len();
    let mut engine = engine(dir, options);
    let mut sequence = engine.start().unwrap();
    let count = ids.len().min(PROMPT);
    let ours = engine.forward(&mut [(&mut sequence, &ids[..count])], Wanted::All, None).unwrap();
    let mut worst = difference(ours.data(), &logits[..count * vocab]);
    if count == ids.len() {
        let mut row = ours.row(count - 1).to_vec();
        for (token, theirs) in greedy.iter().zip(decode.chunks_exact(vocab)).take(ANSWER) {
            let best = (0..vocab).max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a))).unwrap();
            assert_eq!(best, *token as usize, "{name}: greedy tokens");
            worst = worst.max(difference(&row, theirs));
            row = engine.forward(&mut [(&mut sequence, &[*token])], Wanted::Last, None).unwrap().row(0).to_vec();
        }
    }
    assert!(worst <= 2e-3, "{name}: logits differ by {worst}");
    println!("{name}: {count} tokens, max |Δ| {worst:.1e}");
    worst
}

#[test]
fn logits_and_greedy_tokens_are_the_references() {
    let dirs = fixtures();
    assert!(dirs.len() > 10);
    dirs.iter().for_each(|dir| _ = compare(dir, Options::default()));
}

#[test]
fn whatever_the_order() {
    for name in ["qwen3_5_moe", "kimi_linear", "kimi_k25-int4", "mlx-qwen3_5_moe-mixed"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tiny").join(name);
        compare(&dir, Options { order: Order::Shuffled(7), isolated: true, late: true });
    }
}
