//! Copies of the committed checkpoints that a test may change.

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use tempfile::TempDir;

use super::files::fixtures;

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
        for entry in std::fs::read_dir(fixtures().join("tiny").join(fixture)).unwrap() {
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
    #[allow(dead_code, reason = "not every binary of tests does")]
    pub fn edit_json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        self.edit_bytes(file, |bytes| {
            let mut json = serde_json::from_slice(bytes).unwrap();
            edit(&mut json);
            *bytes = serde_json::to_vec(&json).unwrap();
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
