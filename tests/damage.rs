//! What damaged checkpoints are opened and run as, and what a refusal of them has to look like.

use serde_json::{Map, Value};
use tbshard::backend::Cpu;
use tbshard::engine::{Engine, Wanted};
use tbshard::error::Result;
use tbshard::models::Model;

pub use crate::support::specimen::{INDEX, Plain, Specimen};

impl Specimen {
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

    /// Opens the model and asks for the token after a few.
    pub fn run_greedily(&self) -> Result<u32> {
        let mut engine = Engine::new(self.open()?, Box::new(Cpu::new(1).unwrap()), 64, 1).unwrap();
        let mut sequence = engine.start()?;
        Ok(engine.next_tokens(&mut [(&mut sequence, &[1, 2, 3, 290])])?[0])
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
