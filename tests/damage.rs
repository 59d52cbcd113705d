//! Copies of the committed checkpoints that a test may damage, and what a refusal of them has to look like.

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value};
use tbshard::backend::Cpu;
use tbshard::engine::{Engine, Wanted};
use tbshard::error::Result;
use tbshard::models::Model;
use tempfile::TempDir;

use crate::support;

pub const INDEX: &str = "model.safetensors.index.json";

/// A copy of a committed checkpoint.
pub struct Specimen {
    pub dir: TempDir,
}

/// A tensor on its own, to be changed and written back.
pub struct Plain {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Specimen {
    pub fn of(fixture: &str) -> Self {
        let dir = TempDir::new().unwrap();
        for entry in std::fs::read_dir(support::fixtures().join("tiny").join(fixture)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        // what transformers made of it is no part of the checkpoint
        std::fs::remove_file(dir.path().join("fixture.safetensors")).unwrap();
        Self { dir }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    pub fn open(&self) -> Result<Model> {
        Model::open(self.dir.path(), &|_, _| ())
    }

    /// Room for one sequence of `context` positions.
    pub fn engine(&self, context: usize) -> Engine {
        let model = self.open().unwrap_or_else(|error| panic!("{error:?}"));
        Engine::new(model, Box::new(Cpu::new(1).unwrap()), context, 1).unwrap()
    }

    /// Opens the model and runs a few tokens.
    pub fn run(&self) -> Result<Vec<f32>> {
        let mut engine = Engine::new(self.open()?, Box::new(Cpu::new(1).unwrap()), 64, 1).unwrap();
        let mut sequence = engine.start()?;
        let logits = engine.forward(&mut [(&mut sequence, &[1, 2, 3, 290])], Wanted::All, None)?;
        Ok(logits.data().to_vec())
    }

    /// The file that the index puts `tensor` in.
    pub fn file_of(&self, tensor: &str) -> String {
        let index: Value = serde_json::from_slice(&std::fs::read(self.path(INDEX)).unwrap()).unwrap();
        let file = index["weight_map"][tensor].as_str();
        file.unwrap_or_else(|| panic!("{tensor} is not in the index")).to_owned()
    }

    pub fn edit_bytes(&self, file: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.path(file)).unwrap();
        edit(&mut bytes);
        std::fs::write(self.path(file), bytes).unwrap();
    }

    /// Changes a JSON file.
    pub fn edit_json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        self.edit_bytes(file, |bytes| {
            let mut json = serde_json::from_slice(bytes).unwrap();
            edit(&mut json);
            *bytes = serde_json::to_vec(&json).unwrap();
        });
    }

    /// Changes the header of a safetensors file and leaves its data as they are.
    pub fn edit_header(&self, file: &str, edit: impl FnOnce(&mut Map<String, Value>)) {
        self.edit_bytes(file, |bytes| {
            let (json, data) = split(bytes);
            let mut header: Map<String, Value> = serde_json::from_slice(json).unwrap();
            edit(&mut header);
            *bytes = join(&serde_json::to_vec(&header).unwrap(), data);
        });
    }

    /// Changes the tensors of a file, which stays a valid one.
    pub fn edit_tensors(&self, file: &str, edit: impl FnOnce(&mut BTreeMap<String, Plain>)) {
        self.edit_bytes(file, |bytes| {
            let (_, metadata) = SafeTensors::read_metadata(bytes).unwrap();
            let mut tensors: BTreeMap<String, Plain> = SafeTensors::deserialize(bytes)
                .unwrap()
                .iter()
                .map(|(name, view)| {
                    let (dtype, shape, bytes) = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
                    (name.to_owned(), Plain { dtype, shape, bytes })
                })
                .collect();
            edit(&mut tensors);
            let views = tensors.iter().map(|(name, plain)| {
                (name.clone(), TensorView::new(plain.dtype, plain.shape.clone(), &plain.bytes).unwrap())
            });
            *bytes = safetensors::serialize(views, metadata.metadata().clone()).unwrap();
        });
    }

    /// Changes one tensor, wherever it is, and returns the name of its file.
    pub fn edit_tensor(&self, name: &str, edit: impl FnOnce(&mut Plain)) -> String {
        let file = self.file_of(name);
        self.edit_tensors(&file, |tensors| edit(tensors.get_mut(name).unwrap()));
        file
    }
}

/// The header's JSON and the data of a valid safetensors file.
pub fn split(file: &[u8]) -> (&[u8], &[u8]) {
    let len = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    file[8..].split_at(len)
}

/// A safetensors file of that header and data.
pub fn join(json: &[u8], data: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json, data].concat()
}

/// `result` is an error of one line that has all of `words`, with a hint.
#[track_caller]
pub fn refused<T>(result: Result<T>, words: &[&str]) {
    let Err(error) = result else { panic!("no error, but one with {words:?} was expected") };
    let line = error.to_string();
    assert!(!line.contains('\n') && !line.trim().is_empty(), "not one line: {line:?}");
    assert!(error.hint_text().is_some_and(|hint| !hint.trim().is_empty()), "no hint: {line}");
    for word in words {
        assert!(line.contains(word), "{word:?} is not in: {line}");
    }
}

/// As [`refused`], with `word` in the hint.
#[track_caller]
pub fn refused_with_hint<T>(result: Result<T>, words: &[&str], word: &str) {
    let Err(error) = result else { panic!("no error, but one with {words:?} was expected") };
    let hint = error.hint_text().unwrap_or_default().to_owned();
    assert!(hint.contains(word), "{word:?} is not in the hint of: {error:?}");
    refused::<T>(Err(error), words);
}
