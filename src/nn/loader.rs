//! Takes tensors out of a source by name, and knows in the end which ones nobody took.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::weights::{Matrix, Source, Stored, Values};

/// Loads the tensors of one model.
pub struct Loader<'a> {
    source: &'a dyn Source,
    taken: Mutex<BTreeSet<String>>,
    progress: &'a (dyn Fn(usize, usize) + Sync),
}

impl<'a> Loader<'a> {
    /// Loads from `source`; `progress` is told how many layers of how many are there.
    pub fn new(source: &'a dyn Source, progress: &'a (dyn Fn(usize, usize) + Sync)) -> Self {
        Self { source, taken: Mutex::default(), progress }
    }

    /// Says that `done` of `layers` layers are loaded.
    pub fn report(&self, done: usize, layers: usize) {
        (self.progress)(done, layers);
    }

    /// Whether the tensor exists.
    pub fn has(&self, name: &str) -> bool {
        self.source.has(name)
    }

    /// The matrix `name` (`[out_features, in_features]`) in its storage format.
    ///
    /// # Errors
    /// If it is missing, misshapen, or in a format that no kernel reads.
    pub fn matrix(&self, name: &str, out_features: usize, in_features: usize) -> Result<Matrix> {
        self.take(name);
        let matrix = self.source.matrix(name, out_features, in_features)?;
        if let Values::Fp8 { .. } = matrix.values() {
            self.take(&format!("{name}_scale_inv"));
        }
        Ok(matrix)
    }

    /// The tensor `name` of shape `shape`, widened to f32.
    ///
    /// # Errors
    /// If it is missing or misshapen.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.stored(name, shape)?.to_f32()
    }

    /// The tensor `name` of shape `shape` as stored.
    ///
    /// # Errors
    /// If it is missing or misshapen.
    pub fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        self.take(name);
        let stored = self.source.get(name, shape)?;
        stored.expect_shape(shape)?;
        Ok(stored)
    }

    /// The names of the tensors that were taken.
    pub fn taken(&self) -> Vec<String> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Refuses a checkpoint with tensors that nobody took, but for those under the prefixes `skipped`.
    ///
    /// # Errors
    /// Naming the first such tensor, its file, and how many there are.
    pub fn finish(&self, skipped: &[&str]) -> Result<()> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = self.source.names();
        left.retain(|name| !taken.contains(name) && !skipped.iter().any(|prefix| name.starts_with(prefix)));
        let Some(first) = left.first() else { return Ok(()) };
        let count = left.len();
        let place =
            self.source.get(first, &[]).map_or_else(|_| String::new(), |stored| format!(" in {}", stored.origin));
        let error =
            format!("the checkpoint has {count} tensors this architecture does not use, the first is `{first}`{place}");
        Err(Error::msg(error).hint(
            "config.json and the weights do not belong together, or the model is a variant tbshard does not know",
        ))
    }

    fn take(&self, name: &str) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
    }
}
