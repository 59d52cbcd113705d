//! A source that quantises another while a model is loaded from it: every part as it is asked for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::entry::{Entry, Origin, scale_type};
use super::jobs::in_parallel;
use super::plan::Conversion;
use crate::error::{Error, Result};
use crate::weights::{Codes, Coding, Dtype, Matrix, Numbers, Packed, Source, SourceKind, Stored, TensorInfo, Values};

/// The tensors that [`super::Target`] would write, bit for bit, made in memory.
pub struct Quantised {
    source: Box<dyn Source>,
    conversion: Conversion,
    // the entry of a weight, by its name
    index: BTreeMap<String, usize>,
    threads: usize,
    // a tied head is a part of the table
    table: Mutex<Option<Matrix>>,
}

/// Where a job writes codes or values, scales, and biases.
type Parts<'a> = (&'a mut [u8], &'a mut [u8], &'a mut [u8]);

impl Quantised {
    /// Quantises `source` as `conversion` says, with so many threads.
    pub fn new(source: Box<dyn Source>, conversion: Conversion, threads: usize) -> Self {
        let names = conversion.entries.iter().enumerate().map(|(index, entry)| (entry.name.clone(), index));
        Self { index: names.collect(), source, conversion, threads, table: Mutex::default() }
    }

    /// The entry that holds the tensor `name`, the hub's or MLX's name, and which of its tensors that is.
    fn find(&self, name: &str) -> Option<(usize, &'static str)> {
        let name = self.conversion.conventions.mlx_name(name);
        if let Some(index) = self.index.get(&name) {
            return Some((*index, "weight"));
        }
        let of = |kind: &'static str| {
            let module = name.strip_suffix(kind)?;
            Some((*self.index.get(&format!("{module}weight"))?, kind))
        };
        of("scales").or_else(|| of("biases"))
    }

    fn entry(&self, name: &str) -> Result<(&Entry, TensorInfo)> {
        let found = self.find(name).and_then(|(index, kind)| {
            let entry = &self.conversion.entries[index];
            Some((entry, entry.info(kind)?))
        });
        found.ok_or_else(|| {
            let error = Error::msg(format!("the quantised model has no tensor `{name}`"));
            error.hint("the checkpoint is incomplete or of another architecture than config.json says")
        })
    }

    /// Rows and columns of an entry, the columns whole groups: codes or values, scales, biases.
    fn make(&self, entry: &Entry, rows: &Range<usize>, columns: &Range<usize>) -> Result<[Vec<u8>; 3]> {
        let [mut codes, mut scales, mut biases] = [Vec::new(), Vec::new(), Vec::new()];
        for (part, len) in
            [&mut codes, &mut scales, &mut biases].into_iter().zip(entry.sizes(rows.len(), columns.len()))
        {
            // a failed allocation aborts
            part.try_reserve_exact(len).map_err(|_| no_room(entry))?;
            part.resize(len, 0);
        }
        let each = entry.rows_at_once().max(1);
        let per_job = entry.sizes(each, columns.len()).map(|len| len.max(1));
        let jobs =
            codes.chunks_mut(per_job[0]).map(|codes| Mutex::new((codes, Default::default(), Default::default())));
        let mut jobs: Vec<Mutex<Parts<'_>>> = jobs.collect();
        for (job, scales) in jobs.iter_mut().zip(scales.chunks_mut(per_job[1])) {
            job.get_mut().unwrap_or_else(PoisonError::into_inner).1 = scales;
        }
        for (job, biases) in jobs.iter_mut().zip(biases.chunks_mut(per_job[2])) {
            job.get_mut().unwrap_or_else(PoisonError::into_inner).2 = biases;
        }
        in_parallel(self.threads, jobs.len(), |job, widened: &mut Vec<f32>| {
            let first = rows.start + job * each;
            let mut out = jobs[job].lock().unwrap_or_else(PoisonError::into_inner);
            let (codes, scales, biases) = &mut *out;
            let out = Codes { codes, scales, biases };
            entry.make(self.source.as_ref(), first..rows.end.min(first + each), columns.clone(), widened, out)
        })?;
        drop(jobs);
        Ok([codes, scales, biases])
    }

    fn matrix(&self, entry: &Entry, rows: &Range<usize>, columns: &Range<usize>) -> Result<Matrix> {
        let [values, scales, biases] = self.make(entry, rows, columns)?.map(Bytes::from);
        let values = match (entry.coding, entry.dtype) {
            (Some(coding), dtype) => Values::Packed(Packed {
                coding,
                values,
                scales: Numbers { dtype: scale_type(coding, dtype), bytes: scales },
                biases: coding.is_affine().then_some(Numbers { dtype, bytes: biases }),
            }),
            (None, Dtype::F32) => Values::F32(values),
            (None, Dtype::F16) => Values::F16(values),
            (None, _) => Values::Bf16(values),
        };
        Matrix::new(rows.len(), columns.len(), values)
    }
}

fn no_room(entry: &Entry) -> Error {
    Error::msg(format!("tensor `{}` does not fit in memory", entry.name)).hint("take fewer bits, or more ranks")
}

impl Source for Quantised {
    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn info(&self, name: &str, _shape: &[usize]) -> Result<TensorInfo> {
        self.entry(name).map(|(_, info)| info)
    }

    fn get(&self, name: &str, _shape: &[usize]) -> Result<Stored> {
        let (entry, info) = self.entry(name)?;
        let [codes, scales, biases] = self.make(entry, &(0..entry.rows()), &(0..entry.columns()))?;
        let bytes = match self.find(name) {
            Some((_, "scales")) => scales,
            Some((_, "biases")) => biases,
            _ => codes,
        };
        Ok(Stored { info, bytes: bytes.into() })
    }

    fn part(&self, name: &str, shape: &[usize], rows: Range<usize>, columns: Range<usize>) -> Result<Matrix> {
        let (entry, info) = self.entry(name)?;
        let whole = TensorInfo { shape: entry.shape.clone(), ..info };
        whole.expect_shape(shape)?;
        let is_table = entry.name.ends_with("embed_tokens.weight");
        let known = is_table.then(|| self.table.lock().unwrap_or_else(PoisonError::into_inner).clone()).flatten();
        if let Some(known) = known {
            return known.part(rows, columns);
        }
        if let Origin::Packed(_) = entry.origin {
            // experts are asked for one by one, and stay where they are mapped
            let mut parts = entry.parts(rows.clone());
            if let (Some((run, rows)), None) = (parts.next(), parts.next()) {
                return run.matrix(self.source.as_ref(), rows, columns);
            }
        }
        let group = entry.coding.map_or(1, Coding::group);
        let from = columns.start / group * group;
        let wide = from..columns.end.next_multiple_of(group).min(entry.columns());
        let matrix = self.matrix(entry, &rows, &wide)?;
        if is_table && rows == (0..entry.rows()) {
            *self.table.lock().unwrap_or_else(PoisonError::into_inner) = Some(matrix.clone());
        }
        matrix.part(0..rows.len(), columns.start - from..columns.end - from)
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Quantised
    }

    fn names(&self) -> Vec<String> {
        self.conversion.tensors().map(|tensor| tensor.name).collect()
    }

    fn find_nan(&self, names: &[String]) -> Option<String> {
        let entries = names.iter().filter_map(|name| Some(&self.conversion.entries[self.find(name)?.0]));
        let origins = entries.flat_map(|entry| match &entry.origin {
            Origin::Whole { name, .. } => vec![name.clone()],
            Origin::Rows(runs) | Origin::Packed(runs) => {
                let parts = runs.iter().filter_map(|run| run.stored(self.source.as_ref()).ok());
                parts.flatten().map(|part| part.info.name).collect()
            }
        });
        self.source.find_nan(&origins.collect::<Vec<_>>())
    }
}
