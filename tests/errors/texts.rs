//! The files beside the weights: tokenizer.json, generation_config.json, and the chat template's.

use serde_json::{Value, json};
use tbshard::engine::Defaults;
use tbshard::error::Result;
use tbshard::text::{Template, Tokenizer};

use crate::damage::{Specimen, refused, refused_with_hint};

const TOKENIZER: &str = "tokenizer.json";
const GENERATION: &str = "generation_config.json";

fn tokenizer(damage: impl FnOnce(&Specimen)) -> Result<Tokenizer> {
    let specimen = Specimen::of("llama");
    damage(&specimen);
    Tokenizer::open(specimen.dir.path())
}

fn tokenizer_with(pointer: &str, value: Value) -> Result<Tokenizer> {
    tokenizer(|at| at.edit_json(TOKENIZER, |json| *json.pointer_mut(pointer).unwrap() = value))
}

fn defaults(damage: impl FnOnce(&Specimen)) -> Result<Defaults> {
    let specimen = Specimen::of("llama");
    damage(&specimen);
    Defaults::open(specimen.dir.path())
}

fn defaults_with(key: &str, value: Value) -> Result<Defaults> {
    defaults(|at| at.edit_json(GENERATION, |json| json[key] = value))
}

#[test]
fn a_tokenizer_that_is_missing_or_damaged() {
    let gone = tokenizer(|at| std::fs::remove_file(at.path(TOKENIZER)).unwrap());
    refused_with_hint(gone, &["tokenizer.json`", "does not exist"], "fetch `tokenizer.json`");
    let tiktoken = tokenizer(|at| std::fs::rename(at.path(TOKENIZER), at.path("tiktoken.model")).unwrap());
    refused(tiktoken, &["tiktoken.model", "line 1"]);
    let directory = tokenizer(|at| {
        std::fs::remove_file(at.path(TOKENIZER)).unwrap();
        std::fs::create_dir(at.path(TOKENIZER)).unwrap();
    });
    refused(directory, &[TOKENIZER, "Is a directory"]);
    for text in ["", "{", "[]", "null", "{}", "version https://git-lfs.github.com/spec/v1", "{\"version\": \"9.0\"}"] {
        let result = tokenizer(|at| std::fs::write(at.path(TOKENIZER), text).unwrap());
        refused_with_hint(result, &[TOKENIZER], "fetch the file again");
    }
    for keep in [1, 100, 2000, 4864] {
        let result = tokenizer(|at| at.edit_bytes(TOKENIZER, |bytes| bytes.truncate(keep)));
        refused(result, &[TOKENIZER]);
    }
    refused(tokenizer(|at| at.edit_bytes(TOKENIZER, |bytes| bytes[3] = 0xff)), &[TOKENIZER]);
}

#[test]
fn a_tokenizer_with_parts_that_do_not_fit() {
    for (pointer, value) in [
        ("/model", json!(null)),
        ("/model", json!({"type": "Unknown"})),
        ("/model/vocab", json!([])),
        ("/model/vocab", json!({"a": -1})),
        ("/model/vocab", json!({"a": 1_u64 << 40})),
        ("/model/merges", json!([["no", "such"]])),
        ("/model/merges", json!(["one"])),
        ("/pre_tokenizer", json!({"type": "Unknown"})),
        ("/decoder", json!(5)),
        ("/added_tokens", json!(5)),
        ("/added_tokens/0/id", json!("291")),
        ("/added_tokens/0/content", json!(null)),
    ] {
        refused(tokenizer_with(pointer, value), &[TOKENIZER]);
    }
    let gap = tokenizer_with("/added_tokens/0/id", json!(4000));
    refused_with_hint(gap, &[TOKENIZER, "added token `<|endoftext|>` cannot have the id 4000"], "filler");
}

#[test]
fn a_generation_config_of_wrong_types() {
    for key in ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"] {
        for value in [json!("0.7"), json!(true), json!([0.7]), json!({})] {
            let kind = if key == "top_k" { "a whole number" } else { "a number" };
            let words = format!("generation_config.json: {key} is {value}, not {kind}");
            refused(defaults_with(key, value), &[&words]);
        }
        defaults_with(key, json!(null)).unwrap_or_else(|error| panic!("{error:?}"));
    }
    for value in [json!(-1), json!(1.5), json!(1e300)] {
        refused(defaults_with("top_k", value), &["generation_config.json: top_k is ", "not a whole number"]);
    }
    let impossible = [
        ("temperature", json!(-0.1)),
        ("temperature", json!(1e300)),
        ("top_p", json!(1.5)),
        ("top_p", json!(-1)),
        ("min_p", json!(2)),
        ("presence_penalty", json!(-1e300)),
        ("repetition_penalty", json!(0)),
    ];
    for (key, value) in impossible {
        let words = format!("generation_config.json: {key} ");
        refused(defaults_with(key, value), &[&words, "is impossible"]);
    }
    refused(defaults_with("temperature", json!(-1)), &["generation_config.json: temperature -1 is impossible"]);
    refused(defaults_with("top_k", json!(-1)), &["generation_config.json: top_k is -1, not a whole number"]);
    for value in [json!("true"), json!(1), json!([true])] {
        let words = format!("generation_config.json: do_sample is {value}, not true or false");
        refused(defaults_with("do_sample", value), &[&words]);
    }
    for value in [json!("</s>"), json!(-1), json!(1.5), json!([293, "x"]), json!(1_u64 << 32), json!({"id": 1})] {
        let words = format!("generation_config.json: eos_token_id is {value}, not a token id");
        refused(defaults_with("eos_token_id", value), &[&words]);
    }
    let in_config = defaults(|at| {
        at.edit_json(GENERATION, |json| json["eos_token_id"] = json!(null));
        at.edit_json("config.json", |json| json["eos_token_id"] = json!("</s>"));
    });
    refused(in_config, &["config.json: eos_token_id is \"</s>\", not a token id"]);
}

#[test]
fn a_generation_config_that_is_not_one() {
    for text in ["", "{\"temperature\": }", "{\"temperature\": 1e999}", "hello"] {
        let result = defaults(|at| std::fs::write(at.path(GENERATION), text).unwrap());
        refused_with_hint(result, &[GENERATION, "is not JSON"], "fetch");
    }
    for text in ["[]", "5", "\"x\"", "true"] {
        let result = defaults(|at| std::fs::write(at.path(GENERATION), text).unwrap());
        refused(result, &["generation_config.json: it is not a table"]);
    }
    let directory = defaults(|at| {
        std::fs::remove_file(at.path(GENERATION)).unwrap();
        std::fs::create_dir(at.path(GENERATION)).unwrap();
    });
    refused(directory, &[GENERATION, "Is a directory"]);
    let without_config = defaults(|at| std::fs::remove_file(at.path("config.json")).unwrap());
    refused(without_config, &["config.json`", "No such file"]);
    // it may be absent, or null
    let absent = defaults(|at| std::fs::remove_file(at.path(GENERATION)).unwrap()).unwrap();
    assert_eq!((absent.eos, absent.sampling.temperature), (vec![293], 0.0));
    let null = defaults(|at| std::fs::write(at.path(GENERATION), "null").unwrap()).unwrap();
    assert_eq!(null.eos, [293]);
}

#[test]
fn a_chat_template_that_is_damaged() {
    let open = |file: &str, text: &str| {
        let specimen = Specimen::of("llama");
        std::fs::write(specimen.path(file), text).unwrap();
        Template::open(specimen.dir.path())
    };
    for text in ["", "{", "{\"chat_template\": }"] {
        refused(open("tokenizer_config.json", text), &["tokenizer_config.json"]);
        refused(open("chat_template.json", text), &["chat_template.json"]);
    }
    for text in ["{% for %}", "{{ messages", "{% if true %}", "{% unknown %}"] {
        refused(open("chat_template.jinja", text), &["chat_template.jinja"]);
        let inside = json!({"chat_template": text}).to_string();
        refused(open("tokenizer_config.json", &inside), &["tokenizer_config.json"]);
    }
    let specimen = Specimen::of("llama");
    std::fs::write(specimen.path("chat_template.jinja"), b"\xff\xfe{{").unwrap();
    refused(Template::open(specimen.dir.path()), &["chat_template.jinja"]);
}
