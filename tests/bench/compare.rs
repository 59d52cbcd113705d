//! Results beside earlier ones: what is slower ends with exit code 1, and what cannot be compared is named.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{bench, json as rows_of, refused, text};

const QUICK: [&str; 7] = ["tokens-per-sec", "--pp", "4,8", "--tg", "3", "--reps", "3"];

/// A result whose rows have samples around 100 tokens a second.
fn result() -> Vec<Value> {
    let mut rows = rows_of(&QUICK);
    rows.iter_mut().for_each(|row| row["samples_ts"] = json!([100.0, 101.0, 99.0, 100.5, 99.5]));
    rows
}

fn times(rows: &[Value], factor: f64) -> Vec<Value> {
    let mut rows = rows.to_vec();
    for sample in rows.iter_mut().flat_map(|row| row["samples_ts"].as_array_mut().unwrap()) {
        *sample = (sample.as_f64().unwrap() * factor).into();
    }
    rows
}

fn write(dir: &Path, name: &str, rows: &[Value]) -> String {
    let path = dir.join(name);
    std::fs::write(&path, Value::from(rows.to_vec()).to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The exit code, the verdicts, and what was said.
fn compared(old: &str, new: &str, more: &[&str]) -> (Option<i32>, Vec<String>, String) {
    let output = bench(&[&["compare", old, new, "-o", "jsonl"], more].concat());
    let verdict = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        row["verdict"].as_str().unwrap_or("none").to_owned()
    };
    (output.status.code(), text(&output.stdout).lines().map(verdict).collect(), text(&output.stderr))
}

#[test]
fn the_same_is_the_same_and_what_is_slower_fails() {
    let (dir, rows) = (tempfile::tempdir().unwrap(), result());
    let file = |name: &str, factor: f64| write(dir.path(), name, &times(&rows, factor));
    let (old, fast) = (file("old.json", 1.0), file("fast.json", 2.0));
    assert_eq!(compared(&old, &old, &[]), (Some(0), vec!["same".to_owned(); 3], String::new()));
    let (code, verdicts, said) = compared(&fast, &old, &[]);
    assert_eq!((code, &verdicts[..]), (Some(1), &["slower", "slower", "slower"].map(str::to_owned)[..]), "{said}");
    assert!(said.contains("3 of 3 rows slower than in") && said.contains("pp8") && said.contains("-50.0 %"), "{said}");
    let (code, verdicts, _) = compared(&old, &fast, &[]);
    assert_eq!((code, &verdicts[..]), (Some(0), &["faster", "faster", "faster"].map(str::to_owned)[..]));

    // a tenth slower is seen where repetitions differ by a hundredth, and allowed where that is asked for
    let slow = file("slow.json", 0.9);
    assert_eq!(compared(&old, &slow, &[]).0, Some(1));
    assert_eq!(compared(&old, &slow, &["--threshold", "11"]).1, ["same", "same", "same"]);
    // less than chance is the same
    let close = file("close.json", 0.997);
    assert_eq!(compared(&old, &close, &["--threshold", "0"]).1, ["same", "same", "same"]);
}

#[test]
fn a_run_is_compared_with_a_file() {
    let (dir, rows) = (tempfile::tempdir().unwrap(), result());
    let file = |name: &str, factor: f64| write(dir.path(), name, &times(&rows, factor));
    let run = |old: &str| bench(&[&QUICK[..], &["--compare", old, "-o", "md"]].concat());
    let (fast, slow) = (run(&file("fast.json", 1e9)), run(&file("slow.json", 1e-9)));
    assert_eq!(fast.status.code(), Some(1));
    assert!(text(&fast.stderr).contains("3 of 3 rows slower"), "{}", text(&fast.stderr));
    assert_eq!(text(&fast.stdout).matches("| slower ").count(), 3, "{}", text(&fast.stdout));
    assert_eq!(slow.status.code(), Some(0), "{}", text(&slow.stderr));
    // how sure it is that it is faster depends on how quiet this machine is
    assert!(text(&slow.stdout).contains(" old tok/s ") && !text(&slow.stdout).contains("slower"));
}

#[test]
fn rows_without_a_partner_are_named() {
    let (dir, rows) = (tempfile::tempdir().unwrap(), result());
    let (all, two) = (write(dir.path(), "all.json", &rows), write(dir.path(), "two.json", &rows[..2]));
    let (code, verdicts, said) = compared(&two, &all, &[]);
    assert_eq!((code, &verdicts[..]), (Some(1), &["same", "same", "none"].map(str::to_owned)[..]));
    assert!(said.contains("error: `") && said.contains("two.json` does not have demo tg3, "), "{said}");
    assert!(said.contains("hint: it has demo pp4, "), "{said}");
    // an earlier result may have more
    let (code, _, said) = compared(&all, &two, &[]);
    assert_eq!(code, Some(0));
    assert!(said.contains("1 row of `") && said.contains("not measured now"), "{said}");
    // threads, ranks and how they are arranged belong to a row
    for (key, value) in [("n_threads", json!(7)), ("n_ranks", json!(7)), ("layout", json!("pp7")), ("batch", json!(7))]
    {
        let mut other = rows.clone();
        other[0][key] = value;
        let other = write(dir.path(), "other.json", &other);
        assert_eq!(compared(&other, &all, &[]).1, ["none", "same", "same"], "{key}");
    }
}

#[test]
fn a_faster_wrong_answer_is_no_result() {
    let (dir, rows) = (tempfile::tempdir().unwrap(), result());
    let old = write(dir.path(), "old.json", &rows);
    let mut other = times(&rows, 2.0);
    other[1]["checksum"] = "0123456789abcdef".into();
    let (code, _, said) = compared(&old, &write(dir.path(), "wrong.json", &other), &[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("not the answers of") && said.contains("demo pp8, ") && !said.contains("pp4"), "{said}");
    // another arithmetic may answer otherwise
    other[1]["arithmetic"] = "fast-1".into();
    assert_eq!(compared(&old, &write(dir.path(), "fast.json", &other), &[]).0, Some(0));
}

#[test]
fn files_of_another_shape_are_refused() {
    let (dir, rows) = (tempfile::tempdir().unwrap(), result());
    let good = write(dir.path(), "good.json", &rows);
    let file = |name: &str, text: &str| {
        let path: PathBuf = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut lacking = rows.clone();
    lacking[2].as_object_mut().unwrap().remove("n_depth");
    let mut single = rows.clone();
    single[1]["samples_ts"] = json!([100.0]);
    let mut strange = rows.clone();
    strange[1]["samples_ts"] = json!([100.0, 0.0]);
    let cases = [
        (file("text", "pp512 is 100\n"), "is not JSON"),
        (file("none", "[]"), "has no rows"),
        (file("empty", ""), "has no rows"),
        (file("llama", r#"[{"build_commit": "x", "avg_ts": 1.0}]"#), "row 1 of"),
        (file("other", r#"{"bench": "all-reduce", "size": 4}"#), "`bench all-reduce`"),
        (write(dir.path(), "lacking", &lacking), "row 3 of"),
        (write(dir.path(), "single", &single), "(demo pp8, "),
        (write(dir.path(), "strange", &strange), "(demo pp8, "),
        (dir.path().join("nowhere").to_str().unwrap().to_owned(), "nowhere"),
    ];
    for (bad, words) in &cases {
        refused(&["compare", bad, &good], 1, &[words]);
        refused(&["compare", &good, bad], 1, &[words]);
        refused(&[&QUICK[..], &["--compare", bad]].concat(), 1, &[words]);
    }
    refused(&["compare", &good, &good, "--threshold", "nan"], 2, &["--threshold"]);
}

#[test]
fn results_line_by_line_may_be_joined() {
    let (dir, rows) = (tempfile::tempdir().unwrap(), result());
    let lines = |rows: &[Value]| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    let joined = dir.path().join("joined.jsonl");
    std::fs::write(&joined, lines(&times(&rows, 0.8)) + "\n" + &lines(&times(&rows, 1.2))).unwrap();
    let new = write(dir.path(), "new.json", &rows);
    let output = bench(&["compare", joined.to_str().unwrap(), &new, "-o", "json"]);
    let compared: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!((compared[0]["old_avg_ts"].as_f64().unwrap() - 100.0).abs() < 1e-9);
    assert_eq!(compared[0]["verdict"], "same");
}
