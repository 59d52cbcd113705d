//! A server and two clients that we did not write: OpenAI's for Python, and a browser.

use std::path::Path;
use std::process::Command;

use super::set;
use crate::serve::{Server, soon};

/// Runs a script of ours in the Python environment, if that has `package`.
fn script(name: &str, package: &str, args: &[&str]) {
    let Some(python) = set("TBSHARD_PYTHON") else { return };
    let has = Command::new(&python).args(["-c", &format!("import {package}")]).output().unwrap();
    if !has.status.success() {
        return println!("skipped: {package} is not in the Python environment");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name);
    let output = Command::new(&python).arg(path).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"ok\n");
}

#[test]
fn the_openai_client_is_content() {
    let server = Server::ready(&["--local", "2", "--api-key", "secret"]);
    script("serve_openai.py", "openai", &[&format!("http://{}", server.address), "demo"]);
    // it left in the middle of its last answer
    soon("the engine is free", || {
        let metrics = server.ask("GET", "/metrics", &[("authorization", "Bearer secret")], "").body;
        metrics.contains("\ntbshard_answers_running 0\n").then_some(())
    });
}

#[test]
fn the_page_works_in_a_browser() {
    let found = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    let Some(browser) = found.into_iter().find(|path| Path::new(path).exists()) else {
        return println!("skipped: there is no Chromium");
    };
    let server = Server::ready(&["--api-key", "secret"]);
    script("serve_page.py", "playwright", &[&format!("http://{}", server.address), browser, "secret"]);
}
