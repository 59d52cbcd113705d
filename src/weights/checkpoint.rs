//! A directory of safetensors: the index, the mapped files, and where every tensor lies.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use memmap2::Mmap;
use safetensors::tensor::Dtype as FileDtype;
use sha2::{Digest, Sha256};

use super::digest::hex;
use super::header::{Entry, parse_header};
use super::index::Index;
use super::stored::{Dtype, Source, SourceKind, Stored, TensorInfo};
use crate::error::{Context, Error, Result};

/// Mapped safetensors files. Nothing is copied: tensors are slices of the mappings.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<Shard>,
    // tensor name → file and entry
    tensors: BTreeMap<String, (usize, Entry)>,
}

#[derive(Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    bytes: Bytes,
    header: usize,
    mlx: bool,
}

impl Checkpoint {
    /// Maps the safetensors files of `dir`: those its index names, or else all there are.
    ///
    /// # Errors
    /// Naming the file (and the tensor) that is missing, unreadable, damaged, or not what the index says.
    pub fn open(dir: &Path) -> Result<Self> {
        let index = Index::read(dir)?;
        let names: Vec<String> = match &index {
            Some(index) => index.files.clone(),
            None => list(dir)?,
        };
        let (mut files, mut found) = (Vec::new(), Vec::new());
        for name in &names {
            let path = dir.join(name);
            let bytes = map(&path)?;
            let header = parse_header(&bytes).with_context(|| format!("`{}`", path.display()))?;
            let file = files.len();
            found.extend(header.tensors.into_iter().map(|(tensor, entry)| (tensor, (file, entry))));
            let mlx = header.metadata.get("format").is_some_and(|format| format == "mlx");
            files.push(Shard { path, bytes, header: header.len, mlx });
        }
        if let Some(index) = &index {
            index.compare(&mut found, &files)?;
        }
        // the tensors of a file are in order already
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        if let Some([(tensor, (first, _)), (_, (second, _))]) = found.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let [first, second] = [first, second].map(|file| files[*file].path.display());
            let error = format!("tensor `{tensor}` is in `{first}` and `{second}`");
            return Err(Error::msg(error).hint("keep one checkpoint in a directory"));
        }
        let tensors = BTreeMap::from_iter(found);
        Ok(Self { files, tensors })
    }

    /// Reads one safetensors file that is in memory for good; `name` stands for it in errors.
    ///
    /// # Errors
    /// Naming the file if it is damaged.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self> {
        let header = parse_header(bytes).with_context(|| format!("`{name}`"))?;
        let tensors = header.tensors.into_iter().map(|(tensor, entry)| (tensor, (0, entry))).collect();
        let file = Shard { path: name.into(), bytes: Bytes::from_static(bytes), header: header.len, mlx: false };
        Ok(Self { files: vec![file], tensors })
    }

    /// Whether it is written in MLX's conventions: its files say so, or a convolution lies as MLX has it.
    pub fn is_mlx(&self) -> bool {
        let turned = |(name, (_, entry)): (&String, &(usize, Entry))| {
            name.ends_with("conv1d.weight") && matches!(entry.shape[..], [_, taps, 1] if taps > 1)
        };
        self.files.iter().any(|file| file.mlx) || self.tensors.iter().any(turned)
    }

    /// SHA-256 over `config` and every file's name, size and header: what two ranks compare to know they read one model.
    pub fn digest(&self, config: &[u8]) -> String {
        let mut hash = Sha256::new();
        hash.update((config.len() as u64).to_le_bytes());
        hash.update(config);
        for file in &self.files {
            let name = file.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update((file.bytes.len() as u64).to_le_bytes());
            hash.update(&file.bytes[..file.header]);
        }
        hex(hash)
    }

    /// The numbers of the tensor `name`, which is one of integers, and the file they are in.
    ///
    /// # Errors
    /// If it is missing or of another type.
    pub(super) fn integers(&self, name: &str) -> Result<(Vec<u64>, &Path)> {
        let (shard, entry) = self.entry(name)?;
        let bytes = &shard.bytes[entry.bytes.clone()];
        let numbers = match entry.dtype {
            FileDtype::I32 | FileDtype::U32 => {
                bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b).into()).collect()
            }
            FileDtype::I64 | FileDtype::U64 => bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect(),
            other => {
                let error =
                    format!("`{}`: tensor `{name}` is stored as {other:?}, not I32 or I64", shard.path.display());
                return Err(Error::msg(error).hint("the file is damaged, fetch it again"));
            }
        };
        Ok((numbers, &shard.path))
    }

    fn entry(&self, name: &str) -> Result<(&Shard, &Entry)> {
        let Some((file, entry)) = self.tensors.get(name) else {
            let at = self.files.first().and_then(|file| file.path.parent()).unwrap_or(Path::new("."));
            let error = format!("`{}` has no tensor `{name}`", at.display());
            return Err(
                Error::msg(error).hint("the checkpoint is incomplete or of another architecture than config.json says")
            );
        };
        Ok((&self.files[*file], entry))
    }

    fn find(&self, name: &str) -> Result<(TensorInfo, Bytes)> {
        let (shard, entry) = self.entry(name)?;
        let origin = format!("`{}`", shard.path.display());
        let Some(dtype) = Dtype::of_file(name, entry.dtype) else {
            let error = format!("{origin}: tensor `{name}` is stored as {:?}", entry.dtype);
            return Err(Error::msg(error)
                .hint("tbshard reads F32, F16, BF16 and F8_E4M3 weights, and packed ones in U32 with scales in U8"));
        };
        let info = TensorInfo { name: name.to_owned(), origin, dtype, shape: entry.shape.clone(), coding: None };
        Ok((info, shard.bytes.slice(entry.bytes.clone())))
    }
}

impl Source for Checkpoint {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn info(&self, name: &str, _shape: &[usize]) -> Result<TensorInfo> {
        self.find(name).map(|(info, _)| info)
    }

    fn get(&self, name: &str, _shape: &[usize]) -> Result<Stored> {
        self.find(name).map(|(info, bytes)| Stored { info, bytes })
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Hub
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn find_nan(&self, names: &[String]) -> Option<String> {
        let mut all = names.iter().filter_map(|name| self.get(name, &[]).ok());
        all.find(Stored::has_nan).map(|stored| stored.info.place())
    }
}

fn list(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).map_err(|error| Error::io(dir, error).hint("check the path"))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| Error::io(dir, error))?.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".safetensors") && !name.starts_with('.') {
            names.push(name.into_owned());
        }
    }
    if names.iter().any(|name| name == "model.safetensors") {
        names = vec!["model.safetensors".to_owned()];
    }
    names.sort();
    if names.is_empty() {
        let error = Error::msg(format!("`{}` has no safetensors files", dir.display()));
        return Err(error.hint("a model directory holds config.json, tokenizer.json and *.safetensors"));
    }
    Ok(names)
}

fn map(path: &Path) -> Result<Bytes> {
    let missing = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "the index names this file, fetch it again",
            _ => "check who may read the file",
        };
        Error::from_std(error).context(format!("`{}`", path.display())).hint(hint)
    };
    // looked at before it is opened, because opening a pipe waits for its writer
    let found = std::fs::metadata(path).map_err(missing)?;
    if !found.is_file() {
        return Err(Error::msg(format!("`{}` is not a regular file", path.display())).hint("fetch that file again"));
    }
    let file = File::open(path).map_err(missing)?;
    if found.len() == 0 {
        return Err(Error::msg(format!("`{}` is empty", path.display())).hint("fetch that file again"));
    }
    // SAFETY: the mapping is read-only and private; a file that is cut while it is mapped ends the process with SIGBUS,
    // as with every program that maps its weights
    let map = unsafe { Mmap::map(&file) }.map_err(missing)?;
    Ok(Bytes::from_owner(map))
}
