//! Every architecture against the reference implementation: hidden states, logits, greedy tokens.

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use tbshard::engine::{Event, Request, Sampler, Sampling, Wanted, generate};

use crate::support::engine::engine;
use crate::support::tiny::tiny_checkpoints;

struct Fixture {
    prompts: Vec<Prompt>,
}

struct Prompt {
    ids: Vec<u32>,
    greedy: Vec<u32>,
    logits: Vec<f32>,
    decode_logits: Vec<f32>,
    // [layers + 1, last tokens, hidden]; not every fixture has it for every prompt
    hidden: Option<Vec<f32>>,
}

fn read(dir: &Path) -> Fixture {
    let json: Value = serde_json::from_slice(&std::fs::read(dir.join("fixture.json")).unwrap()).unwrap();
    let bytes = std::fs::read(dir.join("fixture.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: String| {
        let view = tensors.tensor(&name).ok()?;
        Some(view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<f32>>())
    };
    let ids = |value: &Value| value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let prompts = json["prompts"].as_array().unwrap().iter().enumerate().map(|(i, prompt)| Prompt {
        ids: ids(&prompt["input_ids"]),
        greedy: ids(&prompt["greedy"]),
        logits: floats(format!("p{i}.logits")).unwrap(),
        decode_logits: floats(format!("p{i}.decode_logits")).unwrap(),
        hidden: floats(format!("p{i}.hidden")),
    });
    Fixture { prompts: prompts.collect() }
}

/// Fixtures have the last rows alone where all would be many.
fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    let rest = ours.len().checked_sub(theirs.len()).filter(|_| !theirs.is_empty()).unwrap();
    ours[rest..].iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_and_greedy_tokens_are_the_references() {
    let mut names = Vec::new();
    for dir in tiny_checkpoints().iter() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let recurrent = ["qwen3_5", "qwen3_next"].iter().any(|kind| name.contains(kind));
        let tolerance = if recurrent { 2e-3 } else { 1e-3 };
        let mut worst = 0.0f32;
        let dir = dir.as_path();
        for (i, prompt) in read(dir).prompts.iter().enumerate() {
            let mut engine = engine(dir, 1);
            let layers = engine.model().geometry.layers;
            let mut sequence = engine.start().unwrap();
            let mut broken = None;
            let mut observe = |layer: usize, x: &tbshard::backend::Tensor| {
                let Some(hidden) = &prompt.hidden else { return };
                let each = hidden.len() / (layers + 1);
                let theirs = &hidden[layer * each..][..each];
                let delta = difference(x.data(), theirs);
                let scale = theirs.iter().fold(1.0f32, |max, x| max.max(x.abs()));
                if broken.is_none() && delta > 1e-3 * scale {
                    broken = Some((layer, delta));
                }
            };
            let run = (&mut sequence, &prompt.ids[..]);
            let logits = engine.forward(&mut [run], Wanted::All, Some(&mut observe)).unwrap();
            assert_eq!(broken, None, "{name} prompt {i}: hidden states differ first after layer");
            let delta = difference(logits.data(), &prompt.logits);
            assert!(delta <= tolerance, "{name} prompt {i}: logits differ by {delta}");
            engine.end(sequence);

            let mut sequence = engine.start().unwrap();
            let max_tokens = prompt.greedy.len();
            let request =
                Request { prompt: prompt.ids.clone(), max_tokens, eos: Vec::new(), sampling: Sampling::default() };
            let mut sampler = Sampler::new(request.sampling.clone(), 0);
            let go_on = &mut |_: Event| std::ops::ControlFlow::Continue(());
            let answer = generate(&mut engine, &mut sequence, &request, &mut sampler, go_on).unwrap();
            assert_eq!(answer.tokens, prompt.greedy, "{name} prompt {i}: greedy tokens");
            engine.end(sequence);

            let mut sequence = engine.start().unwrap();
            let vocab = prompt.decode_logits.len() / max_tokens;
            let mut row = engine.prefill(&mut sequence, &prompt.ids, &mut |_| true).unwrap().unwrap();
            for (token, theirs) in prompt.greedy.iter().zip(prompt.decode_logits.chunks_exact(vocab)) {
                let delta = difference(row.row(0), theirs);
                assert!(delta <= tolerance, "{name} prompt {i}: decode logits differ by {delta}");
                worst = worst.max(delta);
                row = engine.forward(&mut [(&mut sequence, &[*token])], Wanted::Last, None).unwrap();
            }
        }
        println!("{name}: max |Δ| {worst:.1e}");
        names.push(name);
    }
    let qwen = ["qwen2", "qwen3", "qwen3-yarn", "qwen3_moe", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_next"];
    for kind in ["llama", "deepseek_v3", "kimi_k25-int4", "kimi_linear"].into_iter().chain(qwen) {
        assert!(names.iter().any(|name| name == kind), "no fixture of {kind} was tried: {names:?}");
    }
}
