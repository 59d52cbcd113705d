//! Running a model past its limits, and models of invented weights that cannot be.

use serde_json::{Value, json};
use tbshard::backend::Cpu;
use tbshard::engine::{Engine, Sequence, Wanted, score};
use tbshard::error::{Kind, Result};
use tbshard::models::Model;

use crate::damage::{Specimen, refused, refused_with_hint};
use crate::fuzz::allocations;

fn config(fixture: &str) -> Value {
    serde_json::from_slice(&std::fs::read(Specimen::of(fixture).path("config.json")).unwrap()).unwrap()
}

fn random(config: &Value, layers: Option<usize>) -> Result<Model> {
    Model::random(config, layers, 0, &|_, _| ())
}

fn forward(engine: &mut Engine, sequence: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>> {
    Ok(engine.forward(&mut [(sequence, tokens)], Wanted::Last, None)?.data().to_vec())
}

#[test]
fn a_sequence_that_outgrows_its_context() {
    for context in [1, 63, 64, 65, 128] {
        let mut engine = Specimen::of("llama").engine(context);
        let mut sequence = engine.start().unwrap();
        let words = format!("{} positions do not fit a context of {context}", context + 1);
        let too_long = forward(&mut engine, &mut sequence, &vec![5; context + 1]);
        refused_with_hint(too_long, &[&words], "--ctx");
        // the refusal changed nothing: the sequence can still be filled, and not more than that
        assert_eq!(sequence.len(), 0);
        forward(&mut engine, &mut sequence, &vec![5; context]).unwrap();
        refused(forward(&mut engine, &mut sequence, &[5]), &[&words]);
        assert_eq!(sequence.len(), context);
        engine.end(sequence);
        let mut sequence = engine.start().unwrap();
        let prompt = vec![5; context + 1];
        refused(engine.prefill(&mut sequence, &prompt, &mut |_| true), &[&words]);
    }
}

#[test]
fn a_token_outside_the_vocabulary() {
    for fixture in ["llama", "qwen3-fp8", "qwen3_5_moe"] {
        let mut engine = Specimen::of(fixture).engine(64);
        let mut sequence = engine.start().unwrap();
        for id in [300, 301, 1 << 16, i32::MAX as u32, u32::MAX] {
            let words = format!("token {id} is not in the embedding table of 300 rows");
            refused_with_hint(forward(&mut engine, &mut sequence, &[1, id]), &[&words], "tokenizer.json");
        }
        assert!(sequence.is_empty());
        let logits = forward(&mut engine, &mut sequence, &[1, 299]).unwrap();
        // a refused token leaves no trace
        let mut fresh = Specimen::of(fixture).engine(64);
        let mut sequence = fresh.start().unwrap();
        assert_eq!(forward(&mut fresh, &mut sequence, &[1, 299]).unwrap(), logits, "{fixture}");
    }
}

#[test]
fn nothing_to_run_and_no_room() {
    let mut engine = Specimen::of("llama").engine(64);
    let mut sequence = engine.start().unwrap();
    refused(engine.start(), &["all sequence slots are taken"]);
    refused(forward(&mut engine, &mut sequence, &[]), &["a run has no tokens"]);
    refused(engine.next_tokens(&mut [(&mut sequence, &[])]), &["a run has no tokens"]);
    let tokens = engine.forward(&mut [(&mut sequence, &[1])], Wanted::Token, None);
    refused_with_hint(tokens, &["tokens are wanted"], "next_tokens");
    let prefill = engine.prefill(&mut sequence, &[], &mut |_| true);
    refused_with_hint(prefill, &["the prompt has no tokens"], "--prompt");
    engine.end(sequence);
    for tokens in [&[][..], &[1]] {
        let words = format!("{} tokens are too few to score", tokens.len());
        refused(score(&mut engine, tokens, &mut |_| Ok(())), &[&words]);
    }
    // with no room at all
    let model = Specimen::of("llama").open().unwrap();
    let mut engine = Engine::new(model, Box::new(Cpu::new(1).unwrap()), 64, 0).unwrap();
    refused(engine.start(), &["all sequence slots are taken"]);
    let mut engine = Specimen::of("llama").engine(0);
    let mut sequence = engine.start().unwrap();
    refused(forward(&mut engine, &mut sequence, &[1]), &["1 positions do not fit a context of 0"]);
    engine.end(sequence);
    for context in [0, 1] {
        let mut engine = Specimen::of("llama").engine(context);
        let words = format!("a context of {context} is too small to score");
        refused_with_hint(score(&mut engine, &[1, 2], &mut |_| Ok(())), &[&words], "--ctx");
    }
}

/// A context that no memory holds is refused before anything of its length is made. (The first one needs 140 TB.)
#[test]
fn a_context_that_is_absurd() {
    for (context, slots) in
        [((1 << 38) - 64, 1), (1 << 38, 1), (1 << 20, 1 << 30), (1 << 60, 1), (usize::MAX, 1), (64, usize::MAX)]
    {
        let (model, cpu) = (Specimen::of("qwen3_5").open().unwrap(), Cpu::new(1).unwrap());
        let (result, largest) = allocations::largest(|| Engine::new(model, Box::new(cpu), context, slots).map(drop));
        refused_with_hint(result, &["positions"], "--ctx");
        assert!(largest < 1 << 20, "{slots} × {context}: {largest} bytes were reserved at once");
    }
}

#[test]
fn layers_that_a_model_does_not_have() {
    for fixture in ["llama", "qwen3_5", "qwen3_5_moe-fp8"] {
        let config = config(fixture);
        for layers in [0, 5, 1 << 40, usize::MAX] {
            let Err(error) = random(&config, Some(layers)) else { panic!("{fixture} has {layers} layers") };
            assert_eq!(error.kind(), Kind::Usage);
            refused::<()>(Err(error), &[&format!("--layers {layers} is not one of 1..=4")]);
        }
        for layers in [1, 4] {
            let model = random(&config, Some(layers)).unwrap_or_else(|error| panic!("{error:?}"));
            assert_eq!((model.geometry.layers, model.decoder.blocks.len()), (layers, layers));
        }
    }
    for config in [json!({}), json!([]), json!(null), json!({"text_config": 5}), json!({"num_hidden_layers": "4"})] {
        refused(random(&config, Some(1)), &["num_hidden_layers"]);
        refused(random(&config, None), &["config.json: there is no model_type"]);
    }
}

#[test]
fn invented_weights_that_no_memory_holds() {
    let mut config = config("llama");
    for (key, value) in [("hidden_size", 1 << 24), ("vocab_size", 1 << 24), ("head_dim", 1 << 24)] {
        config[key] = json!(value);
    }
    refused(random(&config, Some(1)), &["tensor `model.embed_tokens.weight`", "[16777216, 16777216]", "memory"]);
}
