//! Whole models: the backend of Metal on an emulator against the CPU's and the reference implementation's tokens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use metal_on_cpu::{Emulator, Options, Order};
use tbshard::backend::{Backend, Cpu, Metal};
use tbshard::engine::{Engine, Event, Request, Sampler, Sampling, Wanted, generate};
use tbshard::models::Model;

pub fn checkpoints() -> Vec<PathBuf> {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tiny");
    let mut dirs: Vec<_> = std::fs::read_dir(tiny).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    dirs
}

/// Prompts, and how the reference implementation goes on.
pub fn prompts(dir: &Path) -> Vec<[Vec<u32>; 2]> {
    let text = std::fs::read(dir.join("fixture.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let ids = |value: &serde_json::Value| serde_json::from_value(value.clone()).unwrap();
    json["prompts"].as_array().unwrap().iter().map(|p| [ids(&p["input_ids"]), ids(&p["greedy"])]).collect()
}

/// The logits of a prompt, and the tokens that follow.
fn answer(dir: &Path, backend: Box<dyn Backend>, [prompt, greedy]: &[Vec<u32>; 2]) -> (Vec<f32>, Vec<u32>) {
    let mut engine = Engine::new(Model::open(dir, &|_, _| ()).unwrap(), backend, 512, 1).unwrap();
    let mut sequence = engine.start().unwrap();
    let logits = engine.forward(&mut [(&mut sequence, &prompt[..])], Wanted::All, None).unwrap();
    let logits = logits.data().to_vec();
    engine.end(sequence);
    let mut sequence = engine.start().unwrap();
    let sampling = Sampling::default();
    let mut sampler = Sampler::new(sampling.clone(), 0);
    let request = Request { prompt: prompt.clone(), max_tokens: greedy.len(), eos: Vec::new(), sampling };
    let go_on = &mut |_: Event| std::ops::ControlFlow::Continue(());
    let answer = generate(&mut engine, &mut sequence, &request, &mut sampler, go_on).unwrap();
    engine.end(sequence);
    (logits, answer.tokens)
}

fn metal(options: Options) -> Box<dyn Backend> {
    Box::new(Metal::new(Arc::new(Emulator::new(options).unwrap())))
}

#[test]
fn answers_are_the_references() {
    for dir in checkpoints() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        for prompt in prompts(&dir) {
            let start = std::time::Instant::now();
            let (logits, tokens) = answer(&dir, metal(Options::default()), &prompt);
            let took = start.elapsed();
            let (wanted, _) = answer(&dir, Box::new(Cpu::new(1).unwrap()), &prompt);
            assert_eq!(logits.len(), wanted.len());
            let worst = logits.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{name}: {} + {} tokens in {took:?}, logits differ by {worst:e}", prompt[0].len(), tokens.len());
            assert!(worst < 1e-3, "{name}: logits differ by {worst}");
            assert_eq!(tokens, prompt[1], "{name}");
        }
    }
}

#[test]
fn schedules_change_nothing() {
    for dir in checkpoints() {
        let prompt = &prompts(&dir)[0];
        let run = |order| {
            let options = Options {
                groups: order,
                threads: order,
                calls: order,
                strict: true,
                poison: true,
                ..Options::default()
            };
            let (logits, tokens) = answer(&dir, metal(options), prompt);
            (logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>(), tokens)
        };
        let forward = run(Order::Forward);
        for order in [Order::Reverse, Order::Random(1)] {
            assert!(run(order) == forward, "{}: {order:?}", dir.display());
        }
    }
}

#[test]
fn there_are_no_races() {
    for dir in checkpoints() {
        let [prompt, greedy] = &prompts(&dir)[0];
        let start = std::time::Instant::now();
        let options = Options { races: true, ..Options::default() };
        let (_, tokens) = answer(&dir, metal(options), &[prompt.clone(), greedy[..2].to_vec()]);
        println!("{}: {:?}", dir.display(), start.elapsed());
        assert_eq!(tokens, greedy[..2]);
    }
}
