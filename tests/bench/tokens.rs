//! `bench tokens-per-sec`: every combination once, in order, with numbers that belong together and answers that are right.

use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{bench, formats_agree, json, refused, text};
use crate::cli::tiny;
use crate::lab::{Lab, binary};
use crate::support::program::command;

const BENCH: &str = "tokens-per-sec";

fn strings(rows: &[Value], key: &str) -> Vec<String> {
    rows.iter().map(|row| row[key].as_str().unwrap().to_owned()).collect()
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"))
}

fn list(row: &Value, key: &str) -> Vec<f64> {
    row[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

#[test]
fn lists_are_run_in_every_combination_and_numbers_belong_together() {
    let lists = ["--pp", "4,9", "--tg", "0,2", "--depth", "0,3", "--batch", "1,3", "--threads", "2,1", "--reps", "2"];
    let rows = json(&[&[BENCH][..], &lists].concat());
    let tests = ["", " b3", " @ d3", " @ d3 b3"].map(|rest| ["pp4", "pp9", "tg2"].map(|test| test.to_owned() + rest));
    assert_eq!(strings(&rows, "test"), [&tests.concat()[..], &tests.concat()].concat());
    let threads: Vec<f64> = rows.iter().map(|row| number(row, "n_threads")).collect();
    assert_eq!(threads, [[2.0; 12], [1.0; 12]].concat());
    for row in &rows {
        let n = |key| number(row, key);
        let name = row["test"].as_str().unwrap();
        let length: f64 = name[2..].split(' ').next().unwrap().parse().unwrap();
        assert_eq!((n("n_prompt"), n("n_gen")), if name.starts_with("pp") { (length, 0.0) } else { (0.0, length) });
        assert_eq!(n("n_depth"), if name.contains("@ d3") { 3.0 } else { 0.0 });
        assert_eq!(n("batch"), if name.ends_with("b3") { 3.0 } else { 1.0 });
        // tokens of all sequences count
        let (ns, ts) = (list(row, "samples_ns"), list(row, "samples_ts"));
        assert_eq!((ns.len(), ts.len()), (2, 2));
        for (ns, ts) in ns.iter().zip(&ts) {
            assert!((ts * ns / 1e9 / (length * n("batch")) - 1.0).abs() < 1e-3, "{row}");
        }
        assert!((n("avg_ts") - (ts[0] + ts[1]) / 2.0).abs() < 1e-6 * n("avg_ts"));
        assert!((n("stddev_ts") - (ts[0] - ts[1]).abs() / 2f64.sqrt()).abs() < 1e-6 * n("avg_ts"));
        // one rank computes all the time
        let seconds = (list(row, "compute_seconds"), list(row, "wire_seconds"), list(row, "wait_seconds"));
        assert!(seconds.0[0] > 0.0 && seconds.0[0] * 1e9 <= 1.01 * n("avg_ns"), "{row}");
        assert_eq!((seconds.1, seconds.2, row["transport"].is_null()), (vec![0.0], vec![0.0], true));
        let bound = row["bytes_per_token"].as_f64();
        assert_eq!(bound.is_some(), name.starts_with("tg"));
        if let Some(bytes) = bound {
            let percent = 100.0 * bytes * n("avg_ts") / n("memory_bandwidth");
            assert!((n("bandwidth_percent") - percent).abs() < 1e-6 * percent);
        }
    }
    // depth, not the batch or the threads, makes another question
    for row in &rows {
        let same = |other: &&Value| ["n_prompt", "n_gen", "n_depth"].iter().all(|key| other[*key] == row[*key]);
        assert!(rows.iter().filter(same).all(|other| other["checksum"] == row["checksum"]));
        assert!(rows.iter().filter(|other| !same(other)).all(|other| other["checksum"] != row["checksum"]));
    }
}

#[test]
fn all_formats_have_the_same_rows() {
    formats_agree(&[BENCH, "--pp", "4", "--tg", "2", "--reps", "2", "--local", "1,2"], 4);
}

#[test]
fn any_ranks_and_threads_give_the_answer_of_one() {
    let quick = [BENCH, "--pp", "40", "--tg", "5", "--depth", "0,7", "--reps", "1"];
    let alone = json(&[&quick[..], &["--threads", "1"]].concat());
    let spread: [(&[&str], &[&str]); 4] = [
        (&["--local", "4,1", "--tp", "1,2,4", "--threads", "1"], &["alone", "pp4", "tp2×pp2", "tp4"]),
        (&["--local", "2", "--strategy", "pipeline", "--transport", "tcp", "--batch", "2"], &["pp2"]),
        (&["--local", "2,3", "--no-baseline"], &["tp2", "tp3"]),
        (&["--local", "2", "--split", "6,2"], &["pp2 6+2"]),
    ];
    for (flags, layouts) in spread {
        let rows = json(&[&quick[..], flags].concat());
        let expected: Vec<&str> = layouts.iter().flat_map(|layout| [*layout; 4]).collect();
        assert_eq!(strings(&rows, "layout"), expected, "{flags:?}");
        for (row, own) in rows.iter().zip(alone.iter().cycle()) {
            assert_eq!(row["checksum"], own["checksum"], "{row}");
            let ranks = number(row, "n_ranks");
            let lists = ["weights_bytes", "compute_seconds", "wire_seconds", "wait_seconds", "sent_bytes"];
            assert!(lists.iter().all(|key| row[*key].as_array().unwrap().len() == ranks as usize), "{row}");
            assert!(list(row, "compute_seconds").iter().all(|seconds| *seconds > 0.0), "{row}");
            let several = ranks > 1.0;
            assert_eq!(list(row, "sent_bytes").iter().sum::<f64>() > 0.0, several, "{row}");
            assert_eq!(list(row, "wait_seconds").iter().sum::<f64>() > 0.0, several, "{row}");
            let carried = if flags.contains(&"tcp") { "tcp" } else { "shm" };
            assert_eq!(row["transport"].as_str(), several.then_some(carried));
            let scaled = several && !flags.contains(&"--no-baseline");
            assert_eq!((row["speedup"].is_f64(), row["efficiency_percent"].is_f64()), (scaled, scaled), "{row}");
            if scaled {
                let percent = 100.0 * number(row, "speedup") / ranks;
                assert!((number(row, "efficiency_percent") - percent).abs() < 1e-6 * percent);
            }
        }
    }
}

#[test]
fn one_rank_that_is_shown_is_what_others_are_measured_against() {
    let args = [BENCH, "--pp", "4", "--tg", "0", "--reps", "2", "--local", "2,1", "--threads", "1"];
    let rows = json(&args);
    assert_eq!(strings(&rows, "layout"), ["alone", "tp2"]);
    let speedup = number(&rows[1], "avg_ts") / number(&rows[0], "avg_ts");
    assert!((number(&rows[1], "speedup") - speedup).abs() < 1e-6 * speedup);
    // without --threads the one rank has all cores, and is no measure for a rank that has some
    let rows = json(&args[..args.len() - 2]);
    assert_eq!(strings(&rows, "layout"), ["alone", "tp2"]);
    let speedup_over_all = number(&rows[1], "avg_ts") / number(&rows[0], "avg_ts");
    let same = (number(&rows[1], "speedup") - speedup_over_all).abs() < 1e-6 * speedup_over_all;
    assert_eq!(same, rows[0]["n_threads"] == rows[1]["n_threads"]);
}

/// The ids that the first sequence is given: see `token` in cli/bench/measure.rs.
fn ids(count: usize, vocab: usize) -> String {
    (0..count).map(|at| (at.wrapping_mul(2_654_435_761) % vocab).to_string()).collect::<Vec<_>>().join(",")
}

#[test]
fn the_checksum_is_of_the_logits_that_score_writes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("logits.safetensors");
    let vocab = 1024;
    let scored = command(&["score", "--prompt-tokens", &ids(12, vocab), "--logits", file.to_str().unwrap()]);
    assert!({ scored }.output().unwrap().status.success());
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let logits = tensors.tensor("logits").unwrap();
    assert_eq!(logits.shape(), [12, vocab]);
    let rows: Vec<&[u8]> = logits.data().chunks(4 * vocab).collect();
    let likeliest = |row: &&[u8]| {
        let values: Vec<f32> = row.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (0..vocab).max_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap() as u32
    };
    let chosen: Vec<u32> = rows.iter().map(likeliest).collect();
    let digest = |chosen: &[u32]| {
        let ids: Vec<u8> = chosen.iter().flat_map(|id| id.to_le_bytes()).collect();
        tbshard::weights::hex(Sha256::new().chain_update(&ids).chain_update(rows[11]))[..16].to_owned()
    };
    let measured = |pp: &str, tg: &str, depth: &str| {
        let args = [BENCH, "--pp", pp, "--tg", tg, "--depth", depth, "--reps", "1", "--batch", "1,3"];
        strings(&json(&args), "checksum")
    };
    assert_eq!(measured("12", "0", "0"), vec![digest(&[]); 2]);
    assert_eq!(measured("0", "12", "0"), vec![digest(&chosen); 2]);
    assert_eq!(measured("5", "0", "7"), vec![digest(&[]); 2]);
    assert_eq!(measured("0", "5", "7"), vec![digest(&chosen[7..]); 2]);
}

#[test]
fn random_weights_need_no_download() {
    let small = ["--model", &tiny("qwen3_5-fp8"), "--weights", "random", "--layers", "2"];
    let quick = ["--pp", "4", "--tg", "2", "--reps", "2"];
    let rows = json(&[&[BENCH][..], &small, &quick].concat());
    assert!(strings(&rows, "model").iter().all(|model| model.ends_with(" (random, 2 layers)")));
    if !cfg!(debug_assertions) {
        let catalogue = ["--model", "qwen3.6-27b-fp8", "--weights", "random", "--layers", "1", "-q"];
        assert_eq!(json(&[&[BENCH][..], &catalogue, &quick].concat()).len(), 2);
    }
}

#[test]
fn a_token_reads_what_it_needs_and_no_more() {
    let rows = json(&[BENCH, "--pp", "0", "--tg", "1,3", "--depth", "0,10", "--reps", "1"]);
    let bytes: Vec<f64> = rows.iter().map(|row| number(row, "bytes_per_token")).collect();
    // two layers with two kv heads of 32 values, keys and values in f32, a position
    let position = 2.0 * 2.0 * 32.0 * 2.0 * 4.0;
    assert_eq!(bytes[1] - bytes[0], position);
    assert_eq!(bytes[2] - bytes[0], 10.0 * position);
    // six gated delta nets: three past inputs of 320 channels, and six heads of 32 × 32
    let state = 6.0 * 4.0 * (3.0 * 320.0 + 6.0 * 32.0 * 32.0);
    let weights = list(&rows[0], "weights_bytes")[0];
    assert!((bytes[0] - weights - position - state).abs() < 1.0, "{bytes:?} {weights}");
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is() {
    let cases: [(&[&str], &[&str]); 14] = [
        (&["--reps", "0"], &["--reps 0"]),
        (&["--pp", "0", "--tg", "0,0"], &["--pp 0 and --tg 0"]),
        (&["--batch", "1,0"], &["--batch 0"]),
        (&["--batch", "5000"], &["--batch 5000"]),
        (&["--threads", "1,0"], &["--threads 0"]),
        (&["--threads", "2000"], &["--threads 2000"]),
        (&["--ctx", "100", "--depth", "90", "--pp", "11", "--tg", "1"], &["101 tokens", "--ctx 100"]),
        (&["--local", "2,0"], &["--local 0"]),
        (&["--local", "1,3", "--tp", "2"], &["--tp 2 does not divide the 3 ranks"]),
        (&["--local", "2", "--split", "5,5"], &["--split adds up to 10"]),
        (&["--tp", "2"], &["--tp"]),
        (&["--strategy", "tensor"], &["--strategy"]),
        (&["--compare", "old.json", "--reps", "1"], &["--reps 1"]),
        (&["--compare", "old.json", "--threshold", "inf"], &["--threshold inf"]),
    ];
    for (flags, words) in cases {
        refused(&[&[BENCH][..], flags].concat(), 2, words);
    }
    refused(&[BENCH, "--depth", "18446744073709551615"], 1, &["positions are too many"]);
    for empty in [["--pp", ""], ["--tg", "1,"], ["--local", ","]] {
        let output = bench(&[&[BENCH][..], &empty].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(empty[0]), "{}", text(&output.stderr));
    }
}

#[test]
fn a_lost_rank_ends_it() {
    let mut run = command(&["bench", BENCH, "--local", "2", "--no-baseline", "--tg", "100000", "--pp", "0"]);
    let mut run = run.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(3));
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.id()));
    let Ok(children) = children else {
        run.kill().unwrap();
        run.wait().unwrap();
        return println!("skipped: this system does not tell who started whom");
    };
    let rank = children.split_whitespace().next().unwrap();
    assert!(std::process::Command::new("kill").args(["-9", rank]).status().unwrap().success());
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("rank 1 ") && output.stdout.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn hosts_give_the_answer_of_one_machine() {
    let Some(lab) = Lab::new(2) else { return };
    let quick = [BENCH, "--pp", "9", "--tg", "3", "--reps", "2"];
    let alone = json(&quick);
    let [alpha, bravo] = lab.hosts() else { panic!("two hosts") };
    let elsewhere = lab.cluster_yaml(&[alpha, bravo], Some(binary()), "");
    let member = lab.cluster_yaml(&[alpha, lab.launcher()], Some(binary()), "parallel: {pp: 2}\n");
    for (file, layout, threads) in [(&elsewhere, "tp2", "1"), (&member, "pp2", "1,2")] {
        let hosts = ["--hosts", file.to_str().unwrap(), "--threads", threads, "-o", "jsonl"];
        let output = lab.command(&[&["bench"], &quick[..], &hosts].concat()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let rows: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), 2 * threads.split(',').count());
        for (row, own) in rows.iter().zip(alone.iter().cycle()) {
            assert_eq!((&row["checksum"], &row["layout"]), (&own["checksum"], &layout.into()));
            assert_eq!((number(row, "n_ranks"), &row["transport"]), (2.0, &"tcp".into()));
        }
    }
    // what would need the ranks more than once, or a file of this machine
    for (flags, word) in [(["--threads", "1,2"], "--threads"), (["--compare", "old.json"], "--compare")] {
        let hosts = ["--hosts", elsewhere.to_str().unwrap()];
        let output = lab.command(&[&["bench"], &quick[..], &hosts, &flags].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(word), "{}", text(&output.stderr));
    }
}
