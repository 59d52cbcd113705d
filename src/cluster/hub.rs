//! The hub client: brings the files of one model repository into the cache that Hugging Face's own tools share.

mod cache;
mod http;
mod listing;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use cache::Folder;
use http::Client;
use listing::Remote;

use crate::error::{Context, Error, Result};

/// The hub that is asked unless the user names another.
pub const ENDPOINT: &str = "https://huggingface.co";

/// How long a silent server is waited for.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Files fetched at a time: one connection rarely fills the line.
const WORKERS: usize = 8;

/// What is fetched besides the weights, where the repository has it.
const NAMES: [&str; 8] = [
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Follows a download, from several threads at once; nothing is called where the cache answers for a silent hub.
pub trait Progress: Sync {
    /// Says once, before any other call, how many files and bytes the cache lacks.
    fn total(&self, files: usize, bytes: u64);
    /// Says that the file `name` of `bytes` bytes is begun.
    fn file(&self, name: &str, bytes: u64);
    /// Says that `bytes` more of the total are on the disk, those kept from an interrupted download included.
    fn advance(&self, bytes: u64);
    /// Says that the snapshot is whole; not called when it fails.
    fn done(&self);
}

/// A hub, the cache its files go to, and who asks.
pub struct Hub {
    client: Client,
    cache: PathBuf,
    offline: bool,
    timeout: Duration,
}

impl Hub {
    /// Returns a client of `endpoint` (a URL such as [`ENDPOINT`]) that keeps files in `cache` and shows `token`.
    ///
    /// With `offline` no request is ever made. Fails if the endpoint is not an HTTP URL or the token has characters
    /// that cannot be sent.
    pub fn new(endpoint: &str, cache: PathBuf, token: Option<String>, offline: bool) -> Result<Self> {
        Ok(Self { client: Client::new(endpoint, token, TIMEOUT)?, cache, offline, timeout: TIMEOUT })
    }

    /// Sets how long a silent server, or another process fetching the same file, is waited for (30 s otherwise).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.client = self.client.with_timeout(timeout);
        self.timeout = timeout;
        self
    }

    /// Returns the directory that holds the model files of `repo` at `revision` (`main` if none), fetching what the
    /// cache lacks and continuing what an earlier call left unfinished.
    ///
    /// A hub that does not answer is no error if the cache has a whole snapshot of that revision. Fails with a
    /// message that names the repository, the file and the status.
    pub fn snapshot(&self, repo: &str, revision: Option<&str>, progress: &dyn Progress) -> Result<PathBuf> {
        let revision = revision.unwrap_or("main");
        check_names(repo, revision)?;
        let folder = Folder::new(&self.cache, repo);
        let asked = || format!("`{repo}` at revision `{revision}`");
        if self.offline {
            let hint = "go online once, or give a local directory with --model DIR";
            return folder.whole(revision).with_context(asked).context("offline").map_err(|e| e.hint(hint));
        }
        let listing = match self.client.list(repo, revision) {
            Ok(listing) => listing,
            Err(fault) => {
                let cached = folder.whole(revision).ok().filter(|_| fault.is_transient());
                return cached.ok_or_else(|| self.client.explain(fault, repo).context(asked()));
            }
        };
        if !listing.files.iter().any(|file| is_weights(&file.name)) {
            let error = Error::msg("the repository has no `model*.safetensors`").context(asked());
            return Err(error.hint("look for the safetensors repository of this model"));
        }
        Fetch { hub: self, repo, commit: &listing.commit, folder: &folder, progress }.all(&listing.files)?;
        folder.write_ref(revision, &listing.commit)?;
        progress.done();
        Ok(folder.snapshot(&listing.commit))
    }
}

/// One download of the files of one commit.
struct Fetch<'a> {
    hub: &'a Hub,
    repo: &'a str,
    commit: &'a str,
    folder: &'a Folder,
    progress: &'a dyn Progress,
}

impl Fetch<'_> {
    /// Brings every file into the snapshot, several at a time; the first failure stops the others.
    fn all(&self, files: &[Remote]) -> Result<()> {
        let missing: Vec<&Remote> = files.iter().filter(|file| !self.folder.has(file, self.commit)).collect();
        self.progress.total(missing.len(), missing.iter().map(|file| file.size).sum());
        let next = AtomicUsize::new(0);
        let failure = OnceLock::new();
        let goes_on = || failure.get().is_none();
        let worker = || {
            while let Some(file) = missing.get(next.fetch_add(1, Ordering::Relaxed)).filter(|_| goes_on()) {
                let fetched = self.one(file, &goes_on);
                if let Err(error) = fetched.with_context(|| format!("`{}` of `{}`", file.name, self.repo)) {
                    // Only the first is told: the others stopped because of it.
                    let _ = failure.set(error);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..WORKERS.min(missing.len()) {
                scope.spawn(worker);
            }
        });
        failure.into_inner().map_or(Ok(()), Err)?;
        files.iter().try_for_each(|file| self.folder.link(file, self.commit))
    }

    /// Brings one file into the blobs of the cache.
    fn one(&self, file: &Remote, goes_on: &dyn Fn() -> bool) -> Result<()> {
        self.progress.file(&file.name, file.size);
        let _lock = self.folder.lock(file, self.hub.timeout)?;
        let mut reported = 0;
        let mut reach = |len: u64| {
            // A download that had to begin again must not count bytes twice.
            self.progress.advance(len.saturating_sub(reported));
            reported = reported.max(len);
            goes_on()
        };
        if self.folder.has(file, self.commit) {
            reach(file.size);
            return Ok(());
        }
        let mut partial = self.folder.partial(file)?;
        let client = &self.hub.client;
        let fetched = client.download(self.repo, self.commit, file, &mut partial, &mut reach);
        fetched.map_err(|fault| client.explain(fault, self.repo))?;
        partial.finish(file)
    }
}

/// Returns whether a file of a repository is one that running the model needs.
fn is_wanted(name: &str) -> bool {
    is_weights(name) || NAMES.contains(&name)
}

fn is_weights(name: &str) -> bool {
    name.starts_with("model") && name.ends_with(".safetensors") && !name.contains('/')
}

/// Refuses names that are none of a repository and a revision: they become paths and URLs.
fn check_names(repo: &str, revision: &str) -> Result<()> {
    let is_word = |word: &str| {
        let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        plain && !word.starts_with('.') && !word.contains("..") && !word.is_empty()
    };
    if !repo.split('/').all(is_word) || repo.split('/').count() > 2 || repo.contains("--") {
        let error = Error::usage(format_args!("`{repo}` is not the name of a repository"));
        return Err(error.hint("write it as `owner/name`"));
    }
    let is_step = |step: &str| !step.is_empty() && !step.starts_with('.') && !step.contains(['\\', '\0']);
    if !revision.split('/').all(is_step) {
        let error = Error::usage(format_args!("`{revision}` is not a revision"));
        return Err(error.hint("name a branch, a tag or a commit of the repository"));
    }
    Ok(())
}

/// Returns where Hugging Face's tools keep their things, given how to look up a variable of the environment:
/// `HF_HOME`, else `huggingface` in `XDG_CACHE_HOME` or `~/.cache`.
pub fn home(lookup: impl Fn(&str) -> Option<String>) -> Result<PathBuf> {
    let path = |name: &str| lookup(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
    let found = path("HF_HOME").or_else(|| Some(cache()?.join("huggingface")));
    found.ok_or_else(|| Error::msg("no home directory for the model cache").hint("set HF_HOME"))
}

/// Returns the cache that Hugging Face's tools share: `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE`, else `hub` in
/// [`home`].
pub fn default_cache(lookup: impl Fn(&str) -> Option<String>) -> Result<PathBuf> {
    let path = |name: &str| lookup(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")) {
        Some(cache) => Ok(cache),
        None => Ok(home(lookup)?.join("hub")),
    }
}
