//! Writes one safetensors file whose tensors come in any order and in pieces; it has its name only when it is whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::stored::Dtype;
use crate::error::{Error, Result};

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

impl NewTensor {
    /// Bytes of its values.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product::<u64>() * self.dtype.width() as u64
    }
}

/// A file that is being written, under its name with `.partial` behind it.
#[derive(Debug)]
pub struct NewShard {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    // where tensors begin
    places: BTreeMap<String, u64>,
    len: u64,
}

impl NewShard {
    /// Begins the file `path` of `tensors`, in place of what an earlier attempt left of it. `format` is whose conventions
    /// it follows: `mlx` or `pt`.
    ///
    /// # Errors
    /// Naming the file that cannot be written.
    pub fn create(path: &Path, tensors: &[NewTensor], format: &str) -> Result<Self> {
        let partial = partial(path);
        let file = File::create(&partial).map_err(|error| Error::io(&partial, error))?;
        let (header, places) = header(tensors, format);
        let len = header.len() as u64 + tensors.iter().map(NewTensor::bytes).sum::<u64>();
        let shard = Self { path: path.to_owned(), partial, file, places, len };
        shard.write_at(&header, 0)?;
        Ok(shard)
    }

    /// Writes a piece of the tensor `name`, `at` bytes from its beginning; a tensor of another file is left alone. May be
    /// called from several threads.
    ///
    /// # Errors
    /// If it cannot be written, as on a full disk.
    pub fn write(&self, name: &str, at: u64, bytes: &[u8]) -> Result<()> {
        self.places.get(name).map_or(Ok(()), |place| self.write_at(bytes, place + at))
    }

    /// Makes what was not written read as zeros, without room on the disk where the file system can do so.
    ///
    /// # Errors
    /// If the file system has no files of that length.
    pub fn fill_with_holes(&self) -> Result<()> {
        self.file.set_len(self.len).map_err(|error| Error::io(&self.partial, error))
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.write_all_at(bytes, at).map_err(|error| Error::io(&self.partial, error))
    }

    /// Gives the file its name, once the disk has it.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(|error| Error::io(&self.partial, error))?;
        rename(&self.partial, &self.path)
    }
}

/// Writes the small file `path` as a whole: after a crash it is the old one or the new one.
///
/// # Errors
/// If it cannot be written.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = partial(path);
    let written = File::create(&partial).and_then(|file| {
        file.write_all_at(bytes, 0)?;
        file.sync_all()
    });
    written.map_err(|error| Error::io(&partial, error))?;
    rename(&partial, path)
}

/// Removes what an unfinished attempt left of the file `path`.
///
/// # Errors
/// If it is there and cannot be removed.
pub fn remove_partial(path: &Path) -> Result<()> {
    let partial = partial(path);
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&partial, error)),
        _ => Ok(()),
    }
}

/// Bytes of a file of `tensors`.
pub fn shard_bytes(tensors: &[NewTensor]) -> u64 {
    header(tensors, "mlx").0.len() as u64 + tensors.iter().map(NewTensor::bytes).sum::<u64>()
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|error| Error::io(to, error))?;
    let dir = to.parent().unwrap_or(Path::new("."));
    // the name is in the directory, which is written for itself
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| Error::io(dir, error))
}

/// The header, and where tensors begin in the file: wide types first, so that all are aligned.
fn header(tensors: &[NewTensor], format: &str) -> (Vec<u8>, BTreeMap<String, u64>) {
    let mut order: Vec<&NewTensor> = tensors.iter().collect();
    order.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.width()));
    let mut table = Map::new();
    table.insert("__metadata__".to_owned(), json!({"format": format}));
    let (mut places, mut at) = (BTreeMap::new(), 0);
    for tensor in order {
        let end = at + tensor.bytes();
        let entry = json!({"dtype": tensor.dtype.file_name(), "shape": tensor.shape, "data_offsets": [at, end]});
        table.insert(tensor.name.clone(), entry);
        places.insert(tensor.name.clone(), at);
        at = end;
    }
    let mut text = Value::Object(table).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    places.values_mut().for_each(|place| *place += bytes.len() as u64);
    (bytes, places)
}
