//! The async runtime stays in its room.

use std::path::Path;

fn mentions(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            mentions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
            let uses = ["tokio::", "axum::", "hyper::", ".await"];
            if code.into_iter().any(|line| uses.iter().any(|name| line.contains(name))) {
                found.push(path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display().to_string());
            }
        }
    }
}

#[test]
fn nothing_else_is_async() {
    let mut found = Vec::new();
    mentions(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 3, "{found:?}");
    found.retain(|path| !path.starts_with("src/serve/"));
    assert_eq!(found, Vec::<String>::new());
}
