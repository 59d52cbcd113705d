//! The embedded demo model: its logits are transformers', its stories are stories, and a newcomer sees them at once.

use std::path::Path;
use std::process::Command;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tbshard::backend::Cpu;
use tbshard::engine::{Engine, Event, Request, Sampler, Sampling, Wanted, generate};
use tbshard::models::{Blueprint, demo};
use tbshard::text::Tokenizer;

use crate::support::files::fixtures;
use crate::support::program::command;

fn engine() -> Engine {
    let model = Blueprint::demo().unwrap().load_whole(&|_, _| ()).unwrap();
    Engine::new(model, Box::new(Cpu::new(2).unwrap()), 1024, 1).unwrap()
}

/// What scripts/train_demo.py --fixture wrote: stories that were never trained on, and what each costs the grammar.
fn stories() -> Vec<Value> {
    let text = std::fs::read(fixtures().join("demo/stories.json")).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()["stories"].as_array().unwrap().clone()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn logits_are_those_of_transformers() {
    let mut engine = engine();
    let bytes = std::fs::read(fixtures().join("demo/logits.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for (i, story) in stories().iter().take(tensors.len()).enumerate() {
        let view = tensors.tensor(&format!("s{i}.logits")).unwrap();
        let theirs: Vec<f32> = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let tokens = [ids(&story["prompt"]), ids(&story["story"])].concat();
        let mut sequence = engine.start().unwrap();
        let ours = engine.forward(&mut [(&mut sequence, &tokens[..view.shape()[0]])], Wanted::All, None).unwrap();
        engine.end(sequence);
        let worst = ours.data().iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("story {i}: |Δ| {worst:.1e}");
        assert_eq!(ours.data().len(), theirs.len());
        assert!(worst < 2e-3, "{worst}");
    }
}

#[test]
fn perplexity_is_near_the_entropy_of_the_grammar() {
    let mut engine = engine();
    let (mut nll, mut bound, mut count) = (0.0, 0.0, 0);
    for story in stories() {
        let (prompt, answer) = (ids(&story["prompt"]), ids(&story["story"]));
        let tokens = [&prompt[..], &answer].concat();
        let mut sequence = engine.start().unwrap();
        let logits = engine.forward(&mut [(&mut sequence, &tokens[..])], Wanted::All, None).unwrap();
        engine.end(sequence);
        for (at, target) in answer.iter().enumerate() {
            let row = logits.row(prompt.len() + at - 1);
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|logit| f64::from(logit - max).exp()).sum();
            nll += sum.ln() - f64::from(row[*target as usize] - max);
        }
        bound += story["nats"].as_f64().unwrap();
        count += answer.len();
    }
    let (perplexity, bound) = ((nll / f64::from(count as u32)).exp(), (bound / f64::from(count as u32)).exp());
    println!("perplexity {perplexity:.4} over {count} tokens, the grammar's own {bound:.4}");
    assert!(perplexity > 0.97 * bound, "{perplexity} is better than possible: the bound is wrong");
    assert!(perplexity < 1.10 * bound, "{perplexity} {bound}");
}

#[test]
fn sampled_stories_parse() {
    let mut engine = engine();
    let tokenizer = Tokenizer::from_bytes(demo::TOKENIZER).unwrap();
    let heroes = ["fox", "hen", "dragon", "queen", "robot", "mouse", "wizard", "bear", "owl", "girl"];
    let defaults: Value = serde_json::from_str(demo::GENERATION).unwrap();
    let number = |key: &str| defaults[key].as_f64().unwrap() as f32;
    let (temperature, top_p, top_k) = (number("temperature"), number("top_p"), number("top_k") as usize);
    let mut told = Vec::new();
    for seed in 0..50 {
        let hero = heroes[seed % heroes.len()];
        let article = if hero == "owl" { "an" } else { "a" };
        let text =
            format!("<|im_start|>user\nTell me a story about {article} {hero}<|im_end|>\n<|im_start|>assistant\n");
        let request = Request {
            prompt: tokenizer.encode(&text, false).unwrap(),
            max_tokens: 400,
            eos: ids(&defaults["eos_token_id"]),
            sampling: Sampling { temperature, top_p, top_k, seed: seed as u64, ..Sampling::default() },
        };
        let mut sequence = engine.start().unwrap();
        let mut sampler = Sampler::new(request.sampling.clone(), 0);
        let on = &mut |_: Event| std::ops::ControlFlow::Continue(());
        let story = generate(&mut engine, &mut sequence, &request, &mut sampler, on).unwrap();
        engine.end(sequence);
        told.push(json!({"text": tokenizer.decode(&story.tokens, true).unwrap(), "hero": hero}));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), Value::from(told).to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/demo_text.py");
    let graded = Command::new("python3").arg(script).arg("parse").arg(file.path()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&graded.stdout), String::from_utf8_lossy(&graded.stderr));
    println!("{out}{err}");
    assert!(graded.status.success(), "{out}{err}");
}

#[test]
fn a_newcomer_is_told_a_story() {
    let output = command(&["generate"]).output().unwrap();
    assert!(output.status.success());
    let (story, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(story.ends_with("The end."), "{story}");
    let lines: Vec<&str> = told.lines().take_while(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 4, "{told}");
    assert!(lines.iter().all(|line| line.len() <= 80), "{told}");
    assert!(!story.contains('\x1b') && !told.contains('\x1b'), "colour in a pipe");
    let again = command(&["generate", "--quiet"]).output().unwrap();
    assert!(again.stderr.is_empty());
    assert_eq!(String::from_utf8(again.stdout).unwrap(), story, "the same command gives the same answer");
}

#[test]
fn it_answers_small_questions() {
    let cases = [
        ("What is 2 plus 3?", "5"),
        ("What is the opposite of hot?", "cold"),
        ("What colour is the sky?", "blue"),
        ("What does a cow say?", "moo"),
    ];
    for (question, answer) in cases {
        let output = command(&["generate", "-q", "--temp", "0", "--prompt", question]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(answer), "{question} {text}");
    }
}

#[test]
fn chat_greets() {
    let output = command(&["chat"]).output().unwrap();
    assert!(output.status.success());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("Hello!"), "{told}");
    assert!(told.lines().all(|line| line.chars().count() <= 80), "{told}");
}

#[test]
fn the_model_stays_small() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let sizes = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    assert!(sizes.sum::<u64>() <= 8_000_000);
}
