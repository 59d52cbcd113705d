//! `tbshard bench` as its user runs it: rows, formats, checks and exit codes. What is fast is nobody's business here.

mod all_reduce;
mod compare;
mod load;
mod tokens;

use std::process::Output;

use serde_json::Value;

use crate::support::program::command;

fn bench(args: &[&str]) -> Output {
    command(&[&["bench"], args].concat()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What it printed, if it ended well.
fn done(args: &[&str]) -> String {
    let output = bench(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn json(args: &[&str]) -> Vec<Value> {
    let printed = done(&[args, &["-o", "json"]].concat());
    serde_json::from_str::<Value>(&printed).unwrap().as_array().unwrap().clone()
}

/// Fails with the exit code `code`, an `error:` line with every word of `words`, and a `hint:` line.
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let output = bench(args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    let lines = |start: &str| said.lines().filter(|line| line.starts_with(start)).collect::<Vec<_>>();
    assert_eq!((lines("error: ").len(), lines("hint: ").len()), (1, 1), "{said}");
    for word in words {
        assert!(lines("error: ")[0].contains(word), "{word:?} is not in {said}");
    }
}

/// The same rows in all four formats: as many, with the same keys, each of which the help text explains.
fn formats_agree(args: &[&str], rows: usize) {
    let with = |format: &'static str| done(&[args, &["-o", format]].concat());
    let objects: Vec<Value> = serde_json::from_str(&with("json")).unwrap();
    let lines: Vec<Value> = with("jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((objects.len(), lines.len()), (rows, rows));
    let keys = |row: &Value| row.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert!(objects.iter().chain(&lines).all(|row| keys(row) == keys(&objects[0])));
    let help = done(&[args[0], "--help"]);
    let words: Vec<&str> = help.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    for key in keys(&objects[0]) {
        assert!(words.contains(&&key[..]), "{key} is not explained");
    }

    let table = with("csv");
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let heading: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let written: Vec<String> = keys(&objects[0]).into_iter().filter(|key| !key.starts_with("samples_")).collect();
    assert_eq!(heading, written);
    // the reader refuses rows of another length
    assert_eq!(reader.records().filter(Result::is_ok).count(), rows);

    let table = with("md");
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), rows + 2, "{table}");
    let cells = |line: &str| line.matches('|').count();
    assert!(cells(lines[0]) > 6 && lines.iter().all(|line| cells(line) == cells(lines[0])), "{table}");
    assert!(lines[1].chars().all(|c| "|-:".contains(c)), "{table}");
}
