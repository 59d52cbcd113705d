//! The JSON Schema: it describes itself, accepts what is accepted, and refuses what it can see to be wrong.

use jsonschema::Validator;
use serde_json::{Value, json};
use tbshard::cluster::{Cluster, json_schema};

use super::good::examples;

fn validator() -> Validator {
    let schema = json_schema();
    jsonschema::meta::validate(&schema).unwrap_or_else(|error| panic!("{error}"));
    jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap()
}

fn value(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

#[track_caller]
fn accepts(validator: &Validator, value: &Value) {
    let errors: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}\n{value:#}");
}

#[test]
fn the_schema_accepts_the_examples_and_what_is_written() {
    let validator = validator();
    let mut seen = 0;
    for path in examples() {
        let text = std::fs::read_to_string(&path).unwrap();
        // MLX's own form has no place in ours
        if path.extension().is_some_and(|extension| extension == "yaml") {
            accepts(&validator, &value(&text));
            seen += 1;
        } else {
            assert!(!validator.is_valid(&value(&text)), "{}", path.display());
        }
        accepts(&validator, &value(&Cluster::read(&path).unwrap().to_yaml()));
    }
    assert!(seen >= 6);
}

#[test]
fn the_schema_refuses_what_it_can_see() {
    let validator = validator();
    for text in [
        "host: [a]",
        "hosts: []",
        "hosts: a",
        "hosts: [5]",
        "hosts: [-a]",
        "hosts: [{nam: a}]",
        "hosts: [{name: a, port: 0}]",
        "hosts: [{name: a, port: \"22\"}]",
        "hosts: [{name: a, memory: 512}]",
        "hosts: [{name: a, memory: 512G}]",
        "hosts: [{name: a, weight: 0}]",
        "hosts: [{name: a, threads: 1.5}]",
        "hosts: [{name: a, user: -x}]",
        "hosts: [{ssh: a b}]",
        "hosts: [{name: a, addresses: mac1}]",
        "hosts: [{name: a, addresses: [10.0.0]}]",
        "hosts: [{name: a, rdma: [x]}]",
        "hosts: [{name: a, rdma: {b: [x y]}}]",
        "hosts: [{name: a, models: {q: here}}]",
        "hosts: [{name: a, binary: bin/x}]",
        "hosts: [{name: a, env: [A]}]",
        "hosts: [a]\ntransport: rmda",
        "hosts: [a]\ntopology: star",
        "hosts: [a]\nparallel: {tpp: 1}",
        "hosts: [a]\nparallel: {strategy: both}",
        "hosts: [a]\nparallel: {split: [0]}",
        "hosts: [a]\ntimeouts: {connect: 10 parsecs}",
        "hosts: [a]\ntimeouts: {conect: 10s}",
    ] {
        assert!(!validator.is_valid(&value(text)), "the schema accepts {text:?}");
        // a number in quotes is the one thing that only an editor minds
        assert!(text.contains("\"22\"") || Cluster::parse(text, "f").is_err(), "the reader accepts {text:?}");
    }
}

#[test]
fn every_key_is_described_and_every_table_is_closed() {
    let schema = json_schema();
    let tables = schema["$defs"].as_object().unwrap();
    let mut keys = Vec::new();
    for (name, table) in tables.iter().map(|(name, table)| (name.as_str(), table)).chain([("", &schema)]) {
        assert_eq!(table["additionalProperties"], json!(false), "{name}");
        for (key, property) in table["properties"].as_object().unwrap() {
            let text = property["description"].as_str().unwrap_or_else(|| panic!("{name}.{key} has no description"));
            assert!(text.len() > 15 && text.ends_with('.'), "{name}.{key}: {text}");
            keys.push(key.clone());
        }
    }
    let expected = [
        "name",
        "ssh",
        "user",
        "port",
        "addresses",
        "rdma",
        "memory",
        "weight",
        "threads",
        "binary",
        "models",
        "env",
        "tp",
        "pp",
        "strategy",
        "split",
        "connect",
        "start",
        "heartbeat",
        "progress",
        "hosts",
        "transport",
        "topology",
        "parallel",
        "timeouts",
    ];
    let (mut keys, mut expected) = (keys, expected.map(str::to_owned).to_vec());
    keys.sort();
    expected.sort();
    assert_eq!(keys, expected);
}
