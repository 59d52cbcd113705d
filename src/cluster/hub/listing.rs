//! What a hub says of a repository: the commit a revision means, and the name, size and hash of each file.

use serde::Deserialize;

use super::is_wanted;

/// One file as the hub lists it.
pub(super) struct Remote {
    pub(super) name: String,
    pub(super) size: u64,
    /// Its name among the blobs: the sha256 of a large file, the git id of a small one.
    pub(super) etag: String,
}

impl Remote {
    /// Returns whether the etag is the sha256 of the content.
    pub(super) fn is_sha256(&self) -> bool {
        self.etag.len() == 64
    }
}

/// The files of one commit that running the model needs.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<Remote>,
}

impl Listing {
    /// Reads the hub's JSON; the error says what it lacks.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let info: Info = serde_json::from_slice(text).map_err(|error| format!("unreadable file list: {error}"))?;
        // It becomes a directory name, so nothing else will do.
        if !is_hash(&info.sha, 40) {
            return Err(format!("`{}` is not a commit", info.sha));
        }
        let wanted = info.siblings.into_iter().filter(|file| is_wanted(&file.rfilename));
        Ok(Self { commit: info.sha, files: wanted.map(Sibling::check).collect::<Result<_, _>>()? })
    }
}

/// The hub's description of a repository, as far as it is needed.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Large>,
}

#[derive(Deserialize)]
struct Large {
    sha256: String,
}

impl Sibling {
    /// Returns the file, or says what its entry lacks.
    fn check(self) -> Result<Remote, String> {
        let (etag, digits) = match self.lfs {
            Some(large) => (Some(large.sha256), 64),
            None => (self.blob_id, 40),
        };
        match (self.size, etag.filter(|etag| is_hash(etag, digits))) {
            (Some(size), Some(etag)) => Ok(Remote { name: self.rfilename, size, etag }),
            _ => Err(format!("`{}` is listed without its size or hash", self.rfilename)),
        }
    }
}

/// Returns whether `text` is a lower-case hexadecimal hash of `digits` digits.
pub(super) fn is_hash(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
