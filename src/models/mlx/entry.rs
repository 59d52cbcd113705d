//! One tensor of an MLX checkpoint: where its values come from, and the making of any of its rows.

use std::ops::Range;

use crate::error::{Context, Error, Result};
use crate::weights::{
    Codes, Coding, Dtype, Matrix, NewTensor, Slice, Source, TensorInfo, keep, narrow, quantise, round_to, slices,
    widen, widened_type,
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
    /// Rows of matrices that are packed already and stay so.
    Packed(Vec<Run>),
}

/// A run of rows of a matrix of the source.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) name: String,
    /// Of the whole tensor there; all dimensions but the last are rows.
    pub(super) shape: Vec<usize>,
    pub(super) rows: Range<usize>,
    /// They become columns.
    pub(super) turned: bool,
}

impl Run {
    /// All rows of the tensor `name`.
    pub(super) fn whole(name: &str, shape: &[usize]) -> Self {
        let rows = shape.iter().rev().skip(1).product();
        Self { name: name.to_owned(), shape: shape.to_vec(), rows: 0..rows, turned: false }
    }

    /// Rows that it gives.
    fn len(&self) -> usize {
        if self.turned { self.shape.last().copied().unwrap_or(1) } else { self.rows.len() }
    }

    /// Where the run's rows `rows` and columns `columns` are in the source.
    fn place(&self, rows: Range<usize>, columns: Range<usize>) -> [Range<usize>; 2] {
        let [first, second] = if self.turned { [columns, rows] } else { [rows, columns] };
        [self.rows.start + first.start..self.rows.start + first.end, second]
    }

    /// The run's rows `rows` and columns `columns`, as the source has them.
    ///
    /// # Errors
    /// If the source does not have them.
    pub(super) fn matrix(&self, source: &dyn Source, rows: Range<usize>, columns: Range<usize>) -> Result<Matrix> {
        let [rows, columns] = self.place(rows, columns);
        source.part(&self.name, &self.shape, rows, columns)
    }

    /// The tensors of the source that it is in: values and scales.
    ///
    /// # Errors
    /// If one is missing.
    pub(super) fn stored(&self, source: &dyn Source) -> Result<Vec<Slice>> {
        let columns = self.shape.last().copied().unwrap_or(1);
        slices(source, &self.name, &self.shape, self.rows.clone(), 0..columns)
    }

    /// Appends the values of rows and columns, rounded to `dtype`.
    fn widen(&self, matrix: &Matrix, dtype: Dtype, into: &mut Vec<f32>) -> Result<()> {
        let start = into.len();
        widen(matrix, dtype, into)?;
        if self.turned {
            let (columns, stored) = (matrix.in_features(), into.split_off(start));
            for column in 0..columns {
                into.extend(stored.iter().skip(column).step_by(columns));
            }
        }
        Ok(())
    }
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
        match self.origin {
            Origin::Packed(_) => self.sizes(rows, self.columns())[..2].iter().map(|bytes| *bytes as u64).sum(),
            _ => rows as u64 * self.columns() as u64 * self.stored.width() as u64,
        }
    }

    /// The runs that its rows come from.
    pub(super) fn runs(&self) -> &[Run] {
        match &self.origin {
            Origin::Whole { .. } => &[],
            Origin::Rows(runs) | Origin::Packed(runs) => runs,
        }
    }

    /// The runs that the rows `rows` come from, and which of its own they are.
    pub(super) fn parts(&self, rows: Range<usize>) -> impl Iterator<Item = (&Run, Range<usize>)> {
        let mut end = 0;
        self.runs().iter().filter_map(move |run| {
            let first = end;
            end += run.len();
            let (start, end) = (rows.start.max(first), rows.end.min(end));
            (start < end).then(|| (run, start - first..end - first))
        })
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
            Origin::Rows(_) | Origin::Packed(_) => (VALUES / self.columns().max(1)).max(1),
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
            Origin::Rows(_) => {
                for (run, rows) in self.parts(rows.clone()) {
                    run.widen(&run.matrix(source, rows, columns.clone())?, self.dtype, widened)?;
                }
            }
            Origin::Packed(_) => {
                let mut done = 0;
                for (run, rows) in self.parts(rows.clone()) {
                    let [codes, scales, biases] = self.sizes(done, columns.len());
                    done += rows.len();
                    let [codes_end, scales_end, biases_end] = self.sizes(done, columns.len());
                    let part = Codes {
                        codes: &mut out.codes[codes..codes_end],
                        scales: &mut out.scales[scales..scales_end],
                        biases: &mut out.biases[biases..biases_end],
                    };
                    let matrix = run.matrix(source, rows, columns.clone())?;
                    keep(&matrix, self.dtype, part).with_context(|| format!("tensor `{}`", run.name))?;
                }
                return Ok(());
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
        let (mut name, mut shape, mut place) = (&self.name, &self.shape, [row, column]);
        if let Some((run, rows)) = self.parts(row..row + 1).next() {
            (name, shape) = (&run.name, &run.shape);
            place = run.place(rows, column..column + 1).map(|at| at.start);
        }
        let [row, column] = place;
        let place = source.info(name, shape).map_or_else(|_| String::new(), |info| format!("{}: ", info.origin));
        let dtype = self.dtype;
        let error = format!("{place}tensor `{name}` has {value} as {dtype:?} in row {row}, column {column}");
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
