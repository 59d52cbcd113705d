//! Takes tensors out of a source by name, and records what the rank owns of them.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::partition::{Group, Plan, Seat};
use crate::weights::{Matrix, Piece, Share, Source, Stored, TensorInfo, Values, scales_name, scales_shape};

/// Loads the tensors of one model.
pub struct Loader<'a> {
    source: &'a dyn Source,
    plan: &'a Plan,
    rank: usize,
    seat: Seat,
    record: Mutex<Record>,
    progress: &'a (dyn Fn(usize, usize) + Sync),
}

/// What was taken so far, and the layer that is being loaded.
#[derive(Default)]
struct Record {
    share: Share,
    layer: Option<usize>,
}

impl<'a> Loader<'a> {
    /// Loads what rank `rank` owns from `source`; `progress` is told how many layers of how many are there.
    pub fn new(
        source: &'a dyn Source,
        (plan, rank): (&'a Plan, usize),
        progress: &'a (dyn Fn(usize, usize) + Sync),
    ) -> Self {
        Self { source, plan, rank, seat: plan.seat(rank), record: Mutex::default(), progress }
    }

    /// The rank it loads for.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// What every rank owns.
    pub fn plan(&self) -> &Plan {
        self.plan
    }

    /// What the rank owns.
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// The ranks that share the layers.
    pub fn group(&self) -> &Group {
        &self.seat.group
    }

    /// Loads layer `layer` with `load`: what that takes belongs to the layer.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn layer<T>(&self, layer: usize, load: impl FnOnce() -> Result<T>) -> Result<T> {
        self.record().layer = Some(layer);
        let loaded = load()?;
        self.record().layer = None;
        let layers = &self.seat.layers;
        (self.progress)(layer + 1 - layers.start, layers.len());
        Ok(loaded)
    }

    /// Whether the tensor exists.
    pub fn has(&self, name: &str) -> bool {
        self.source.has(name)
    }

    /// The rows `rows` and columns `columns` of the matrix `name` (`[out_features, in_features]`) in its storage format.
    ///
    /// # Errors
    /// If it is missing, misshapen, or in a format that no kernel reads.
    pub fn part(&self, name: &str, shape: (usize, usize), rows: Range<usize>, columns: Range<usize>) -> Result<Matrix> {
        self.matrix(name, shape, rows, columns, false)
    }

    /// The table `name` (`[rows, columns]`) of which a few rows are read at a time.
    ///
    /// # Errors
    /// As [`Loader::part`].
    pub fn table(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
        self.matrix(name, (rows, columns), 0..rows, 0..columns, true)
    }

    fn matrix(
        &self,
        name: &str,
        (out_features, in_features): (usize, usize),
        rows: Range<usize>,
        columns: Range<usize>,
        looked_up: bool,
    ) -> Result<Matrix> {
        let matrix = self.source.part(name, (out_features, in_features), rows.clone(), columns.clone())?;
        let info = self.source.info(name, &[out_features, in_features])?;
        self.took(&info, rows, columns, looked_up);
        if let Values::Fp8 { .. } = matrix.values() {
            let [rows, columns] = scales_shape(out_features, in_features);
            let scales = self.source.info(&scales_name(name), &[rows, columns])?;
            self.took(&scales, 0..rows, 0..columns, looked_up);
        }
        Ok(matrix)
    }

    /// The tensor `name` of shape `shape`, widened to f32.
    ///
    /// # Errors
    /// If it is missing or misshapen.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let stored = self.stored(name, shape)?;
        let columns = shape.last().copied().unwrap_or(1);
        self.took(&stored.info, 0..shape.iter().product::<usize>() / columns.max(1), 0..columns, false);
        stored.to_f32()
    }

    /// The tensor `name` of shape `shape` as stored; what is taken of it is said with [`Loader::entry`].
    ///
    /// # Errors
    /// If it is missing or misshapen.
    pub fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let stored = self.source.get(name, shape)?;
        stored.info.expect_shape(shape)?;
        Ok(stored)
    }

    /// The rows `rows` and columns `columns` of matrix `index` of those that `stored` holds.
    ///
    /// # Errors
    /// If they are not matrices, or in a format that no kernel reads.
    pub fn entry(&self, stored: &Stored, index: usize, rows: Range<usize>, columns: Range<usize>) -> Result<Matrix> {
        let matrix = stored.entry(index).into_matrix()?;
        let first = index * matrix.out_features();
        self.took(&stored.info, first + rows.start..first + rows.end, columns.clone(), false);
        matrix.part(rows, columns)
    }

    /// What the rank owns of what was taken.
    pub fn share(self) -> Share {
        self.record.into_inner().unwrap_or_else(PoisonError::into_inner).share
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn took(&self, info: &TensorInfo, rows: Range<usize>, columns: Range<usize>, looked_up: bool) {
        let mut record = self.record();
        let (stride, layer) = (info.shape.last().copied().unwrap_or(1), record.layer);
        record.share.add(&info.name, Piece { rows, columns, stride, dtype: info.dtype, layer, looked_up });
    }
}

/// Refuses a source with tensors that no rank of a plan uses, but for those under the prefixes `skipped`. `whole` is all
/// that the model has.
///
/// # Errors
/// Naming the first such tensor, its file, and how many there are.
pub fn refuse_unused(source: &dyn Source, whole: &Share, skipped: &[&str]) -> Result<()> {
    let mut left = source.names();
    left.retain(|name| !whole.knows(name) && !skipped.iter().any(|prefix| name.starts_with(prefix)));
    let Some(first) = left.first() else { return Ok(()) };
    let count = left.len();
    let place = source.info(first, &[]).map_or_else(|_| String::new(), |info| format!(" in {}", info.origin));
    let error =
        format!("the checkpoint has {count} tensors this architecture does not use, the first is `{first}`{place}");
    Err(Error::msg(error)
        .hint("config.json and the weights do not belong together, or the model is a variant tbshard does not know"))
}
