//! Matrices that a kernel finds by number: where each of them lies, in a table on the device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Metal;
use super::linear::weight;
use super::memory::Taken;
use crate::error::{Error, Result};
use crate::gpu::params::{MatrixAt, MatrixParams};
use crate::weights::Matrix;

/// The table of some matrices that are stored alike.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) format: &'static str,
    pub(super) params: MatrixParams,
    /// A [`MatrixAt`] each.
    pub(super) entries: Taken,
    // what it was made of, which keeps the weights where they are
    of: Vec<Matrix>,
}

impl Table {
    fn new(metal: &Metal, ws: &[Matrix]) -> Result<Self> {
        let mut entries = Vec::with_capacity(ws.len());
        let mut common = None;
        for w in ws {
            if w.in_features() != ws[0].in_features() {
                return Err(Error::msg("experts, or heads, of one layer have other columns"));
            }
            let weight = weight(metal, w)?;
            let MatrixParams { row, column, .. } = weight.params;
            let [values, scales, biases] = weight.regions().map(|region| region.address());
            entries.push(MatrixAt { values, scales, biases, row, column });
            let alike = (weight.format, MatrixParams { row: 0, column: 0, ..weight.params });
            let (format, params) = *common.get_or_insert(alike);
            if format != alike.0 || bytemuck::bytes_of(&params) != bytemuck::bytes_of(&alike.1) {
                return Err(Error::msg("experts, or heads, of one layer are stored in several formats or shapes"));
            }
        }
        let (format, params) = common.unwrap_or_default();
        let entries = Taken::upload(&metal.stream, bytemuck::cast_slice(&entries))?;
        Ok(Self { format, params, entries, of: ws.to_vec() })
    }

    /// Whether it was made of `ws`, as far as their first and their last say: what it was made of is still alive.
    fn is_of(&self, ws: &[Matrix]) -> bool {
        let same = |a: Option<&Matrix>, b: Option<&Matrix>| match (a, b) {
            (Some(a), Some(b)) => a.origin() == b.origin() && a.start() == b.start(),
            _ => false,
        };
        self.of.len() == ws.len() && same(self.of.first(), ws.first()) && same(self.of.last(), ws.last())
    }
}

/// Tables that were made, by where the host has their matrices.
#[derive(Debug, Default)]
pub(super) struct Tables(Mutex<HashMap<usize, Arc<Table>>>);

impl Tables {
    /// The table of `ws`; none if they are none.
    pub(super) fn of(&self, metal: &Metal, ws: &[Matrix]) -> Result<Option<Arc<Table>>> {
        if ws.is_empty() {
            return Ok(None);
        }
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = ws.as_ptr() as usize;
        if let Some(table) = tables.get(&key).filter(|table| table.is_of(ws)) {
            return Ok(Some(table.clone()));
        }
        let table = Arc::new(Table::new(metal, ws)?);
        tables.insert(key, table.clone());
        Ok(Some(table))
    }
}
