//! Which tensors a model is made of: loading is tried without bytes, and what is taken is noted.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::matrix::Matrix;
use super::outline::Outline;
use super::stored::{Source, SourceKind, Stored, TensorInfo};
use crate::error::Result;

/// A source without bytes that notes what it is asked for.
pub struct Listing<'a> {
    outline: Outline<'a>,
    noted: Mutex<Noted>,
}

/// What was taken of a source.
#[derive(Debug, Default)]
pub struct Noted {
    /// What an architecture asked for, by the hub's names, with the shapes that it expected.
    pub asked: BTreeMap<String, Vec<usize>>,
    /// All tensors that this is made of, scales too, by the names that they are stored under.
    pub stored: BTreeMap<String, TensorInfo>,
}

impl<'a> Listing<'a> {
    /// Notes what is taken from `source`.
    pub fn new(source: &'a dyn Source) -> Self {
        Self { outline: Outline::new(source), noted: Mutex::default() }
    }

    /// What was noted.
    pub fn noted(self) -> Noted {
        self.noted.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Listing<'_> {
    fn has(&self, name: &str) -> bool {
        self.outline.has(name)
    }

    fn info(&self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        let info = self.outline.info(name, shape)?;
        self.note().stored.entry(info.name.clone()).or_insert_with(|| info.clone());
        Ok(info)
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        self.info(name, shape)?;
        self.note().asked.insert(name.to_owned(), shape.to_vec());
        self.outline.get(name, shape)
    }

    fn part(&self, name: &str, shape: &[usize], rows: Range<usize>, columns: Range<usize>) -> Result<Matrix> {
        self.note().asked.insert(name.to_owned(), shape.to_vec());
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
