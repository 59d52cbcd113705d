//! `tbshard selftest`, and which device computes.

use serde_json::Value;

use super::{refused, run, stderr, stdout};

#[test]
fn a_machine_that_computes_right_says_so_and_writes_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let output = run(&["selftest", "--device", "cpu", "--report", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.contains(" 0 of ") && said.contains("demo: the same 48 tokens"), "{said}");
    assert!(stderr(&output).lines().filter(|line| line.starts_with("ok ")).count() > 50);
    let report: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!((&report["failed"], &report["demo"]["Ok"]), (&Value::from(0), &Value::from("same")));
    assert!(report["bytes_per_second"]["Ok"].as_f64().unwrap() > 1e8 && report["crossing_seconds"]["Ok"].is_number());
    // for the header of a system that nobody here has
    assert!(report["rdma"]["layout"].as_array().unwrap().len() > 100 && said.contains("rdma: "), "{said}");
    let cases = report["cases"].as_array().unwrap();
    // a processor's instructions compute the same bits
    assert!(cases.iter().all(|case| case["difference"] == 0.0 && case["error"].is_null()));
    for word in ["linear", "embed", "attention", "latent", "per_head", "delta_rule", "route", "experts", "rope"] {
        assert!(cases.iter().any(|case| case["name"].as_str().unwrap().contains(word)), "{word}");
    }
}

#[test]
fn some_cases_can_be_chosen_and_the_answer_be_an_object() {
    let output = run(&["selftest", "--device", "cpu", "--only", "rms_norm", "--json"]);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["cases"].as_array().unwrap().len(), 1);
    assert!(report["demo"].is_null() && stderr(&output).is_empty());
    refused(&run(&["selftest", "--only", "nothing like it"]), 2, &["no case has such a name"]);
    refused(&run(&["selftest", "--report", "/nowhere/at/all"]), 1, &["/nowhere/at/all"]);
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    if cfg!(target_os = "macos") {
        refused(&run(&["generate", "--arithmetic", "fast"]), 2, &["--device cpu"]);
    } else {
        for command in ["generate", "selftest"] {
            refused(&run(&[command, "--device", "metal"]), 2, &["--device metal is for Macs", "leave --device out"]);
        }
    }
}

#[test]
fn a_fence_that_nothing_could_meet_by_is_refused() {
    let computes = ["the processor computes", "leave --fence out"];
    refused(&run(&["generate", "--device", "cpu", "--fence", "event"]), 2, &computes);
    refused(&run(&["generate", "--device", "cpu", "--fence", "drain", "--local", "2"]), 2, &computes);
    let shared = ["--fence spin", "2 ranks share this machine's GPU", "--fence event"];
    refused(&run(&["generate", "--device", "metal", "--fence", "spin", "--local", "2"]), 2, &shared);
}
