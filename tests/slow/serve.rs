//! A server and two clients that we did not write: OpenAI's for Python, and a browser.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

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

/// The demo model with a template that knows tools.
fn demo_with_tools() -> TempDir {
    const TEMPLATE: &str = r#"{%- if tools %}<|im_start|>system
{{ tools | tojson }} <tool_call>{"name": NAME, "arguments": ARGUMENTS}</tool_call><|im_end|>
{% endif %}{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}{% for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"#;
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")).unwrap() {
        let path = file.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(dir.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    dir
}

#[test]
fn the_openai_client_is_content() {
    let dir = demo_with_tools();
    let model = ["--model", dir.path().to_str().unwrap(), "--name", "demo"];
    let server = Server::ready(&[&model[..], &["--local", "2", "--api-key", "secret"]].concat());
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
    let server = Server::ready(&["--api-key", "secret", "--ctx", "70000"]);
    script("serve_page.py", "playwright", &[&format!("http://{}", server.address), browser, "secret"]);
}
