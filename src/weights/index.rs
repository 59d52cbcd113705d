//! The index of a checkpoint in several files: which file has which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::checkpoint::Shard;
use super::entries::Entries;
use super::header::Entry;
use crate::error::{Error, Result};

/// The name of the file.
const NAME: &str = "model.safetensors.index.json";

const AGAIN: &str = "fetch that file again";

/// Tensors and the files they are in.
pub(super) struct Index {
    /// The names of the files, in order.
    pub(super) files: Vec<String>,
    // by name, the place of its file in `files`
    tensors: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Written {
    weight_map: Entries<String>,
}

impl Index {
    /// Reads the index in `dir`, if there is one.
    ///
    /// # Errors
    /// If it cannot be read, is none, is empty, or names files elsewhere.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, error).hint(AGAIN)),
        };
        let Written { weight_map } = serde_json::from_slice(&text)
            .map_err(|error| Error::msg(format!("`{}` is not an index: {error}", path.display())).hint(AGAIN))?;
        let entries = weight_map.0;
        if entries.is_empty() {
            return Err(Error::msg(format!("`{}` names no tensors", path.display())).hint(AGAIN));
        }
        let files: Vec<String> =
            entries.iter().map(|(_, file)| file).collect::<BTreeSet<_>>().into_iter().cloned().collect();
        let strange = |file: &&String| Path::new(file.as_str()).file_name() != Some(file.as_str().as_ref());
        if let Some(file) = files.iter().find(strange) {
            let error = format!("`{}` names the file `{file}` outside its directory", path.display());
            return Err(Error::msg(error).hint("do not use this checkpoint"));
        }
        let place = |file: &String| files.binary_search(file).unwrap_or(0);
        let tensors = entries.into_iter().map(|(tensor, file)| (tensor, place(&file))).collect();
        Ok(Some(Self { files, tensors }))
    }

    /// Leaves of the tensors that `files` hold those that they are listed for.
    ///
    /// # Errors
    /// Naming a tensor that is not listed, or that is not where it is listed.
    pub(super) fn compare(&self, found: &mut Vec<(String, (usize, Entry))>, files: &[Shard]) -> Result<()> {
        let mut unlisted = None;
        found.retain(|(tensor, (file, _))| match self.tensors.get(tensor) {
            Some(listed) => listed == file,
            None => {
                unlisted.get_or_insert((tensor.clone(), *file));
                false
            }
        });
        if let Some((tensor, file)) = unlisted {
            let error = format!("`{}`: tensor `{tensor}` is not in the index", files[file].path.display());
            return Err(Error::msg(error).hint(format!("`{NAME}` and the files do not belong together")));
        }
        if found.len() == self.tensors.len() {
            return Ok(());
        }
        let held: BTreeSet<&str> = found.iter().map(|(tensor, _)| tensor.as_str()).collect();
        match self.tensors.iter().find(|(tensor, _)| !held.contains(tensor.as_str())) {
            Some((tensor, file)) => {
                let path = files[*file].path.display();
                let error = format!("tensor `{tensor}` is not in `{path}`, where the index puts it");
                Err(Error::msg(error).hint(AGAIN))
            }
            None => Ok(()),
        }
    }
}
