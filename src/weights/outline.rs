//! Tensors of the right shapes and types without their bytes: what loading would take, tried for nothing.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use memmap2::MmapOptions;

use super::stored::{Source, SourceKind, Stored, TensorInfo};
use crate::error::{Error, Result};

/// The tensors of another source, all zeros. They share one mapping that is never written, so they cost address space.
pub struct Outline<'a> {
    source: &'a dyn Source,
    zeros: Mutex<Bytes>,
}

impl<'a> Outline<'a> {
    /// The outline of `source`.
    pub fn new(source: &'a dyn Source) -> Self {
        Self { source, zeros: Mutex::default() }
    }

    fn zeros(&self, info: &TensorInfo) -> Result<Bytes> {
        let TensorInfo { name, origin, dtype, shape, .. } = info;
        let error = || {
            let error = Error::msg(format!("{origin}: there is no room for tensor `{name}` of shape {shape:?}"));
            error.hint("config.json asks for more than this machine can address")
        };
        let len = shape.iter().try_fold(dtype.width(), |len, n| len.checked_mul(*n)).ok_or_else(error)?;
        let mut zeros = self.zeros.lock().unwrap_or_else(PoisonError::into_inner);
        if zeros.len() < len {
            let map = MmapOptions::new().len(len).no_reserve_swap().map_anon();
            *zeros = Bytes::from_owner(map.and_then(memmap2::MmapMut::make_read_only).map_err(|_| error())?);
        }
        Ok(zeros.slice(..len))
    }
}

impl Source for Outline<'_> {
    fn has(&self, name: &str) -> bool {
        self.source.has(name)
    }

    fn info(&self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        self.source.info(name, shape)
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let info = self.info(name, shape)?;
        Ok(Stored { bytes: self.zeros(&info)?, info })
    }

    fn kind(&self) -> SourceKind {
        self.source.kind()
    }

    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn find_nan(&self, _names: &[String]) -> Option<String> {
        None
    }
}
