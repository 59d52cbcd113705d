//! House rules that a machine can check.

use std::path::{Path, PathBuf};

/// Lines of the longest file that is allowed.
const LONGEST: usize = 400;

fn files(dir: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("fixtures") && !path.ends_with("__pycache__") {
                files(&path, extensions, found);
            }
        } else if path.extension().is_some_and(|extension| extensions.iter().any(|known| extension == *known)) {
            found.push(path);
        }
    }
}

fn all(dirs: &[&str], extensions: &[&str]) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for dir in dirs {
        files(&root.join(dir), extensions, &mut found);
    }
    assert!(!found.is_empty());
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        (name, std::fs::read_to_string(&path).unwrap())
    };
    found.into_iter().map(read).collect()
}

#[test]
fn files_are_short_and_say_what_they_are() {
    for (name, text) in all(&["src", "tests"], &["rs"]) {
        assert!(text.lines().count() <= LONGEST, "{name} has more than {LONGEST} lines: a concept is hiding in it");
        let opens = text.starts_with("//!") || text.starts_with("#![doc = include_str!");
        assert!(opens, "{name} does not open with a `//!` sentence");
        assert!(!text.contains("\t"), "{name} has a tab");
    }
}

#[test]
fn no_binary_is_large_and_fixtures_stay_small() {
    let mut found = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let every = ["safetensors", "json", "txt", "jinja", "md", "model"];
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    walk(&root.join("tests/fixtures"), &mut found);
    let sizes: u64 = found.iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(sizes <= 6_000_000, "the fixtures have {sizes} bytes");
    for path in found {
        let known = path.extension().is_some_and(|extension| every.iter().any(|known| extension == *known));
        assert!(known, "{} is of a kind that fixtures are not", path.display());
    }
}

#[test]
fn unsafe_stays_in_its_rooms() {
    let allowed = [
        "src/backend/cpu/",
        "src/backend/metal/fence/",
        "src/backend/metal/list.rs",
        "src/backend/metal/memory.rs",
        "src/gpu/",
        "src/transport/inherit.rs",
        "src/transport/shm/",
        "src/transport/tcp/wait.rs",
        "src/transport/verbs/",
        "src/weights/checkpoint.rs",
        "src/weights/resident.rs",
    ];
    for (name, text) in all(&["src"], &["rs"]) {
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        let uses = code.filter(|line| line.contains("unsafe ") && !line.contains("reason = ")).count();
        let may = allowed.iter().any(|place| name.starts_with(place));
        assert!(uses == 0 || may, "{name} has `unsafe`");
    }
}

#[test]
fn every_architecture_is_registered_and_has_a_fixture() {
    let registered: Vec<&str> = tbshard::models::architectures().collect();
    let mut tried = Vec::new();
    for dir in std::fs::read_dir(crate::support::files::fixtures().join("tiny")).unwrap() {
        let config = std::fs::read(dir.unwrap().path().join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        // the model inside a wrapper, alone, differs by a prefix
        let kinds = [&config["model_type"], &config["text_config"]["model_type"]];
        tried.extend(kinds.into_iter().filter_map(|kind| Some(kind.as_str()?.to_owned())));
    }
    for name in &registered {
        assert!(tried.iter().any(|kind| kind == name), "{name} has no fixture: {tried:?}");
    }
    let files = all(&["src/models"], &["rs"]).into_iter();
    for (name, _) in files.filter(|(name, _)| !name.starts_with("src/models/mlx/")) {
        let stem = Path::new(&name).file_stem().unwrap().to_string_lossy().into_owned();
        let shared = ["mod", "model", "demo", "common", "hybrid", "catalogue", "quantisation", "mla", "rope", "ahead"];
        // the one file whose architectures all have other names
        let shared = shared.contains(&stem.as_str()) || stem == "deepseek";
        assert!(shared || registered.contains(&stem.as_str()), "{name} is not registered");
    }
}
