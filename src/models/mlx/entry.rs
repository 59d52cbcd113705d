//! One tensor of an MLX checkpoint: where its values come from, and the making of any of its rows.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::weights::{
    Codes, Coding, Dtype, NewTensor, Source, TensorInfo, narrow, quantise, round_to, widen, widened_type,
};

/// A tensor as MLX has it, with its scales and biases if it is quantised.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// MLX's name.
    pub(super) name: String,
    /// MLX's shape, of values.
    pub(super) shape: Vec<usize>,
    /// The type of its values, or of what they were and of the scales.
    pub(super) dtype: Dtype,
    /// How it is quantised.
    pub(super) coding: Option<Coding>,
    /// The type that the source has it in.
    pub(super) stored: Dtype,
    pub(super) origin: Origin,
}

/// Where values come from.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// A tensor of the source that is small and taken whole.
    Whole { name: String, shape: Vec<usize>, add_one: bool },
    /// Rows of matrices, one run below the other.
    Rows(Vec<Run>),
}

/// A run of rows of a matrix of the source.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) name: String,
    /// Of the whole tensor there; all dimensions but the last are rows.
    pub(super) shape: Vec<usize>,
    pub(super) rows: Range<usize>,
}

impl Entry {
    /// Values of a row.
    pub(super) fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows: all dimensions but the last.
    pub(super) fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Bytes of `rows` rows of `columns` columns: of values or codes, of scales, and of biases.
    pub(super) fn sizes(&self, rows: usize, columns: usize) -> [usize; 3] {
        let Some(coding) = self.coding else { return [rows * columns * self.dtype.width(), 0, 0] };
        let scales = rows * columns / coding.group() * scale_type(coding, self.dtype).width();
        let biases = if coding.is_affine() { scales } else { 0 };
        [rows * columns * coding.bits() / 8, scales, biases]
    }

    /// Bytes that `rows` of its rows have in the source.
    pub(super) fn source_bytes(&self, rows: usize) -> u64 {
        rows as u64 * self.columns() as u64 * self.stored.width() as u64
    }

    /// The tensors of the checkpoint that it becomes.
    pub(super) fn tensors(&self) -> Vec<NewTensor> {
        let tensor = |name: String, dtype: Dtype, columns: usize| {
            let mut shape = self.shape.clone();
            if let Some(last) = shape.last_mut() {
                *last = columns;
            }
            NewTensor { name, dtype, shape }
        };
        let columns = self.columns();
        let Some(coding) = self.coding else { return vec![tensor(self.name.clone(), self.dtype, columns)] };
        let mut all = vec![tensor(self.name.clone(), Dtype::U32, coding.words(columns))];
        for kind in coding.companions() {
            let (dtype, groups) = (scale_type(coding, self.dtype), columns / coding.group());
            all.push(tensor(format!("{}.{kind}", self.module()), dtype, groups));
        }
        all
    }

    /// The module that it is the weight of, which is what config.json names.
    pub(super) fn module(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
    }

    /// Rows that are worth a thread's while and fit in its memory.
    pub(super) fn rows_at_once(&self) -> usize {
        const VALUES: usize = 1 << 19;
        match self.origin {
            Origin::Whole { .. } => self.rows(),
            Origin::Rows(_) => (VALUES / self.columns().max(1)).max(1),
        }
    }

    /// Makes the rows `rows` of the columns `columns`, which are whole groups; of an [`Origin::Whole`] all there are. `out`
    /// has the [`Entry::sizes`] of that; `widened` is memory to work in.
    ///
    /// # Errors
    /// Naming the tensor that is missing, or has a value that cannot be quantised.
    pub(super) fn make(
        &self,
        source: &dyn Source,
        rows: Range<usize>,
        columns: Range<usize>,
        widened: &mut Vec<f32>,
        out: Codes<'_>,
    ) -> Result<()> {
        widened.clear();
        match &self.origin {
            Origin::Whole { name, shape, add_one } => {
                let stored = source.get(name, shape)?;
                stored.info.expect_shape(shape)?;
                *widened = stored.to_f32()?;
                if *add_one {
                    widened.iter_mut().for_each(|value| *value += 1.0);
                    round_to(widened, stored.info.dtype);
                }
                round_to(widened, self.dtype);
            }
            Origin::Rows(runs) => {
                let mut first = 0;
                for run in runs {
                    let part = overlap(&rows, &(first..first + run.rows.len()));
                    if !part.is_empty() {
                        let there = |row: usize| row - first + run.rows.start;
                        let (start, end) = (there(part.start), there(part.end));
                        let matrix = source.part(&run.name, &run.shape, start..end, columns.clone())?;
                        widen(&matrix, self.dtype, widened)?;
                    }
                    first += run.rows.len();
                }
            }
        }
        let Some(coding) = self.coding else {
            narrow(widened, self.dtype, out.codes);
            return Ok(());
        };
        quantise(coding, self.dtype, widened, out).map_err(|at| {
            let (row, column) = (rows.start + at / columns.len(), columns.start + at % columns.len());
            self.strange(source, widened[at], row, column)
        })
    }

    /// Why the value in this place cannot be quantised.
    fn strange(&self, source: &dyn Source, value: f32, row: usize, column: usize) -> Error {
        let (mut name, mut shape, mut there) = (self.name.as_str(), &self.shape, row);
        if let Origin::Rows(runs) = &self.origin {
            let mut first = 0;
            for run in runs {
                if (first..first + run.rows.len()).contains(&row) {
                    (name, shape, there) = (&run.name, &run.shape, row - first + run.rows.start);
                }
                first += run.rows.len();
            }
        }
        let place = source.info(name, shape).map_or_else(|_| String::new(), |info| format!("{}: ", info.origin));
        let dtype = self.dtype;
        let error = format!("{place}tensor `{name}` has {value} as {dtype:?} in row {there}, column {column}");
        Error::msg(error)
            .hint("what is not a finite number cannot be quantised; the file may be damaged, fetch it again")
    }

    /// What a loader is told of the tensor `kind` (`weight`, `scales` or `biases`) of it.
    pub(super) fn info(&self, kind: &str) -> Option<TensorInfo> {
        let index = ["weight", "scales", "biases"].iter().position(|known| *known == kind)?;
        let NewTensor { name, dtype, mut shape } = self.tensors().into_iter().nth(index)?;
        // a loader knows convolutions as the hub has them
        if let Origin::Whole { shape: hub, .. } = &self.origin {
            shape.clone_from(hub);
        }
        let coding = self.coding.filter(|_| index == 0);
        Some(TensorInfo { name, origin: "quantised weights".to_owned(), dtype, shape, coding })
    }
}

/// The type of the scales of weights of `dtype`.
pub(super) fn scale_type(coding: Coding, dtype: Dtype) -> Dtype {
    if coding.is_affine() { dtype } else { Dtype::U8 }
}

/// The type that a tensor of the source has in MLX's checkpoint, where config.json may say one.
pub(super) fn type_of(info: &TensorInfo, said: Option<Dtype>) -> Dtype {
    said.unwrap_or_else(|| widened_type(info.dtype))
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
