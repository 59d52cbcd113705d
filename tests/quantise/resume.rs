//! Killed at any moment and run again, a conversion goes on, and its result is that of one that nobody disturbed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{quantized, solid};
use crate::support::program::command;

/// Every file of `dir`.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn killed_at_random_moments() {
    let model = solid(6, 512, 8000);
    let out = TempDir::new().unwrap();
    let settings = ["--bits", "3", "--group", "32", "--file-size", "1", "--threads", "2"];
    let start = Instant::now();
    quantized(model.path(), &out.path().join("undisturbed"), &settings);
    let undisturbed = start.elapsed().as_micros() as u64;
    let expected = files(&out.path().join("undisturbed"));
    assert!(expected.len() > 12, "{:?}", expected.keys());

    let mut random = 7_u64;
    let (mut kills, mut kept, mut rounds) = (0, 0, 0);
    while kills < 25 || kept == 0 {
        rounds += 1;
        assert!(rounds < 400, "only {kills} of so many attempts were killed in time");
        let dir = out.path().join(format!("round {rounds}"));
        let (source, target) = (model.path().display().to_string(), dir.display().to_string());
        loop {
            let args = [&["quantize", "--model", &source, "--output", &target], &settings[..]].concat();
            let mut child = command(&args).stderr(Stdio::piped()).spawn().unwrap();
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // from before it has read the model to its last files
            std::thread::sleep(Duration::from_micros((random >> 33) % undisturbed));
            if child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                kills += 1;
            }
            let output = child.wait_with_output().unwrap();
            if output.status.success() {
                kept += usize::from(String::from_utf8_lossy(&output.stderr).contains("kept from before"));
                break;
            }
            // killed, not failed
            assert_eq!(output.status.code(), None, "{}", String::from_utf8_lossy(&output.stderr));
            // config.json comes last but for the mark's removal
            let (mark, config) = (dir.join(".tbshard-quantize.json"), dir.join("config.json"));
            assert!(mark.exists() || config.exists() || !dir.exists() || files(&dir).is_empty());
            // killed when all was done
            if config.exists() && !mark.exists() {
                break;
            }
        }
        let found = files(&dir);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert!(found == expected, "round {rounds}");
    }
    println!("{kills} kills in {rounds} rounds, {kept} of them kept files");
    assert!(kept > 0, "no attempt kept what an earlier one had finished");
}

#[test]
fn interrupted_by_the_user() {
    let model = solid(6, 512, 8000);
    let out = TempDir::new().unwrap();
    for attempt in 0..20 {
        let dir = out.path().join(attempt.to_string());
        let (source, target) = (model.path().display().to_string(), dir.display().to_string());
        let args = ["quantize", "--model", &source, "--output", &target, "--file-size", "1"];
        let child = command(&args).stderr(Stdio::piped()).spawn().unwrap();
        while !dir.join(".tbshard-quantize.json").exists() && !dir.join("config.json").exists() {
            std::thread::yield_now();
        }
        let pid = rustix::process::Pid::from_child(&child);
        // what has ended is not reaped yet, so the number is still its own
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            // it was faster
            continue;
        }
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{text}");
        assert!(text.contains("the same command goes on") && !text.contains("error"), "{text}");
        assert!(!dir.join("config.json").exists());
        quantized(model.path(), &dir, &["--file-size", "1"]);
        return;
    }
    panic!("twenty attempts were over before the signal came");
}
