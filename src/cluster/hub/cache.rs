//! The cache layout of one repository: blobs by content hash, snapshots that link to them, refs that name a commit.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::is_weights;
use super::listing::{Remote, is_hash};
use crate::error::{Context, Error, Result};
use crate::weights::hex;

/// The part of a shard index that says which files the tensors are in.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// The folder of one repository in the cache.
pub(super) struct Folder {
    root: PathBuf,
    locks: PathBuf,
}

impl Folder {
    /// Returns the folder of `repo`; nothing is created.
    pub(super) fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self { root: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// Returns the directory of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    fn blob(&self, file: &Remote) -> PathBuf {
        self.root.join("blobs").join(&file.etag)
    }

    /// Returns the snapshot of `revision` as last fetched; fails if there is none or a file of it is missing.
    pub(super) fn whole(&self, revision: &str) -> Result<PathBuf> {
        let noted = fs::read_to_string(self.root.join("refs").join(revision));
        let commit = noted.map_or_else(|_| revision.to_owned(), |text| text.trim().to_owned());
        let directory = self.snapshot(&commit);
        if !is_hash(&commit, 40) || !directory.is_dir() {
            return Err(Error::msg(format_args!("the cache `{}` has no such snapshot", self.root.display())));
        }
        let index = directory.join("model.safetensors.index.json");
        let mut needed = vec!["config.json".to_owned()];
        match fs::read(&index) {
            Ok(text) => {
                let parsed: Index = serde_json::from_slice(&text)
                    .map_err(|error| Error::from_std(error).context(format_args!("`{}`", index.display())))?;
                needed.extend(parsed.weight_map.into_values());
            }
            Err(_) => needed.extend((!has_weights(&directory)).then(|| "model.safetensors".to_owned())),
        }
        match needed.iter().find(|name| !directory.join(name).is_file()) {
            Some(name) => Err(Error::msg(format_args!("the cached snapshot lacks `{name}`"))),
            None => Ok(directory),
        }
    }

    /// Returns whether the bytes of `file` are here, in the snapshot of `commit` or from another one.
    pub(super) fn has(&self, file: &Remote, commit: &str) -> bool {
        has_size(&self.snapshot(commit).join(&file.name), file.size) || has_size(&self.blob(file), file.size)
    }

    /// Puts the blob of `file` into the snapshot of `commit` under its name.
    pub(super) fn link(&self, file: &Remote, commit: &str) -> Result<()> {
        let link = self.snapshot(commit).join(&file.name);
        if has_size(&link, file.size) {
            return Ok(());
        }
        create_parent(&link)?;
        remove(&link)?;
        let linked = std::os::unix::fs::symlink(Path::new("../../blobs").join(&file.etag), &link);
        let linked = linked.or_else(|error| match error.kind() {
            // Another process was faster.
            io::ErrorKind::AlreadyExists => Ok(()),
            // A disk without symbolic links (exFAT) gets the file itself, as Hugging Face's tools do there.
            io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied => fs::rename(self.blob(file), &link),
            _ => Err(error),
        });
        linked.map_err(|error| Error::io(&link, error))
    }

    /// Notes which commit `revision` means.
    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        create_parent(&path)?;
        fs::write(&path, commit).map_err(|error| Error::io(&path, error))
    }

    /// Keeps other processes from writing the blob of `file` until the result is dropped, waiting for the one that
    /// does for at most `patience`.
    pub(super) fn lock(&self, file: &Remote, patience: Duration) -> Result<File> {
        let path = self.locks.join(format!("{}.lock", file.etag));
        create_parent(&path)?;
        let lock = File::create(&path).map_err(|error| Error::io(&path, error))?;
        let start = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                // A network disk may have no locks at all; Hugging Face's tools go on there too.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => return Ok(lock),
                Err(TryLockError::Error(error)) => return Err(Error::io(&path, error)),
                Err(TryLockError::WouldBlock) if start.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(TryLockError::WouldBlock) => {
                    let error = Error::msg(format_args!("another process holds `{}`", path.display()));
                    return Err(error.hint("it is fetching the same file: wait for it to end"));
                }
            }
        }
    }

    /// Opens what an earlier download left of `file`, or begins it.
    pub(super) fn partial(&self, file: &Remote) -> Result<Partial> {
        let blob = self.blob(file);
        // Not the `.incomplete` of other tools: they may fill theirs out of order.
        let path = blob.with_extension("tbshard.incomplete");
        create_parent(&path)?;
        let open = || -> io::Result<(File, u64, Sha256)> {
            let mut kept = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
            let mut hash = Sha256::new();
            let mut chunk = vec![0; 1 << 20];
            let mut len = 0;
            loop {
                let read = kept.read(&mut chunk)?;
                match chunk.get(..read) {
                    Some(bytes) if read > 0 => hash.update(bytes),
                    _ => return Ok((kept, len, hash)),
                }
                len += read as u64;
            }
        };
        let (kept, len, hash) = open().map_err(|error| Error::io(&path, error))?;
        let mut partial = Partial { file: kept, path, blob, len, hash };
        if len > file.size {
            partial.restart()?;
        }
        Ok(partial)
    }
}

/// The beginning of a file, on the disk.
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    blob: PathBuf,
    len: u64,
    hash: Sha256,
}

impl Partial {
    /// How many bytes are there.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Throws the bytes away.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|error| Error::io(&self.path, error))?;
        self.len = 0;
        self.hash = Sha256::new();
        Ok(())
    }

    /// Appends `bytes`.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| Error::io(&self.path, error))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Makes it the blob, once every byte is on the disk; a file whose content is not the announced one is deleted.
    pub(super) fn finish(self, file: &Remote) -> Result<()> {
        let found = hex(self.hash);
        if file.is_sha256() && found != file.etag {
            remove(&self.path)?;
            let error = Error::msg(format_args!("arrived damaged: its sha256 is `{found}`, not `{}`", file.etag));
            return Err(error.hint("run again; what arrived was deleted"));
        }
        let kept = self.file.sync_all().and_then(|()| fs::rename(&self.path, &self.blob));
        kept.map_err(|error| Error::io(&self.blob, error))
    }
}

fn has_size(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == size)
}

fn has_weights(directory: &Path) -> bool {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name.to_str().is_some_and(is_weights) && directory.join(name).is_file())
}

fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|error| Error::io(parent, error)).context("model cache")
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}
