//! Writes a converted model into a directory: file by file, rows by rows, and where an earlier attempt stopped.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use super::config::{Files, INDEX, pretty};
use super::entry::Entry;
use super::jobs::in_parallel;
use super::plan::Conversion;
use super::state::{Mark, Work};
use crate::error::{Error, Result};
use crate::weights::{Codes, NewShard, NewTensor, Source, remove_partial, shard_bytes, write_file};

/// Bytes of a file's tensors at most, unless one alone has more: mlx_lm's.
pub const SHARD_BYTES: u64 = 5 << 30;

/// Room that the small files may need.
const SMALL_FILES: u64 = 64 << 20;

/// Follows the writing, from several threads at once.
pub trait Progress: Sync {
    /// Says once how many bytes of the model there are, and how many of them earlier attempts have done.
    fn total(&self, bytes: u64, done: u64);
    /// Says that so many more are done; what it fails with ends the writing.
    ///
    /// # Errors
    /// As it likes.
    fn advance(&self, bytes: u64) -> Result<()>;
}

/// Where a model is written.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The directory; it does not exist, is empty, or holds what an earlier attempt left.
    pub dir: &'a Path,
    /// Bytes of a file's tensors at most; [`SHARD_BYTES`] is what mlx_lm has.
    pub shard_bytes: u64,
    /// How many threads work.
    pub threads: usize,
}

/// A file of the checkpoint.
struct Shard {
    name: String,
    tensors: Vec<NewTensor>,
}

/// Memory of a thread.
#[derive(Default)]
struct Scratch {
    widened: Vec<f32>,
    made: [Vec<u8>; 3],
}

impl Conversion {
    /// Writes the converted model of `source` to `target`, with `files` beside it. `model` is the directory of the source,
    /// if it has one, and `digest` what identifies it. Returns the number of files with weights, and of those that were
    /// there.
    ///
    /// Killed at any moment and called again it goes on after the files that are finished; the result is the same.
    ///
    /// # Errors
    /// If `target` holds something else or is full, or a tensor cannot be read or quantised.
    pub(crate) fn write(
        &self,
        source: &dyn Source,
        (model, digest): (Option<&Path>, &str),
        files: &Files,
        target: Target<'_>,
        progress: &dyn Progress,
    ) -> Result<(usize, usize)> {
        let shards = self.shards(target.shard_bytes);
        let settings = format!("{} in files of {} bytes", self.describe(), target.shard_bytes);
        let work = Work::new(model, digest, &settings)?;
        let mark = Mark::set(target.dir, &work)?;
        let is_done = |shard: &&Shard| {
            let found = std::fs::metadata(target.dir.join(&shard.name));
            mark.found && found.is_ok_and(|found| found.len() == shard_bytes(&shard.tensors))
        };
        let (done, missing): (Vec<&Shard>, Vec<&Shard>) = shards.iter().partition(is_done);
        let needed = missing.iter().map(|shard| shard_bytes(&shard.tensors)).sum::<u64>() + SMALL_FILES;
        missing.iter().try_for_each(|shard| remove_partial(&target.dir.join(&shard.name)))?;
        if let Err(error) = check_room(target.dir, needed) {
            // an attempt that was none need not be finished
            return if mark.found { Err(error) } else { mark.remove().and(Err(error)) };
        }
        let read = |shard: &&Shard| self.jobs(shard).iter().map(|job| job.0.source_bytes(job.1.len())).sum::<u64>();
        let read_before = done.iter().map(read).sum::<u64>();
        progress.total(read_before + missing.iter().map(read).sum::<u64>(), read_before);
        for shard in missing {
            self.write_shard(shard, source, target, progress)?;
        }
        let places = |shard: &Shard| {
            (shard.name.clone(), shard.tensors.iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>())
        };
        let index = self.index(&shards.iter().map(places).collect::<Vec<_>>());
        write_file(&target.dir.join(INDEX), &pretty(&index)?)?;
        for (name, bytes) in &files.copied {
            write_file(&target.dir.join(name), bytes)?;
        }
        // without it the directory is no model yet
        write_file(&target.dir.join("config.json"), &pretty(&self.config(files))?)?;
        mark.remove()?;
        Ok((shards.len(), done.len()))
    }

    /// How it is quantised, for people and for the mark of an unfinished conversion.
    pub fn describe(&self) -> String {
        format!("{} {} bits, groups of {}", self.coding.mode(), self.coding.bits(), self.coding.group())
    }

    /// The tensors, as mlx_lm parts them into files.
    fn shards(&self, limit: u64) -> Vec<Shard> {
        let (mut parts, mut bytes) = (Vec::<Vec<NewTensor>>::new(), 0);
        for tensor in self.tensors() {
            match parts.last_mut() {
                Some(last) if bytes + tensor.bytes() <= limit => {
                    bytes += tensor.bytes();
                    last.push(tensor);
                }
                _ => {
                    bytes = tensor.bytes();
                    parts.push(vec![tensor]);
                }
            }
        }
        let count = parts.len();
        let name = |index: usize| match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        parts.into_iter().enumerate().map(|(index, tensors)| Shard { name: name(index), tensors }).collect()
    }

    /// The rows of entries that have a tensor in `shard`, in pieces; at its edges a weight may be in another file than its
    /// scales, and is made for both.
    fn jobs(&self, shard: &Shard) -> Vec<(&Entry, Range<usize>)> {
        let here: HashSet<&str> = shard.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let mut jobs = Vec::new();
        for entry in &self.entries {
            if entry.tensors().iter().any(|tensor| here.contains(tensor.name.as_str())) {
                let (rows, each) = (entry.rows(), entry.rows_at_once().max(1));
                jobs.extend((0..rows).step_by(each).map(|first| (entry, first..rows.min(first + each))));
            }
        }
        jobs
    }

    fn write_shard(
        &self,
        shard: &Shard,
        source: &dyn Source,
        target: Target<'_>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let file = NewShard::create(&target.dir.join(&shard.name), &shard.tensors, "mlx")?;
        let jobs = self.jobs(shard);
        in_parallel(target.threads, jobs.len(), |job, scratch: &mut Scratch| {
            let (entry, rows) = &jobs[job];
            let sizes = entry.sizes(rows.len(), entry.columns());
            for (made, size) in scratch.made.iter_mut().zip(sizes) {
                made.resize(size, 0);
            }
            let [codes, scales, biases] = &mut scratch.made;
            let out = Codes { codes, scales, biases };
            entry.make(source, rows.clone(), 0..entry.columns(), &mut scratch.widened, out)?;
            let before = entry.sizes(rows.start, entry.columns());
            for ((tensor, made), before) in entry.tensors().iter().zip(&scratch.made).zip(before) {
                file.write(&tensor.name, before as u64, made)?;
            }
            progress.advance(entry.source_bytes(rows.len()))
        })?;
        file.finish()
    }
}

/// Refuses a disk with less than `needed` free bytes.
fn check_room(dir: &Path, needed: u64) -> Result<()> {
    let found = rustix::fs::statvfs(dir).map_err(|error| Error::io(dir, error.into()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free >= needed {
        return Ok(());
    }
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    let (needed, free) = (gigabytes(needed), gigabytes(free));
    let error = format!("`{}` has {free:.1} GB free, the quantised model needs {needed:.1} GB", dir.display());
    Err(Error::msg(error).hint("free some space on that disk, or give -o a directory on another"))
}
