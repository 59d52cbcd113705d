//! The layer table of src/README.md: which room may name which.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Room → rooms it may use. `cli` may use anything.
const TABLE: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("gpu", &["error"]),
    ("transport", &["error"]),
    ("partition", &["error"]),
    ("weights", &["error", "partition"]),
    ("comm", &["error", "transport", "partition"]),
    ("backend", &["error", "gpu", "partition", "weights"]),
    ("selftest", &["error", "partition", "weights", "backend"]),
    ("nn", &["error", "partition", "weights", "comm", "backend"]),
    ("models", &["error", "partition", "weights", "backend", "nn"]),
    ("text", &["error"]),
    ("engine", &["error", "backend", "comm", "nn", "models"]),
    ("api", &["error", "text", "engine"]),
    ("serve", &["error", "engine", "api"]),
    ("cluster", &["error", "transport", "partition", "comm", "weights"]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn room(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The rooms that `text` names as `crate::room` or inside `crate::{room…}`.
fn named(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    code.match_indices("crate::")
        .filter(|(at, _)| !code[..*at].ends_with('$'))
        .map(|(at, _)| {
            let rest = &code[at + "crate::".len()..];
            assert!(!rest.starts_with('{'), "write `use crate::room::…` one room a line");
            rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        })
        .collect()
}

#[test]
fn rooms_use_only_the_rooms_they_may() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let table: BTreeMap<_, _> = TABLE.iter().copied().collect();
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in &files {
        let relative = file.strip_prefix(&src).unwrap();
        let here = room(relative);
        if ["lib", "main", "cli"].contains(&here.as_str()) {
            continue;
        }
        let allowed = table.get(here.as_str()).unwrap_or_else(|| panic!("{here} is not in the layer table"));
        for used in named(&std::fs::read_to_string(file).unwrap()) {
            seen += 1;
            if used != here && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{} uses {used}", relative.display()));
            }
        }
    }
    assert!(seen > 50, "only {seen} uses were found: the test no longer reads the code");
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_table_only_looks_up() {
    for (row, (room, uses)) in TABLE.iter().enumerate() {
        for used in *uses {
            assert!(TABLE[..row].iter().any(|(above, _)| above == used), "{room} uses {used}, which is not above it");
        }
    }
}

#[test]
fn the_map_shows_this_table() {
    let map = include_str!("../src/README.md");
    for (room, uses) in TABLE {
        let row = map
            .lines()
            .find(|line| line.starts_with(&format!("| `{room}` ")))
            .unwrap_or_else(|| panic!("{room} is not in the map"));
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let listed: Vec<&str> = cells[3].split_whitespace().filter(|word| *word != "–").collect();
        assert_eq!(&listed, uses, "src/README.md, row of {room}");
    }
}
