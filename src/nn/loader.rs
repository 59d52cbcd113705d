//! Takes tensors out of a source by name, and records what the rank owns of them.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::partition::{Group, Plan, Seat};
use crate::weights::{Coding, Matrix, Piece, Share, Slice, Source, slices};

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
    weights: Vec<Matrix>,
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

    /// Whether norms around one are stored with the one added.
    pub fn norms_hold_one(&self) -> bool {
        self.source.kind().norms_hold_one()
    }

    /// Columns that may not be cut in the matrix `name` (`[out_features, in_features]`), where `unit` of them belong
    /// together anyway.
    ///
    /// # Errors
    /// If it is missing.
    pub fn unit(&self, name: &str, (out_features, in_features): (usize, usize), unit: usize) -> Result<usize> {
        let group = self.source.info(name, &[out_features, in_features])?.coding.map_or(1, Coding::group);
        // the least common multiple of the unit and a power of two
        Ok(unit * (group >> unit.trailing_zeros().min(group.trailing_zeros())))
    }

    /// The rows `rows` and columns `columns` of the matrix `name` in its storage format. `shape` is that of the whole
    /// tensor; all its dimensions but the last are rows.
    ///
    /// # Errors
    /// If it is missing, misshapen, or in a format that no kernel reads.
    pub fn part(&self, name: &str, shape: &[usize], rows: Range<usize>, columns: Range<usize>) -> Result<Matrix> {
        self.matrix(name, shape, rows, columns, false)
    }

    /// The table `name` (`[rows, columns]`) of which a few rows are read at a time.
    ///
    /// # Errors
    /// As [`Loader::part`].
    pub fn table(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix> {
        self.matrix(name, &[rows, columns], 0..rows, 0..columns, true)
    }

    fn matrix(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
        columns: Range<usize>,
        looked_up: bool,
    ) -> Result<Matrix> {
        let matrix = self.source.part(name, shape, rows.clone(), columns.clone())?;
        for slice in slices(self.source, name, shape, rows, columns)? {
            self.took(slice, looked_up);
        }
        if !looked_up {
            self.record().weights.push(matrix.clone());
        }
        Ok(matrix)
    }

    /// The tensor `name` of shape `shape`, widened to f32.
    ///
    /// # Errors
    /// If it is missing or misshapen.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let stored = self.source.get(name, shape)?;
        stored.info.expect_shape(shape)?;
        let columns = shape.last().copied().unwrap_or(1);
        let rows = 0..shape.iter().product::<usize>() / columns.max(1);
        self.took(Slice { info: stored.info.clone(), rows, columns: 0..columns }, false);
        stored.to_f32()
    }

    /// What the rank owns of what was taken, and the matrices among it, but for tables.
    pub fn taken(self) -> (Share, Vec<Matrix>) {
        let record = self.record.into_inner().unwrap_or_else(PoisonError::into_inner);
        (record.share, record.weights)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn took(&self, Slice { info, rows, columns }: Slice, looked_up: bool) {
        let mut record = self.record();
        let (stride, layer) = (info.shape.last().copied().unwrap_or(1), record.layer);
        record.share.add(&info.name, Piece { rows, columns, stride, dtype: info.dtype, layer, looked_up });
    }
}

/// Refuses a source with tensors that no rank of a plan uses, but for those that `skips` knows. `whole` is all that the
/// model has.
///
/// # Errors
/// Naming the first such tensor, its file, and how many there are.
pub fn refuse_unused(source: &dyn Source, whole: &Share, skips: &dyn Fn(&str) -> bool) -> Result<()> {
    let mut left = source.names();
    left.retain(|name| !whole.knows(name) && !skips(name));
    let Some(first) = left.first() else { return Ok(()) };
    let count = left.len();
    let place = source.info(first, &[]).map_or_else(|_| String::new(), |info| format!(" in {}", info.origin));
    let error =
        format!("the checkpoint has {count} tensors this architecture does not use, the first is `{first}`{place}");
    Err(Error::msg(error)
        .hint("config.json and the weights do not belong together, or the model is a variant tbshard does not know"))
}
