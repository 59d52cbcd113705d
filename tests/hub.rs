//! The hub client against a hub of our own on 127.0.0.1, with everything that goes wrong with real ones.

mod faults;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use tbshard::cluster::hub::{Hub, Progress, default_cache, home};
use tbshard::error::Error;
use tbshard::text::Tokenizer;

use crate::fake_hub::{Entry, FakeHub, Repo, Seen};

const TINY: &str = "acme/tiny";
const NEW: &str = "1111111111111111111111111111111111111111";
const OLD: &str = "2222222222222222222222222222222222222222";
const KIMI_RANKS: &str = include_str!("fixtures/tiktoken/tiktoken.model");
const KIMI_CONFIG: &str = include_str!("fixtures/tiktoken/tokenizer_config.json");
const WEIGHTS: usize = 300_000;
const INDEX: &str = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;

/// Counts what a download says of itself.
#[derive(Default)]
struct Tally {
    files: Mutex<BTreeSet<String>>,
    total: AtomicU64,
    begun: AtomicU64,
    arrived: AtomicU64,
    done: AtomicU64,
}

impl Progress for Tally {
    fn total(&self, _files: usize, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }
    fn file(&self, name: &str, bytes: u64) {
        self.files.lock().unwrap().insert(name.to_owned());
        self.begun.fetch_add(bytes, Ordering::Relaxed);
    }
    fn advance(&self, bytes: u64) {
        self.arrived.fetch_add(bytes, Ordering::Relaxed);
    }
    fn done(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

impl Tally {
    /// total, sum of the files begun, bytes arrived, times done
    fn sums(&self) -> [u64; 4] {
        [&self.total, &self.begun, &self.arrived, &self.done].map(|sum| sum.load(Ordering::Relaxed))
    }
}

/// One weights file, and the same weights under an older config.
fn tiny() -> Repo {
    let weights = Entry::large("model.safetensors", WEIGHTS, 7);
    let new = vec![Entry::small("config.json", "{\"new\":1}"), weights.clone()];
    let old = vec![Entry::small("config.json", "{}"), weights];
    Repo {
        name: TINY,
        commits: [(NEW, new), (OLD, old)].into(),
        refs: [("main", NEW), ("v1", OLD), ("refs/pr/1", OLD)].into(),
        gate: None,
    }
}

/// Two shards with all that goes with them, and files nobody asked for.
fn sharded() -> Repo {
    let files = vec![
        Entry::small("README.md", "# x"),
        Entry::small("chat_template.jinja", "{{ x }}"),
        Entry::small("config.json", "{}"),
        Entry::small("generation_config.json", "{\"g\":1}"),
        Entry::large("model-00001-of-00002.safetensors", 70_001, 1),
        Entry::large("model-00002-of-00002.safetensors", 50_002, 2),
        Entry::small("model.safetensors.index.json", INDEX),
        Entry::large("onnx/model.safetensors", 10, 3),
        Entry::large("pytorch_model.bin", 10, 4),
        Entry::large("tokenizer.json", 9_003, 5),
        Entry::small("tokenizer_config.json", "{\"t\":1}"),
    ];
    Repo { name: "acme/sharded", commits: [(NEW, files)].into(), refs: [("main", NEW)].into(), gate: None }
}

struct Bench {
    fake: FakeHub,
    cache: tempfile::TempDir,
}

impl Bench {
    fn new(repo: Repo) -> Self {
        Self { fake: FakeHub::start(vec![repo]), cache: tempfile::tempdir().unwrap() }
    }

    fn hub(&self, token: Option<&str>, offline: bool) -> Hub {
        let token = token.map(str::to_owned);
        let hub = Hub::new(&self.fake.url(), self.cache.path().to_owned(), token, offline).unwrap();
        hub.with_timeout(Duration::from_millis(400))
    }

    fn get(&self, repo: &str, revision: Option<&str>) -> (Result<PathBuf, Error>, Tally) {
        let tally = Tally::default();
        (self.hub(None, false).snapshot(repo, revision, &tally), tally)
    }

    fn ok(&self, repo: &str) -> PathBuf {
        self.get(repo, None).0.unwrap()
    }

    fn error(&self, repo: &str) -> String {
        format!("{:?}", self.get(repo, None).0.unwrap_err())
    }

    fn blob(&self, entry: &Entry) -> PathBuf {
        self.cache.path().join("models--acme--tiny/blobs").join(entry.etag())
    }

    /// What the content network was asked for.
    fn seen_cdn(&self) -> Vec<Seen> {
        self.fake.take_seen().into_iter().filter(|seen| seen.cdn).collect()
    }
}

fn weights() -> Entry {
    Entry::large("model.safetensors", WEIGHTS, 7)
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[track_caller]
fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    assert!(!error.contains('\n'), "{error}");
}

/// Runs a test in at most ten seconds.
#[track_caller]
fn bounded(test: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        sender.send(()).unwrap();
    });
    match receiver.recv_timeout(Duration::from_secs(10)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("not over after 10 s"),
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

#[test]
fn fetches_what_a_model_needs_into_the_shared_layout() {
    bounded(|| {
        let (bench, repo) = (Bench::new(sharded()), sharded());
        let (directory, tally) = bench.get(repo.name, None);
        let root = bench.cache.path().join("models--acme--sharded");
        assert_eq!(directory.unwrap(), root.join("snapshots").join(NEW));
        let unasked = ["README.md", "onnx/model.safetensors", "pytorch_model.bin"];
        let wanted: Vec<&Entry> = repo.commits[NEW].iter().filter(|file| !unasked.contains(&file.name)).collect();
        assert_eq!(names(&root.join("snapshots").join(NEW)), wanted.iter().map(|file| file.name.to_owned()).collect());
        assert_eq!(names(&root.join("blobs")), wanted.iter().map(|file| file.etag()).collect());
        for file in &wanted {
            let link = root.join("snapshots").join(NEW).join(file.name);
            assert!(fs::read(&link).unwrap() == file.bytes, "{} differs", file.name);
            assert_eq!(fs::read_link(&link).unwrap(), Path::new("../../blobs").join(file.etag()));
        }
        assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), NEW);
        let bytes: u64 = wanted.iter().map(|file| file.bytes.len() as u64).sum();
        assert_eq!(tally.sums(), [bytes, bytes, bytes, 1]);
        assert_eq!(tally.files.lock().unwrap().len(), wanted.len());
    });
}

#[test]
fn a_vocabulary_of_kimi_is_fetched_and_can_be_opened() {
    bounded(|| {
        let files = vec![
            Entry::small("chat_template.jinja", "{{ x }}"),
            Entry::small("config.json", "{}"),
            Entry::large("model.safetensors", 100, 1),
            Entry::small("tiktoken.model", KIMI_RANKS),
            Entry::small("tokenization_kimi.py", "import tiktoken"),
            Entry::small("tokenizer_config.json", KIMI_CONFIG),
        ];
        let repo = Repo { name: "acme/kimi", commits: [(NEW, files)].into(), refs: [("main", NEW)].into(), gate: None };
        let bench = Bench::new(repo);
        let directory = bench.ok("acme/kimi");
        let wanted =
            ["chat_template.jinja", "config.json", "model.safetensors", "tiktoken.model", "tokenizer_config.json"];
        assert_eq!(names(&directory), wanted.map(str::to_owned).into());
        assert_eq!(Tokenizer::open(&directory).unwrap().encode("x<|im_end|>", false).unwrap(), [87, 422]);
    });
}

#[test]
fn what_is_there_is_not_fetched_again() {
    bounded(|| {
        let bench = Bench::new(tiny());
        let first = bench.ok(TINY);
        assert_eq!(bench.seen_cdn().len(), 1);
        let (second, tally) = bench.get(TINY, None);
        assert_eq!(second.unwrap(), first);
        assert_eq!(tally.sums(), [0, 0, 0, 1]);
        let paths: Vec<String> = bench.fake.take_seen().into_iter().map(|seen| seen.path).collect();
        assert_eq!(paths, [format!("/api/models/{TINY}/revision/main?blobs=true")]);
    });
}

#[test]
fn a_revision_is_a_branch_a_tag_or_a_commit_and_shares_blobs() {
    bounded(|| {
        let bench = Bench::new(tiny());
        bench.ok(TINY);
        assert_eq!(bench.seen_cdn().len(), 1);
        for revision in ["v1", "refs/pr/1", OLD] {
            let directory = bench.get(TINY, Some(revision)).0.unwrap();
            assert!(directory.ends_with(OLD), "{revision}");
            assert_eq!(fs::read_to_string(directory.join("config.json")).unwrap(), "{}");
            assert!(fs::read(directory.join("model.safetensors")).unwrap() == weights().bytes);
        }
        assert_eq!(bench.seen_cdn().len(), 0, "the weights of both commits are the same blob");
        let refs = bench.cache.path().join("models--acme--tiny/refs");
        assert_eq!(fs::read_to_string(refs.join("refs/pr/1")).unwrap(), OLD);
        assert_eq!(names(&refs), ["main", "refs", "v1"].map(str::to_owned).into());
        let error = format!("{:?}", bench.get(TINY, Some("nope")).0.unwrap_err());
        assert_says(&error, &[TINY, "`nope`", "404", "RevisionNotFound", "hint: check the spelling of the revision"]);
    });
}

#[test]
fn a_damaged_cache_is_mended() {
    bounded(|| {
        let bench = Bench::new(tiny());
        let directory = bench.ok(TINY);
        fs::write(bench.blob(&weights()), "").unwrap();
        fs::remove_file(directory.join("config.json")).unwrap();
        fs::write(directory.join("config.json"), "half").unwrap();
        bench.fake.take_seen();
        assert_eq!(bench.ok(TINY), directory);
        assert_eq!(bench.seen_cdn().len(), 1);
        assert!(fs::read(directory.join("model.safetensors")).unwrap() == weights().bytes);
        assert_eq!(fs::read_to_string(directory.join("config.json")).unwrap(), "{\"new\":1}");
    });
}

#[test]
fn offline_asks_nobody_and_wants_a_whole_snapshot() {
    bounded(|| {
        let bench = Bench::new(sharded());
        let offline = |revision| bench.hub(None, true).snapshot("acme/sharded", revision, &Tally::default());
        let error = format!("{:?}", offline(None).unwrap_err());
        assert_says(&error, &["offline", "`acme/sharded`", "no such snapshot", "hint: go online once"]);
        let directory = bench.ok("acme/sharded");
        bench.fake.take_seen();
        assert_eq!(offline(None).unwrap(), directory);
        assert_eq!(offline(Some(NEW)).unwrap(), directory);
        assert!(offline(Some("v2")).is_err());
        fs::remove_file(directory.join("model-00002-of-00002.safetensors")).unwrap();
        let error = format!("{:?}", offline(None).unwrap_err());
        assert_says(&error, &["offline", "lacks `model-00002-of-00002.safetensors`"]);
        assert!(bench.fake.take_seen().is_empty());
    });
}

#[test]
fn a_repository_without_safetensors_is_named_before_anything_is_fetched() {
    bounded(|| {
        let mut repo = sharded();
        repo.commits.get_mut(NEW).unwrap().retain(|file| !file.name.starts_with("model-"));
        let bench = Bench::new(repo);
        assert_says(&bench.error("acme/sharded"), &["`acme/sharded`", "has no `model*.safetensors`"]);
        assert_eq!(bench.fake.take_seen().len(), 1);
    });
}

#[test]
fn names_that_would_leave_the_cache_are_refused_unasked() {
    bounded(|| {
        let bench = Bench::new(tiny());
        for repo in ["", "..", "../tiny", "acme/..", "a/b/c", "acme/", "/acme", "acme/ti ny", "acme/tiny?x", "a--b/c"] {
            assert_says(&bench.error(repo), &["is not the name of a repository", "hint: write it as `owner/name`"]);
        }
        for revision in ["", "..", "a/../../b", "/etc", "a//b"] {
            let error = format!("{:?}", bench.get(TINY, Some(revision)).0.unwrap_err());
            assert_says(&error, &["is not a revision"]);
        }
        assert!(bench.fake.take_seen().is_empty());
        let new = |endpoint, token: &str| Hub::new(endpoint, PathBuf::new(), Some(token.to_owned()), false).err();
        assert_says(&format!("{:?}", new("ftp://x", "hf_x").unwrap()), &["`ftp://x` is not the address of a hub"]);
        let error = format!("{:?}", new("https://x", "hf_\u{e9}").unwrap());
        assert_says(&error, &["token"]);
        assert!(!error.contains("hf_\u{e9}"));
    });
}

#[test]
fn a_file_that_another_process_fetches_is_waited_for() {
    bounded(|| {
        let bench = Bench::new(tiny());
        let locks = bench.cache.path().join(".locks/models--acme--tiny");
        fs::create_dir_all(&locks).unwrap();
        let lock = fs::File::create(locks.join(format!("{}.lock", weights().etag()))).unwrap();
        lock.lock().unwrap();
        assert_says(&bench.error(TINY), &["`model.safetensors` of `acme/tiny`", "another process holds"]);
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(150));
            drop(lock);
        });
        bench.ok(TINY);
        other.join().unwrap();
    });
}

#[test]
fn the_default_cache_is_that_of_other_tools() {
    let cache = |pairs: &[(&str, &str)]| {
        let lookup = |name: &str| Some(pairs.iter().find(|pair| pair.0 == name)?.1.to_owned());
        default_cache(lookup).map(|path| path.to_str().unwrap().to_owned())
    };
    let (home_dir, xdg, hf) = (("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f"));
    assert_eq!(cache(&[home_dir]).unwrap(), "/h/.cache/huggingface/hub");
    assert_eq!(cache(&[home_dir, xdg]).unwrap(), "/x/huggingface/hub");
    assert_eq!(cache(&[home_dir, xdg, hf]).unwrap(), "/f/hub");
    assert_eq!(cache(&[hf, ("HUGGINGFACE_HUB_CACHE", "/g")]).unwrap(), "/g");
    assert_eq!(cache(&[hf, ("HUGGINGFACE_HUB_CACHE", "/g"), ("HF_HUB_CACHE", "/c")]).unwrap(), "/c");
    assert_eq!(cache(&[home_dir, ("HF_HUB_CACHE", ""), ("HF_HOME", "")]).unwrap(), "/h/.cache/huggingface/hub");
    assert_says(&format!("{:?}", cache(&[]).unwrap_err()), &["hint: set HF_HOME"]);
    assert_eq!(home(|name| (name == "HF_HOME").then(|| "/f".to_owned())).unwrap(), Path::new("/f"));
}
