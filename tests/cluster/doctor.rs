//! `doctor` and `setup` over real hosts: what is wrong has a fix, what is right is measured.

use serde_json::Value;

use super::{nothing_is_left, run};
use crate::lab::{Host, Lab, binary};

fn doctor(lab: &Lab, hosts: &[&Host], rest: &str, args: &[&str]) -> (Option<i32>, Value) {
    let file = lab.cluster_yaml(hosts, Some(binary()), rest);
    let ended = run(lab.command(&[&["doctor", "--hosts", file.to_str().unwrap(), "--json"][..], args].concat()));
    let report = serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    (ended.code, report)
}

fn findings(report: &Value) -> Vec<String> {
    let all = report["findings"].as_array().unwrap().iter();
    all.map(|finding| {
        assert!(!finding["fix"].as_str().unwrap().is_empty(), "{finding}");
        format!("{}: {}", finding["host"].as_str().unwrap(), finding["what"].as_str().unwrap())
    })
    .collect()
}

#[test]
fn a_cluster_in_order_has_no_findings_and_every_link_is_measured() {
    let Some(lab) = Lab::new(3) else { return };
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let (code, report) = doctor(&lab, &hosts, "", &["--model", &crate::cli::tiny("qwen3")]);
    let errors: Vec<String> =
        findings(&report).into_iter().filter(|finding| !finding.contains("of memory are free")).collect();
    assert_eq!((code, errors), (Some(0), Vec::new()));
    let links = report["links"].as_array().unwrap();
    let pairs: Vec<String> = links.iter().map(|link| link["ranks"].to_string()).collect();
    assert_eq!(pairs, ["[0,1]", "[0,2]", "[1,2]"]);
    for link in links {
        assert!((1e-6..0.1).contains(&link["seconds"].as_f64().unwrap()), "{link}");
        assert!(link["bytes_per_second"].as_f64().unwrap() > 1e6, "{link}");
    }
    let weights: u64 = report["hosts"].as_array().unwrap().iter().map(|host| host["weights"].as_u64().unwrap()).sum();
    assert!(weights > 10_000, "{report}");
    let digests: Vec<&Value> = report["hosts"].as_array().unwrap().iter().map(|host| &host["model_digest"]).collect();
    assert!(digests[0].is_string() && digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    nothing_is_left(&lab);
}

#[test]
fn what_would_fail_is_found_on_every_host_at_once() {
    let Some(lab) = Lab::new(4) else { return };
    let [alpha, bravo, charlie, delta] = lab.hosts() else { panic!("four hosts") };
    bravo.refuse_auth();
    let other = lab.shared().join("other-model");
    let model = crate::cli::tiny("qwen3");
    std::fs::create_dir(&other).unwrap();
    for entry in std::fs::read_dir(&model).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, other.join(path.file_name().unwrap())).unwrap();
    }
    let config = std::fs::read_to_string(other.join("config.json")).unwrap();
    std::fs::write(other.join("config.json"), config + "\n").unwrap();
    let mut text = String::new();
    for (host, place) in
        [(alpha, model.as_str()), (bravo, &model), (charlie, other.to_str().unwrap()), (delta, "/no/where")]
    {
        // delta does not have the address that the file gives it
        let address = if host.name() == "delta" { "10.77.0.99".to_owned() } else { host.address() };
        let (name, binary) = (host.name(), binary().display());
        text += &format!(
            "  - {{name: {name}, ssh: {name}, addresses: [{address}], binary: {binary}, models: {{m: {place}}}}}\n"
        );
    }
    let file = lab.shared().join("doctor.yaml");
    std::fs::write(&file, format!("hosts:\n{text}")).unwrap();
    let ended = run(lab.command(&["doctor", "--hosts", file.to_str().unwrap(), "--json", "--model", "m"]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    let found = findings(&report).join("\n");
    for text in [
        "bravo: ",
        "charlie: its model is another than that of alpha",
        "delta: there is no directory `/no/where`",
        "10.77.0.99",
    ] {
        assert!(found.contains(text), "{text:?} is not in {found}");
    }
    // those that can be used are measured all the same
    assert_eq!(report["links"].as_array().unwrap().len(), 1, "{report}");
    let text = run(lab.command(&["doctor", "--hosts", file.to_str().unwrap()])).out;
    assert!(text.contains("alpha – charlie") && text.contains("  fix: "), "{text}");
    nothing_is_left(&lab);
}

#[test]
fn setup_writes_a_file_that_works() {
    let Some(lab) = Lab::new(3) else { return };
    lab.hosts().iter().for_each(|host| host.install(binary(), None));
    let file = lab.shared().join("made.yaml");
    let file = file.to_str().unwrap();
    let ended = run(lab.command(&["setup", "--hosts", "alpha,bravo,charlie", "--over", "ethernet", "-o", file]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let text = std::fs::read_to_string(file).unwrap();
    assert!(lab.hosts().iter().all(|host| text.contains(&host.address())), "{text}");
    let ended = run(lab.command(&["generate", "--hosts", file, "--prompt", "Hi", "-n", "5"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let again = run(lab.command(&["setup", "--hosts", "alpha,bravo", "-o", file]));
    assert_eq!(again.code, Some(2), "{again:?}");
    assert!(again.err.contains("exists") && again.err.contains("--force"), "{again:?}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), text);
    nothing_is_left(&lab);
}
