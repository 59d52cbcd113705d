//! Tensors of the right shapes and types without their bytes: what loading would take, tried for nothing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memmap2::MmapOptions;

use super::fp8;
use super::matrix::{Matrix, Values};
use super::stored::{Dtype, Source, Stored, TensorInfo};
use crate::error::{Error, Result};

/// The tensors of another source, all zeros. They share one mapping that is never written, so they cost address space.
pub struct Outline<'a> {
    source: &'a dyn Source,
    zeros: Mutex<Bytes>,
    // scales are owned by their matrix, and most matrices of a model are of a few shapes
    scales: Mutex<BTreeMap<usize, Arc<[f32]>>>,
}

impl<'a> Outline<'a> {
    /// The outline of `source`.
    pub fn new(source: &'a dyn Source) -> Self {
        Self { source, zeros: Mutex::default(), scales: Mutex::default() }
    }

    fn zeros(&self, info: &TensorInfo) -> Result<Bytes> {
        let TensorInfo { name, origin, dtype, shape } = info;
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

    fn part(
        &self,
        name: &str,
        (out_features, in_features): (usize, usize),
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<Matrix> {
        let stored = self.get(name, &[out_features, in_features])?;
        stored.info.expect_shape(&[out_features, in_features])?;
        let scaled = fp8::scales_name(name);
        if stored.info.dtype != Dtype::Fp8 || !self.has(&scaled) {
            return stored.into_matrix()?.part(rows, columns);
        }
        let shape = fp8::scales_shape(out_features, in_features);
        self.info(&scaled, &shape)?.expect_shape(&shape)?;
        let count = shape[0] * shape[1];
        let mut known = self.scales.lock().unwrap_or_else(PoisonError::into_inner);
        let scales = Arc::clone(known.entry(count).or_insert_with(|| vec![0.0; count].into()));
        Matrix::new(out_features, in_features, Values::Fp8 { values: stored.bytes, scales })?.part(rows, columns)
    }

    fn is_invented(&self) -> bool {
        self.source.is_invented()
    }

    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn find_nan(&self, _names: &[String]) -> Option<String> {
        None
    }
}
