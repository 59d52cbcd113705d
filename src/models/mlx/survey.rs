//! Which tensors an architecture asks for: loading is tried without bytes, and what is asked for is noted.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::weights::{Matrix, Outline, Source, SourceKind, Stored, TensorInfo};

/// A source without bytes that notes names and shapes.
pub(super) struct Survey<'a> {
    outline: Outline<'a>,
    seen: Mutex<BTreeMap<String, Vec<usize>>>,
}

impl<'a> Survey<'a> {
    pub(super) fn new(source: &'a dyn Source) -> Self {
        Self { outline: Outline::new(source), seen: Mutex::default() }
    }

    /// The tensors that were asked for, by the hub's names, with the shapes they were expected to have.
    pub(super) fn seen(self) -> BTreeMap<String, Vec<usize>> {
        self.seen.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, name: &str, shape: &[usize]) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(name.to_owned(), shape.to_vec());
    }
}

impl Source for Survey<'_> {
    fn has(&self, name: &str) -> bool {
        self.outline.has(name)
    }

    fn info(&self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        self.outline.info(name, shape)
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        self.note(name, shape);
        self.outline.get(name, shape)
    }

    fn part(&self, name: &str, shape: &[usize], rows: Range<usize>, columns: Range<usize>) -> Result<Matrix> {
        self.note(name, shape);
        self.outline.part(name, shape, rows, columns)
    }

    fn kind(&self) -> SourceKind {
        self.outline.kind()
    }

    fn names(&self) -> Vec<String> {
        self.outline.names()
    }

    fn find_nan(&self, names: &[String]) -> Option<String> {
        self.outline.find_nan(names)
    }
}
