//! Takes tensors out of a source by name, and knows in the end which ones nobody took.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::partition::{Group, Plan, Seat};
use crate::weights::{Matrix, Source, Stored, Values};

/// Loads the tensors of one model.
pub struct Loader<'a> {
    source: &'a dyn Source,
    plan: &'a Plan,
    rank: usize,
    seat: Seat,
    taken: Mutex<BTreeSet<String>>,
    bytes: AtomicUsize,
    progress: &'a (dyn Fn(usize, usize) + Sync),
}

impl<'a> Loader<'a> {
    /// Loads what rank `rank` owns from `source`; `progress` is told how many layers of how many are there.
    pub fn new(
        source: &'a dyn Source,
        (plan, rank): (&'a Plan, usize),
        progress: &'a (dyn Fn(usize, usize) + Sync),
    ) -> Self {
        let seat = plan.seat(rank);
        Self { source, plan, rank, seat, taken: Mutex::default(), bytes: AtomicUsize::new(0), progress }
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

    /// Bytes of weights that the rank owns so far.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Says that `done` of `layers` layers are loaded.
    pub fn report(&self, done: usize, layers: usize) {
        (self.progress)(done, layers);
    }

    /// Whether the tensor exists.
    pub fn has(&self, name: &str) -> bool {
        self.source.has(name)
    }

    /// The rows `rows` and columns `columns` of the matrix `name` (`[out_features, in_features]`) in its storage format.
    ///
    /// # Errors
    /// If it is missing, misshapen, or in a format that no kernel reads.
    pub fn part(
        &self,
        name: &str,
        (out_features, in_features): (usize, usize),
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<Matrix> {
        self.take(name);
        let matrix = self.source.matrix(name, out_features, in_features)?;
        if let Values::Fp8 { .. } = matrix.values() {
            self.take(&format!("{name}_scale_inv"));
        }
        let part = matrix.part(rows, columns)?;
        self.count(part.bytes());
        Ok(part)
    }

    /// The table `name` (`[rows, columns]`) of which a few rows are read at a time, so that owning it costs nothing.
    ///
    /// # Errors
    /// As [`Loader::part`].
    pub fn table(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
        self.take(name);
        self.source.matrix(name, rows, columns)
    }

    /// The tensor `name` of shape `shape`, widened to f32.
    ///
    /// # Errors
    /// If it is missing or misshapen.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let stored = self.stored(name, shape)?;
        self.count(stored.bytes.len());
        stored.to_f32()
    }

    /// The tensor `name` of shape `shape` as stored; what is cut out of it is counted with [`Loader::own`].
    ///
    /// # Errors
    /// If it is missing or misshapen.
    pub fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        self.take(name);
        let stored = self.source.get(name, shape)?;
        stored.expect_shape(shape)?;
        Ok(stored)
    }

    /// Counts a matrix that was cut out of a stored tensor as owned.
    pub fn own(&self, matrix: Matrix) -> Matrix {
        self.count(matrix.bytes());
        matrix
    }

    /// The names of the tensors that were taken.
    pub fn taken(&self) -> Vec<String> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Refuses a checkpoint with tensors that nobody took, but for those under the prefixes `skipped`. A stage of a
    /// pipeline cannot know which of the other names are right, so it refuses none.
    ///
    /// # Errors
    /// Naming the first such tensor, its file, and how many there are.
    pub fn finish(&self, skipped: &[&str]) -> Result<()> {
        if !(self.seat.first && self.seat.last) {
            return Ok(());
        }
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
