//! The config.json of every fixture with random values in it, alone, with the fixture's weights, and with invented ones.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use tbshard::backend::Cpu;
use tbshard::engine::{Engine, Wanted};
use tbshard::models::{Model, read_config};

use super::{Outcome, check_refusal, fuzz, watch};
use crate::damage::Specimen;
use crate::support::files;

/// No size of a config is larger.
const MAX_SIZE: usize = 1 << 24;
/// What configs call the number of positions.
const CONTEXT: [&str; 2] = ["max_position_embeddings", "model_max_length"];
/// Parts of a config that are about something else.
const ASIDE: [&str; 2] = ["/vision_config", "/quantization_config"];

#[derive(Debug, Clone)]
enum Change {
    /// Another value.
    Set(Index, Value),
    /// A key or an entry is left out.
    Drop(Index),
    /// Two values change places.
    Swap(Index, Index),
    /// One number is multiplied and another divided: products of both stay what they are.
    Trade(Index, Index, u64),
}

fn value() -> impl Strategy<Value = Value> {
    let special = vec![
        json!(null),
        json!(true),
        json!(false),
        json!(-1),
        json!(0.5),
        json!(1e300),
        json!(-1e300),
        json!(1e18),
        json!(1_000_000_000_000_000_000_u64),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("silu"),
        json!("full_attention"),
        json!("64"),
        json!([]),
        json!([0]),
        json!({}),
        json!({"rope_type": "default", "rope_theta": 1.0}),
        json!({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8}),
    ];
    let powers = (0..64_u32, -1..2_i64).prop_map(|(exponent, by)| json!((1_u64 << exponent).wrapping_add_signed(by)));
    prop_oneof![
        2 => prop::sample::select(special),
        3 => (0..70_u64).prop_map(|n| json!(n)),
        2 => powers,
        1 => any::<f64>().prop_map(|x| json!(x)),
        1 => any::<f32>().prop_map(|x| json!(x)),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (any::<Index>(), value()).prop_map(|(at, value)| Change::Set(at, value)),
        1 => any::<Index>().prop_map(Change::Drop),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Change::Swap(a, b)),
        2 => (any::<Index>(), any::<Index>(), 2..5_u64).prop_map(|(a, b, by)| Change::Trade(a, b, by)),
    ]
}

/// The pointers to all values, and to the whole numbers among them.
fn pointers(value: &Value, at: &str, all: &mut Vec<String>, numbers: &mut Vec<String>) {
    let mut inner = |key: &str, value: &Value| {
        let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        if !ASIDE.contains(&at.as_str()) {
            all.push(at.clone());
            numbers.extend(value.is_u64().then(|| at.clone()));
            pointers(value, &at, all, numbers);
        }
    };
    match value {
        Value::Object(table) => table.iter().for_each(|(key, value)| inner(key, value)),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, value)| inner(&i.to_string(), value)),
        _ => {}
    }
}

fn remove(config: &mut Value, pointer: &str) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match config.pointer_mut(parent) {
        Some(Value::Object(table)) => drop(table.shift_remove(key)),
        Some(Value::Array(list)) => drop(list.remove(key.parse().unwrap())),
        _ => {}
    }
}

fn apply(config: &mut Value, change: &Change) {
    let (mut all, mut numbers) = (Vec::new(), Vec::new());
    pointers(config, "", &mut all, &mut numbers);
    if all.is_empty() {
        return;
    }
    let pick = |at: &Index, of: &[String]| of[at.index(of.len())].clone();
    match change {
        Change::Set(at, value) => *config.pointer_mut(&pick(at, &all)).unwrap() = value.clone(),
        Change::Drop(at) => remove(config, &pick(at, &all)),
        Change::Swap(a, b) => {
            let (a, b) = (pick(a, &all), pick(b, &all));
            let [one, two] = [&a, &b].map(|at| config.pointer(at).unwrap().clone());
            *config.pointer_mut(&a).unwrap() = two;
            // the first may have held the second
            config.pointer_mut(&b).map(|b| *b = one).unwrap_or_default();
        }
        Change::Trade(a, b, by) if !numbers.is_empty() => {
            let (a, b) = (pick(a, &numbers), pick(b, &numbers));
            let number = |at: &str, config: &Value| config.pointer(at).unwrap().as_u64().unwrap();
            *config.pointer_mut(&a).unwrap() = json!(number(&a, config).saturating_mul(*by));
            *config.pointer_mut(&b).unwrap() = json!(number(&b, config) / by);
        }
        Change::Trade(..) => {}
    }
}

/// The committed fixtures with their configs.
fn fixtures() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(files::fixtures().join("tiny")).unwrap() {
        let path = entry.unwrap().path();
        let config = serde_json::from_slice(&std::fs::read(path.join("config.json")).unwrap()).unwrap();
        found.push((path.file_name().unwrap().to_string_lossy().into_owned(), config));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(found.len() >= 16);
    found
}

/// The number of a fixture, and its config after some changes.
fn damaged() -> impl Strategy<Value = (usize, Value)> {
    let configs = fixtures();
    (0..configs.len(), prop::collection::vec(change(), 0..4)).prop_map(move |(fixture, changes)| {
        let mut config = configs[fixture].1.clone();
        changes.iter().for_each(|change| apply(&mut config, change));
        (fixture, config)
    })
}

/// Runs a few tokens together and then one more, which may fail but not panic.
fn run(model: Model) -> Outcome {
    let vocab = model.geometry.vocab as u32;
    let mut engine = Engine::new(model, Box::new(Cpu::new(1).unwrap()), 64, 1).unwrap();
    let mut sequence = engine.start().unwrap();
    for tokens in [&[0, vocab / 2, vocab - 1][..], &[0]] {
        match engine.forward(&mut [(&mut sequence, tokens)], Wanted::All, None) {
            Ok(logits) => prop_assert_eq!((logits.rows(), logits.cols()), (tokens.len(), vocab as usize)),
            Err(error) => return check_refusal(&error),
        }
    }
    Ok(true)
}

#[test]
fn configs_are_refused_or_sane() {
    fuzz(0.1, damaged(), |(_, config)| match watch(1 << 16, || read_config(&config))? {
        Ok(architecture) => {
            let geometry = architecture.geometry();
            for size in [geometry.layers, geometry.hidden, geometry.vocab, geometry.context] {
                prop_assert!((1..=MAX_SIZE).contains(&size), "{geometry:?}");
            }
            Ok(true)
        }
        Err(error) => {
            prop_assert!(error.to_string().starts_with("config.json: "), "{error:?}");
            check_refusal(&error)
        }
    });
}

#[test]
fn configs_that_are_not_the_weights_are_refused_or_run() {
    let specimens: Vec<Specimen> = fixtures().iter().map(|(name, _)| Specimen::of(name)).collect();
    fuzz(0.2, damaged(), |(fixture, config)| {
        let specimen = &specimens[fixture];
        std::fs::write(specimen.path("config.json"), config.to_string()).unwrap();
        match watch(1 << 20, || specimen.open())? {
            Ok(model) => run(model),
            Err(error) => check_refusal(&error),
        }
    });
}

/// Whether a model of one layer has few enough weights to be invented for every case.
fn is_small(config: &Value) -> bool {
    let (mut all, mut numbers) = (Vec::new(), Vec::new());
    pointers(config, "", &mut all, &mut numbers);
    let most = |at: &str| match at.rsplit('/').next() {
        Some("vocab_size") => 512,
        Some(key) if key.ends_with("_id") || CONTEXT.contains(&key) || key == "rope_theta" => u64::MAX,
        _ => 96,
    };
    numbers.iter().all(|at| config.pointer(at).and_then(Value::as_u64).is_some_and(|number| number <= most(at)))
}

#[test]
fn shapes_that_nobody_has_are_refused_or_run() {
    let small = damaged().prop_filter("a large model", |(_, config)| is_small(config));
    fuzz(0.15, small, |(_, config)| match watch(1 << 24, || Model::random(&config, None, 0, &|_, _| ()))? {
        Ok(model) => run(model),
        Err(error) => check_refusal(&error),
    });
}
