//! A model far larger than the memory that its conversion takes.

use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use super::hollow;
use crate::support::program::command;

/// Anonymous memory at most; what is mapped from files can be dropped.
const LIMIT_KIB: u64 = 100 * 1024;

#[test]
fn a_gigabyte_takes_little_memory() {
    if !std::path::Path::new("/proc/self/status").exists() {
        println!("skipped: there is no /proc");
        return;
    }
    let model = hollow(8, 2048, 60_000);
    assert!(model.path().join("model.safetensors").metadata().unwrap().len() > 1_000_000_000);
    let out = TempDir::new().unwrap();
    let (source, target) = (model.path().display().to_string(), out.path().display().to_string());
    let mut child =
        command(&["quantize", "--model", &source, "--output", &target]).stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let (mut peak, mut looks) = (0, 0);
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        if let Some(kib) = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()) {
            peak = peak.max(kib);
            looks += 1;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    assert!(child.wait().unwrap().success());
    println!("{peak} KiB at most in {looks} looks");
    assert!(looks > 20, "{looks}");
    assert!(peak < LIMIT_KIB, "{peak} KiB");
}
