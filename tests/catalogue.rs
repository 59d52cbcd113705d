//! The catalogue against published figures and against shape formulas.

mod costs;
mod shapes;

use std::collections::HashSet;

use tbshard::error::Kind;
use tbshard::models::catalogue::{Sampling, all, find, is_hub_id};

/// Parameters and bytes as publishers or audits of the shard headers give them.
const PUBLISHED: [(&str, u64, u64); 12] = [
    ("qwen2.5-7b-instruct", 7_615_616_512, 15_231_233_024),
    ("qwen3-0.6b", 751_632_384, 1_503_264_768),
    ("qwen3-235b-a22b", 235_093_634_560, 470_187_269_120),
    ("qwen3-next-80b-a3b-instruct", 81_324_862_720, 162_649_725_440),
    ("qwen3.5-397b-a17b", 403_397_928_944, 806_795_875_168),
    ("qwen3.6-27b", 27_781_427_952, 55_562_855_904),
    ("qwen3.6-35b-a3b-fp8", 35_951_822_704, 37_454_789_472),
    ("qwen3.8-2.4t-a95b", 2_446_182_725_504, 4_892_365_451_008),
    ("kimi-k2-instruct", 1_026_408_232_448, 1_029_173_256_720),
    ("kimi-k2-thinking", 1_026_408_232_448, 594_205_920_512),
    ("kimi-k2.6", 1_026_879_376_368, 595_148_192_736),
    ("kimi-linear-48b-a3b-instruct", 49_122_681_728, 98_245_528_576),
];

#[test]
fn figures_follow_from_the_shapes() {
    for entry in all().unwrap() {
        assert_eq!((entry.parameters, entry.bytes), shapes::counted(&entry), "{}", entry.name);
    }
}

#[test]
fn figures_are_the_published_ones() {
    for (name, parameters, bytes) in PUBLISHED {
        let entry = find(name).unwrap();
        assert_eq!((entry.parameters, entry.bytes), (parameters, bytes), "{name}");
    }
}

#[test]
fn every_file_of_the_folder_is_embedded() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models");
    let mut written = HashSet::new();
    for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
        if file.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(file).unwrap();
            written.extend(text.lines().filter_map(|line| line.strip_prefix("  - name: ")).map(str::to_owned));
        }
    }
    assert_eq!(written, all().unwrap().into_iter().map(|entry| entry.name).collect());
    assert!(written.len() > 40, "{}", written.len());
}

#[test]
fn entries_agree_with_themselves() {
    let mut names = HashSet::new();
    for entry in all().unwrap() {
        let (name, config) = (&entry.name, &entry.config);
        assert!(names.insert(name.clone()), "{name} twice");
        assert!(is_hub_id(&entry.hub), "{}", entry.hub);
        assert_eq!(*name, entry.hub.rsplit('/').next().unwrap().to_lowercase());
        assert_eq!(entry.architecture, config["model_type"], "{name}");
        let text = config.get("text_config").unwrap_or(config);
        let context = text.get("max_position_embeddings").unwrap_or(&text["model_max_length"]);
        assert_eq!(entry.context as u64, context.as_u64().unwrap(), "{name}");
        let Sampling { temperature, top_p, top_k, min_p, presence_penalty } = entry.sampling;
        assert!(temperature.is_none_or(|value| value > 0.0 && value <= 1.0), "{name}");
        assert!(top_p.is_none_or(|value| value > 0.5 && value <= 1.0), "{name}");
        assert!(min_p.is_none_or(|value| (0.0..1.0).contains(&value)), "{name}");
        assert!(presence_penalty.is_none_or(|value| (0.0..=2.0).contains(&value)), "{name}");
        assert_eq!(top_k, entry.hub.starts_with("Qwen/").then_some(20), "{name}");
    }
}

#[test]
fn a_model_is_found_by_either_name_in_any_case() {
    let entry = find("Qwen3.6-27B").unwrap();
    assert_eq!(entry, find("qwen/qwen3.6-27b").unwrap());
    assert_eq!((entry.family.as_str(), entry.licence.as_str()), ("Qwen3.6", "Apache-2.0"));
    assert_eq!(entry.sampling.top_p, Some(0.95));
    assert_eq!(entry.config["text_config"]["rms_norm_eps"], 1e-6);
    assert_eq!(find("qwen3.8-2.4t-a95b").unwrap().licence, "Qwen3.8-Max");
}

#[test]
fn an_unknown_name_gets_the_nearest() {
    for (wrong, right) in [
        ("qwen3.6-27", "`qwen3.6-27b`"),
        ("Qwen/Qwen3.6-28B", "`qwen3.6-27b`"),
        ("kimi-k2.9", "`kimi-k2.5`"),
        ("qwen-2.5-7b-instruct", "`qwen2.5-7b-instruct`"),
    ] {
        let error = find(wrong).unwrap_err();
        assert_eq!(error.to_string(), format!("model `{wrong}` is not in the catalogue"));
        assert_eq!(error.kind(), Kind::Usage);
        let hint = error.hint_text().unwrap();
        assert!(hint.starts_with(&format!("the nearest names are {right}, `")), "{wrong}: {hint}");
        assert_eq!(hint.matches('`').count(), 6, "{hint}");
    }
}

#[test]
fn a_hub_id_is_owner_and_name() {
    assert!(is_hub_id("moonshotai/Kimi-K2.6") && is_hub_id("a_b/c"));
    for other in ["", "qwen3-8b", "/x", "x/", "a/b/c", "./models", "../x", "a b/c", "a/-b", "a/b:c", "é/a"] {
        assert!(!is_hub_id(other), "{other}");
    }
}

#[test]
fn an_unknown_key_is_refused() {
    let error = serde_json::from_str::<Sampling>(r#"{"temprature": 1.0}"#).unwrap_err();
    assert!(error.to_string().contains("temprature"), "{error}");
}
