//! A directory of shards with an index, damaged in every part.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tbshard::weights::{Checkpoint, Source};
use tempfile::TempDir;

use super::mutation::{Mutation, mutation};
use super::{Outcome, check_refusal, fuzz, watch};
use crate::damage::INDEX;

const FILES: [&str; 3] = ["a.safetensors", "b.safetensors", "c.safetensors"];
/// What an index may call a file.
const NAMES: [&str; 9] = [
    "a.safetensors",
    "b.safetensors",
    "c.safetensors",
    "d.safetensors",
    "../a.safetensors",
    "",
    ".",
    "/dev/zero",
    "sub",
];

#[derive(Debug, Clone)]
enum Damage {
    /// A shard's bytes.
    Shard(usize, Mutation),
    /// The index's text.
    Text(Mutation),
    /// A tensor is listed in another file.
    Move(Index, &'static str),
    /// A tensor is listed that is nowhere.
    List(String, &'static str),
    /// A tensor is not listed.
    Unlist(Index),
    /// A shard is gone, or there twice.
    Remove(usize),
    Copy(usize, &'static str),
    RemoveIndex,
}

fn damage() -> impl Strategy<Value = Damage> {
    let file = || 0..FILES.len();
    let name = || prop::sample::select(&NAMES[..]);
    prop_oneof![
        4 => (file(), mutation()).prop_map(|(file, mutation)| Damage::Shard(file, mutation)),
        3 => mutation().prop_map(Damage::Text),
        2 => (any::<Index>(), name()).prop_map(|(tensor, file)| Damage::Move(tensor, file)),
        1 => (".{0,3}", name()).prop_map(|(tensor, file)| Damage::List(tensor, file)),
        1 => any::<Index>().prop_map(Damage::Unlist),
        1 => file().prop_map(Damage::Remove),
        1 => (file(), prop::sample::select(&NAMES[..4])).prop_map(|(file, name)| Damage::Copy(file, name)),
        1 => Just(Damage::RemoveIndex),
    ]
}

/// Six tensors in three files.
fn intact() -> (BTreeMap<String, Vec<u8>>, Value) {
    let (mut files, mut map) = (BTreeMap::new(), json!({}));
    for (i, file) in FILES.iter().enumerate() {
        let tensors = [(format!("x{i}"), Dtype::BF16, vec![3, 2]), (format!("y{i}"), Dtype::I32, vec![3])];
        let bytes = vec![i as u8; 12];
        let views = tensors.iter().map(|(name, dtype, shape)| {
            map[name] = json!(file);
            (name.clone(), TensorView::new(*dtype, shape.clone(), &bytes).unwrap())
        });
        files.insert((*file).to_owned(), safetensors::serialize(views, None).unwrap());
    }
    (files, json!({"metadata": {"total_size": 72}, "weight_map": map}))
}

/// Writes the damaged files to `dir` and returns the index as it is then.
fn write(damages: &[Damage], dir: &Path) -> Option<Vec<u8>> {
    let (mut files, mut index) = intact();
    let mut text_damage = Vec::new();
    let mut has_index = true;
    for damage in damages {
        let map = index["weight_map"].as_object_mut().unwrap();
        let tensor = |at: &Index, map: &serde_json::Map<String, Value>| {
            (!map.is_empty()).then(|| map.keys().nth(at.index(map.len())).unwrap().clone())
        };
        match damage {
            Damage::Shard(file, mutation) => {
                files.entry(FILES[*file].to_owned()).and_modify(|bytes| mutation.apply(bytes));
            }
            Damage::Text(mutation) => text_damage.push(mutation),
            Damage::Move(at, file) => drop(tensor(at, map).and_then(|name| map.insert(name, json!(file)))),
            Damage::List(name, file) => drop(map.insert(name.clone(), json!(file))),
            Damage::Unlist(at) => drop(tensor(at, map).and_then(|name| map.shift_remove(&name))),
            Damage::Remove(file) => drop(files.remove(FILES[*file])),
            Damage::Copy(file, name) => {
                let bytes = files.get(FILES[*file]).cloned();
                files.extend(bytes.map(|bytes| ((*name).to_owned(), bytes)));
            }
            Damage::RemoveIndex => has_index = false,
        }
    }
    for (name, bytes) in files {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    std::fs::create_dir(dir.join("sub")).unwrap();
    has_index.then(|| {
        let mut text = index.to_string().into_bytes();
        for mutation in text_damage {
            match mutation {
                Mutation::Flip(..) | Mutation::Truncate(_) | Mutation::Append(_) => mutation.apply(&mut text),
                _ => mutation.apply_to_json(&mut text),
            }
        }
        std::fs::write(dir.join(INDEX), &text).unwrap();
        text
    })
}

/// The part of an index that counts.
#[derive(Debug, serde::Deserialize)]
struct Listed {
    weight_map: BTreeMap<String, String>,
}

/// Every tensor has the bytes that the `safetensors` crate finds under its name in the file it is said to be from.
fn check(checkpoint: &Checkpoint, index: Option<Vec<u8>>) -> Outcome {
    let names = checkpoint.names();
    if let Some(text) = index {
        let index: Listed = serde_json::from_slice(&text).unwrap();
        prop_assert!(names.iter().eq(index.weight_map.keys()), "{:?} are not those of {:?}", names, index);
    }
    for name in &names {
        prop_assert!(checkpoint.has(name));
        let stored = match checkpoint.get(name, &[]) {
            Ok(stored) => stored,
            Err(error) => {
                prop_assert!(error.to_string().contains(&format!("tensor `{name}` is stored as")), "{error:?}");
                check_refusal(&error)?;
                continue;
            }
        };
        let values: usize = stored.info.shape.iter().product();
        prop_assert_eq!(values * stored.info.dtype.width(), stored.bytes.len());
        let file = std::fs::read(stored.info.origin.trim_matches('`')).unwrap();
        match SafeTensors::deserialize(&file) {
            Ok(tensors) => prop_assert_eq!(tensors.tensor(name).unwrap().data(), &stored.bytes[..]),
            Err(error) => prop_assert!(error.to_string().contains("duplicate field"), "{error}"),
        }
    }
    prop_assert_eq!(checkpoint.digest(b"").len(), 64);
    Ok(true)
}

#[test]
fn damaged_checkpoints_are_refused_or_true() {
    fuzz(0.2, prop::collection::vec(damage(), 0..4), |damages| {
        let dir = TempDir::new().unwrap();
        let index = write(&damages, dir.path());
        match watch(1 << 16, || Checkpoint::open(dir.path()))? {
            Ok(checkpoint) => check(&checkpoint, index),
            Err(error) if damages.is_empty() => Err(TestCaseError::fail(format!("{error:?}"))),
            Err(error) => check_refusal(&error),
        }
    });
}
