//! Which tensors a model is made of: loading is tried without bytes, and what is looked at is noted.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::outline::Outline;
use super::stored::{Source, SourceKind, Stored, TensorInfo};
use crate::error::Result;

/// A source without bytes that notes every stored tensor.
pub struct Listing<'a> {
    outline: Outline<'a>,
    seen: Mutex<BTreeMap<String, TensorInfo>>,
}

impl<'a> Listing<'a> {
    /// Notes what is taken from `source`.
    pub fn new(source: &'a dyn Source) -> Self {
        Self { outline: Outline::new(source), seen: Mutex::default() }
    }

    /// All that was looked at, by the names that it is stored under.
    pub fn seen(self) -> Vec<TensorInfo> {
        self.seen.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
    }
}

impl Source for Listing<'_> {
    fn has(&self, name: &str) -> bool {
        self.outline.has(name)
    }

    fn info(&self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        let info = self.outline.info(name, shape)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.entry(info.name.clone()).or_insert_with(|| info.clone());
        Ok(info)
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        self.info(name, shape)?;
        self.outline.get(name, shape)
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
