//! A config.json that is missing, damaged, incomplete, contradictory, or of a model that tbshard does not know.

use serde_json::{Value, json};
use tbshard::error::Result;
use tbshard::models::{Model, architectures, read_config};

use crate::damage::{Specimen, refused, refused_with_hint};
use crate::fuzz::allocations;

const FIXTURES: [&str; 11] = [
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_text",
    "qwen3_5_moe",
    "deepseek_v3",
    "kimi_k25-int4",
    "kimi_linear",
];

/// Sizes that every architecture's config names.
const SIZES: [&str; 5] =
    ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings"];
/// Sizes of the gated delta nets.
const DELTA: [&str; 5] = [
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
];
/// Sizes of latent attention.
const LATENT: [&str; 5] =
    ["kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "moe_intermediate_size"];
/// Sizes of the experts.
const MOE: [&str; 3] = ["num_experts", "num_experts_per_tok", "moe_intermediate_size"];

fn config(fixture: &str) -> Value {
    serde_json::from_slice(&std::fs::read(Specimen::of(fixture).path("config.json")).unwrap()).unwrap()
}

/// The table in `config` that describes the decoder.
fn text(config: &mut Value) -> &mut Value {
    if config.get("text_config").is_some() { &mut config["text_config"] } else { config }
}

/// Opens a fixture with `key` set to `value`, or without it.
fn open(fixture: &str, key: &str, value: Option<Value>) -> Result<Model> {
    let specimen = Specimen::of(fixture);
    specimen.edit_json("config.json", |config| {
        let text = text(config).as_object_mut().unwrap();
        match value {
            Some(value) => drop(text.insert(key.to_owned(), value)),
            None => drop(text.shift_remove(key).unwrap()),
        }
    });
    specimen.open()
}

fn sizes(fixture: &str) -> Vec<&'static str> {
    let hybrid = fixture.starts_with("qwen3_5") || fixture == "qwen3_next";
    let moe = fixture.contains("moe") || fixture == "qwen3_next";
    let mut sizes = SIZES.to_vec();
    if ["deepseek_v3", "kimi_k25-int4", "kimi_linear"].contains(&fixture) {
        sizes.extend(LATENT);
        sizes.push("intermediate_size");
        sizes.extend(match fixture {
            "kimi_linear" => ["num_experts", "num_experts_per_token"],
            _ => ["n_routed_experts", "num_experts_per_tok"],
        });
        // this one calls its context otherwise
        sizes.retain(|key| fixture != "kimi_linear" || *key != "max_position_embeddings");
        return sizes;
    }
    sizes.extend(hybrid.then_some(DELTA).into_iter().flatten());
    sizes.extend(moe.then_some(MOE).into_iter().flatten());
    if fixture != "qwen3_5_moe" {
        sizes.push("intermediate_size");
    }
    if fixture == "qwen3_next" {
        sizes.push("shared_expert_intermediate_size");
    }
    sizes
}

#[test]
fn a_file_that_is_missing_or_no_json() {
    let open = |damage: &dyn Fn(&Specimen)| {
        let specimen = Specimen::of("llama");
        damage(&specimen);
        specimen.open()
    };
    let gone = open(&|at| std::fs::remove_file(at.path("config.json")).unwrap());
    refused_with_hint(gone, &["config.json`", "No such file"], "config.json, tokenizer.json and *.safetensors");
    let directory = open(&|at| {
        std::fs::remove_file(at.path("config.json")).unwrap();
        std::fs::create_dir(at.path("config.json")).unwrap();
    });
    refused(directory, &["config.json`", "Is a directory"]);
    for text in
        [&b""[..], b"{", b"{\"model_type\": \"llama\",}", b"hello", b"{\"a\": 1e400}", b"\xff", b"\xef\xbb\xbf{}"]
    {
        let result = open(&|at| std::fs::write(at.path("config.json"), text).unwrap());
        refused_with_hint(result, &["config.json` is not JSON: ", "line 1"], "fetch");
    }
    refused(open(&|at| at.edit_bytes("config.json", |bytes| bytes.truncate(300))), &["config.json` is not JSON: EOF"]);
    for text in ["[]", "null", "5", "{}", "{\"model_type\": 5}", "{\"model_type\": null}"] {
        let result = open(&|at| std::fs::write(at.path("config.json"), text).unwrap());
        refused(result, &["config.json: there is no model_type"]);
    }
}

#[test]
fn an_architecture_that_is_not_known() {
    for kind in ["gpt2", "Llama", "", "llama4", "qwen3_vl"] {
        let words = format!("config.json: the architecture `{kind}` is not supported");
        let specimen = Specimen::of("llama");
        specimen.edit_json("config.json", |config| config["model_type"] = json!(kind));
        for known in architectures() {
            refused_with_hint(specimen.open(), &[&words], known);
        }
    }
}

#[test]
fn keys_that_are_missing() {
    for fixture in FIXTURES {
        let mut keys = sizes(fixture);
        keys.push("rms_norm_eps");
        for key in keys {
            refused(open(fixture, key, None), &["config.json: ", &format!("missing field `{key}`")]);
        }
    }
    let specimen = Specimen::of("qwen3_5");
    specimen.edit_json("config.json", |config| drop(config.as_object_mut().unwrap().remove("text_config")));
    refused(specimen.open(), &["config.json: ", "text_config"]);
}

#[test]
fn keys_of_the_wrong_type() {
    for fixture in FIXTURES {
        for key in sizes(fixture) {
            let mut wrong = vec![json!("64"), json!([64]), json!({}), json!(true), json!(64.5), json!(-64)];
            // a model with experts may have no dense layers
            let optional = key == "intermediate_size" && fixture.starts_with("qwen3_5");
            wrong.extend((!optional).then_some(json!(null)));
            for value in wrong {
                refused(open(fixture, key, Some(value)), &[&format!("config.json: {key}: invalid ")]);
            }
        }
    }
    let others = [
        ("llama", "rms_norm_eps", json!("1e-5")),
        ("llama", "num_key_value_heads", json!("3")),
        ("llama", "head_dim", json!(16.0)),
        ("llama", "hidden_act", json!(["silu"])),
        ("llama", "attention_bias", json!("false")),
        ("llama", "mlp_bias", json!(0)),
        ("llama", "tie_word_embeddings", json!("true")),
        ("llama", "rope_theta", json!("1e5")),
        ("llama", "rope_scaling", json!("default")),
        ("llama", "rope_scaling", json!({"rope_type": 5})),
        ("qwen2", "use_sliding_window", json!("false")),
        ("qwen3_moe", "norm_topk_prob", json!("yes")),
        ("qwen3_moe", "decoder_sparse_step", json!(-1)),
        ("qwen3_moe", "mlp_only_layers", json!(3)),
        ("qwen3_moe", "mlp_only_layers", json!(["3"])),
        ("qwen3_5", "layer_types", json!("full_attention")),
        ("qwen3_5", "layer_types", json!([1, 2, 3, 4])),
        ("qwen3_5", "rope_parameters", json!({"rope_theta": "x"})),
        ("qwen3_5", "partial_rotary_factor", json!("0.25")),
        ("qwen3_5", "attn_output_gate", json!("true")),
        ("qwen3_5", "full_attention_interval", json!("4")),
        ("qwen3_5_moe", "shared_expert_intermediate_size", json!("16")),
    ];
    for (fixture, key, value) in others {
        refused(open(fixture, key, Some(value)), &[&format!("config.json: {key}: invalid ")]);
    }
    for value in [json!(null), json!(5), json!([]), json!("qwen3_5_text")] {
        let specimen = Specimen::of("qwen3_5");
        specimen.edit_json("config.json", |config| config["text_config"] = value);
        refused(specimen.open(), &["config.json: ", "text_config"]);
    }
}

#[test]
fn sizes_that_are_zero() {
    for fixture in FIXTURES {
        for key in sizes(fixture) {
            refused(open(fixture, key, Some(json!(0))), &[&format!("config.json: {key} 0 ")]);
        }
    }
    for (fixture, key) in [
        ("llama", "num_key_value_heads"),
        ("llama", "head_dim"),
        ("qwen3_5", "full_attention_interval"),
        ("qwen3_5_moe", "shared_expert_intermediate_size"),
    ] {
        refused(open(fixture, key, Some(json!(0))), &[&format!("config.json: {key} 0 ")]);
    }
}

/// An absurd size is refused by its name, before anything is multiplied with it or reserved for it.
#[test]
fn sizes_that_are_absurd() {
    let absurd = [json!(16_777_217), json!(1_000_000_000_000_000_000_u64), json!(1_u64 << 60), json!(u64::MAX)];
    for fixture in FIXTURES {
        let mut keys = sizes(fixture);
        keys.extend(["num_key_value_heads", "head_dim"]);
        for key in keys {
            for value in &absurd {
                let (result, largest) = allocations::largest(|| open(fixture, key, Some(value.clone())));
                refused(result, &[&format!("config.json: {key} {value} ")]);
                assert!(largest < 1 << 20, "{fixture} {key} {value}: {largest} bytes were reserved at once");
            }
            for value in [json!(1e18), json!(1.8e19), json!(1e300), json!(-1e300)] {
                refused(open(fixture, key, Some(value)), &[&format!("config.json: {key}: invalid type: floating")]);
            }
        }
    }
    // 2^60 + 9 heads of 16 values are 144 values in 64 bits, as the 9 heads of this model are
    let mut wrapped = config("llama");
    wrapped["num_attention_heads"] = json!((1_u64 << 60) + 9);
    wrapped["num_key_value_heads"] = json!((1_u64 << 60) + 9);
    refused(read_config(&wrapped).map(drop), &["num_attention_heads 1152921504606846985 "]);
}

#[test]
fn sizes_that_contradict_each_other() {
    let cases = [
        ("llama", "num_key_value_heads", json!(2), "num_attention_heads 9 is not a multiple of num_key_value_heads 2"),
        ("llama", "num_key_value_heads", json!(10), "num_attention_heads 9 is not a multiple of"),
        ("qwen2", "num_attention_heads", json!(5), "hidden_size 48 is not a multiple of num_attention_heads 5"),
        ("qwen2", "hidden_size", json!(49), "hidden_size 49 is not a multiple of num_attention_heads"),
        ("qwen2", "hidden_size", json!(2), "hidden_size 2 is not a multiple of num_attention_heads"),
        ("llama", "head_dim", json!(15), "head_dim 15 times partial_rotary_factor 1 rotates 15 values"),
        ("llama", "head_dim", json!(1), "head_dim 1 times partial_rotary_factor 1 rotates 1 values"),
        ("qwen3_next", "head_dim", json!(12), "head_dim 12 times partial_rotary_factor 0.25 rotates 3 values"),
        ("qwen3_next", "partial_rotary_factor", json!(0), "partial_rotary_factor 0 rotates 0 values"),
        ("qwen3_next", "partial_rotary_factor", json!(-0.5), "partial_rotary_factor -0.5 rotates 0 values"),
        ("qwen3_next", "partial_rotary_factor", json!(2), "partial_rotary_factor 2 rotates 32 values"),
        (
            "qwen3_5",
            "linear_num_value_heads",
            json!(5),
            "linear_num_value_heads 5 is not a multiple of linear_num_key_",
        ),
        ("qwen3_5", "linear_num_key_heads", json!(4), "linear_num_value_heads 6 is not a multiple of linear_num_key_"),
        ("qwen3_next", "linear_value_head_dim", json!(8), "linear_value_head_dim 8 is not a multiple of 16"),
        ("qwen3_next", "linear_value_head_dim", json!(24), "linear_value_head_dim 24 is not a multiple of 16"),
        ("qwen3_moe", "num_experts_per_tok", json!(7), "num_experts_per_tok 7 is not one of 1..=6 (num_experts)"),
        ("qwen3_5_moe", "num_experts_per_tok", json!(6), "num_experts_per_tok 6 is not one of 1..=5 (num_experts)"),
        ("qwen3_5", "layer_types", json!([]), "layer_types names 0 layers of 4"),
        ("qwen3_5", "layer_types", json!(["full_attention"]), "layer_types names 1 layers of 4"),
        ("qwen3_5", "num_hidden_layers", json!(5), "layer_types names 4 layers of 5"),
    ];
    for (fixture, key, value, words) in cases {
        refused(open(fixture, key, Some(value)), &["config.json: ", words]);
    }
    // contradictions that only the weights show
    let cases = [
        ("llama", "num_hidden_layers", json!(5), "has no tensor `model.layers.4."),
        ("llama", "vocab_size", json!(301), "`model.embed_tokens.weight` has shape [300, 72], not [301, 72]"),
        ("llama", "num_key_value_heads", json!(9), "k_proj.weight` has shape [48, 72], not [144, 72]"),
        ("llama", "tie_word_embeddings", json!(false), "has no tensor `lm_head.weight`"),
        ("qwen3_moe", "num_experts", json!(7), "mlp.gate.weight` has shape [6, 48], not [7, 48]"),
        ("qwen3_5", "attn_output_gate", json!(false), "q_proj.weight` has shape [384, 48], not [192, 48]"),
        ("qwen3_5", "linear_conv_kernel_dim", json!(3), "conv1d.weight` has shape [160, 1, 4], not [160, 1, 3]"),
    ];
    for (fixture, key, value, words) in cases {
        refused(open(fixture, key, Some(value)), &[words]);
    }
}

#[test]
fn options_that_are_not_supported() {
    let mut kinds = vec![String::from("linear_attention"); 4];
    kinds[2] = String::from("sliding_attention");
    let cases = [
        ("llama", "hidden_act", json!("gelu"), "hidden_act `gelu` is not supported, only `silu`"),
        ("llama", "hidden_act", json!(""), "hidden_act `` is not supported"),
        ("qwen2", "use_sliding_window", json!(true), "use_sliding_window is not supported"),
        ("llama", "attention_bias", json!(true), "attention_bias is not supported for this architecture"),
        ("qwen3", "attention_bias", json!(true), "attention_bias is not supported for this architecture"),
        ("llama", "mlp_bias", json!(true), "mlp_bias is not supported"),
        ("qwen3_5", "layer_types", json!(kinds), "layer_types names the unknown `sliding_attention`"),
        ("qwen3_5", "layer_types", json!(["", "", "", ""]), "layer_types names the unknown ``"),
        ("llama", "rope_theta", json!(0), "rope_theta 0 is not a positive number"),
        ("llama", "rope_theta", json!(-1e4), "rope_theta -10000 is not a positive number"),
        ("llama", "rope_theta", json!(1e300), "rope_theta inf is not a positive number"),
        ("qwen3_5", "rope_parameters", json!({"rope_theta": 0}), "rope_theta 0 is not a positive number"),
        ("llama", "rms_norm_eps", json!(-1e-5), "rms_norm_eps -0.00001 is not a positive number"),
        ("llama", "rms_norm_eps", json!(1e300), "rms_norm_eps inf is not a positive number"),
    ];
    for (fixture, key, value, words) in cases {
        refused(open(fixture, key, Some(value)), &["config.json: ", words]);
    }
    for kind in ["dynamic", "longrope", "Default", ""] {
        let words = format!("rope type `{kind}` is not supported");
        for (fixture, key) in [("llama", "rope_scaling"), ("qwen3", "rope_parameters"), ("qwen3_5", "rope_parameters")]
        {
            for name in ["rope_type", "type"] {
                refused(open(fixture, key, Some(json!({name: kind, "factor": 2}))), &[&words]);
            }
            // as transformers wrote it for a while
            refused(open(fixture, key, Some(json!({"rope_type": kind, "type": kind}))), &[&words]);
        }
    }
}

#[test]
fn weights_in_formats_that_are_not_supported() {
    let unnamed = json!({"bits": 4, "weight_block_size": [128, 128]});
    let cases = [
        ("quantization_config", json!({"quant_method": "gptq", "bits": 4}), "the quantisation method `gptq` is not"),
        ("quantization_config", json!({"quant_method": "awq"}), "the quantisation method `awq` is not supported"),
        ("quantization_config", unnamed, "the quantisation method `` is not supported"),
        ("quantization_config", json!([]), "the quantisation method `` is not supported"),
        ("quantization_config", json!({"quant_method": "fp8"}), "weight_block_size null is not [128,128]"),
        (
            "quantization_config",
            json!({"quant_method": "fp8", "weight_block_size": [64, 128]}),
            "weight_block_size [64,128] is not [128,128]",
        ),
        ("quantization", json!({"group_size": 64, "bits": 7}), "there is no affine format of 7 bits in groups of 64"),
        ("quantization", json!({"group_size": 16, "bits": 4}), "there is no affine format of 4 bits in groups of 16"),
        ("quantization", json!({"mode": "mxfp4", "bits": 8}), "mxfp4 has 4 bits in groups of 32, not 8 in 32"),
        ("quantization", json!({"mode": "q4_k"}), "the quantisation mode `q4_k` is not known"),
        ("quantization", json!({"bits": "four"}), "bits \"four\" of quantization is not a number"),
        ("quantization", json!({"mode": 4}), "mode of quantization is not a text"),
        ("quantization", json!({"model.layers.0.mlp": {"bits": 1}}), "quantization of `model.layers.0.mlp`"),
        ("quantization", json!(4), "quantization is 4, not a table"),
    ];
    for fixture in ["llama", "qwen3_5_moe"] {
        for (key, value, words) in &cases {
            refused(open(fixture, key, Some(value.clone())), &["config.json: ", words]);
        }
    }
}

#[test]
fn what_is_no_damage() {
    let cases = [
        ("llama", "rope_scaling", json!({"rope_type": "default", "type": "default"})),
        ("llama", "rope_scaling", json!({})),
        ("llama", "an_unknown_key", json!({"of": ["any", "type"]})),
        ("llama", "max_position_embeddings", json!(10_485_760)),
        ("qwen2", "sliding_window", json!("not read")),
        ("qwen3_moe", "decoder_sparse_step", json!(0)),
        ("qwen3_5", "full_attention_interval", json!(3)),
    ];
    for (fixture, key, value) in cases {
        open(fixture, key, Some(value)).map(drop).unwrap_or_else(|error| panic!("{fixture} {key}: {error:?}"));
    }
}
