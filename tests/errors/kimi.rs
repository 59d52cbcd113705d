//! DeepSeek-V3, Kimi K2.5 and Kimi-Linear: configs that contradict themselves or ask for something else, INT4 experts
//! whose tensors are missing or do not fit.

use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tbshard::error::Result;
use tbshard::models::Model;

use crate::damage::{INDEX, Plain, Specimen, refused, refused_with_hint};

const PACKED: &str = "kimi_k25-int4";
/// A matrix `[32, 32]` in INT4.
const UP: &str = "language_model.model.layers.1.mlp.experts.2.up_proj";

fn open_with(fixture: &str, edit: impl FnOnce(&mut Value)) -> Result<Model> {
    let specimen = Specimen::of(fixture);
    specimen.edit_json("config.json", edit);
    specimen.open()
}

/// Opens a fixture whose config has `value` at `pointer`.
fn open_at(fixture: &str, pointer: &str, value: &Value) -> Result<Model> {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    open_with(fixture, |config| config.pointer_mut(parent).unwrap()[key] = value.clone())
}

#[test]
fn numbers_of_experts_that_contradict_each_other() {
    for (fixture, key, value, words) in [
        ("deepseek_v3", "n_group", 4, "n_group 4 does not divide 6 (n_routed_experts)"),
        ("deepseek_v3", "n_group", 0, "n_group 0 is not one of"),
        ("deepseek_v3", "topk_group", 0, "topk_group 0 is not one of"),
        ("deepseek_v3", "topk_group", 4, "topk_group 4 is more than 3 (n_group)"),
        ("deepseek_v3", "num_experts_per_tok", 5, "num_experts_per_tok 5 is more than the 4 experts of topk_group 2"),
        ("deepseek_v3", "n_shared_experts", 7, "n_shared_experts 7 is more than 6 (n_routed_experts)"),
        ("deepseek_v3", "moe_layer_freq", 0, "moe_layer_freq 0 is not one of"),
        ("kimi_linear", "num_expert_group", 2, "num_expert_group 2 does not divide 5 (num_experts)"),
        ("kimi_linear", "num_expert_group", 0, "num_expert_group 0 is not one of"),
        ("kimi_linear", "topk_group", 2, "topk_group 2 is more than 1 (num_expert_group)"),
        (
            "kimi_linear",
            "num_experts_per_token",
            6,
            "num_experts_per_token 6 is more than the 5 experts of topk_group 1",
        ),
        ("kimi_linear", "num_shared_experts", 6, "num_shared_experts 6 is more than 5 (num_experts)"),
    ] {
        refused(open_at(fixture, &format!("/{key}"), &json!(value)), &["config.json: ", words]);
    }
    for value in [json!(1e300), json!(-1e300)] {
        refused(open_at("deepseek_v3", "/routed_scaling_factor", &value), &["routed_scaling_factor", "inf"]);
    }
}

#[test]
fn variants_that_are_not_supported() {
    for (fixture, pointer, value, words) in [
        ("deepseek_v3", "/topk_method", json!("greedy"), "topk_method `greedy` is not supported, only `noaux_tc`"),
        ("deepseek_v3", "/topk_method", json!("group_limited_greedy"), "topk_method `group_limited_greedy` is not"),
        ("deepseek_v3", "/scoring_func", json!("softmax"), "scoring_func `softmax` is not supported, only `sigmoid`"),
        ("deepseek_v3", "/attention_bias", json!(true), "attention_bias is not supported"),
        ("deepseek_v3", "/qk_rope_head_dim", json!(7), "qk_rope_head_dim 7 is not an even number"),
        (PACKED, "/text_config/scoring_func", json!("softmax"), "scoring_func `softmax` is not supported"),
        ("kimi_linear", "/mla_use_nope", json!(false), "mla_use_nope is not true"),
        ("kimi_linear", "/attention_bias", json!(true), "attention_bias is not supported"),
        ("kimi_linear", "/moe_router_activation_func", json!("softmax"), "moe_router_activation_func `softmax` is not"),
        (
            "kimi_linear",
            "/linear_attn_config/head_dim",
            json!(24),
            "head_dim 24 of linear_attn_config is not a multiple",
        ),
        ("kimi_linear", "/linear_attn_config/num_heads", json!(0), "num_heads 0 is not one of"),
        (
            "kimi_linear",
            "/linear_attn_config/short_conv_kernel_size",
            json!(0),
            "short_conv_kernel_size 0 is not one of",
        ),
        (PACKED, "/text_config/model_type", json!("llama"), "text_config has the model_type `llama`, not `kimi_k2`"),
        (PACKED, "/text_config/model_type", json!("kimi_linear"), "text_config has the model_type `kimi_linear`"),
        (PACKED, "/text_config", json!(5), "there is no table `text_config`"),
        (PACKED, "/text_config", json!(null), "there is no table `text_config`"),
    ] {
        refused(open_at(fixture, pointer, &value), &["config.json: ", words]);
    }
    let gone = open_with("kimi_linear", |config| drop(config.as_object_mut().unwrap().remove("mla_use_nope")));
    refused(gone, &["config.json: mla_use_nope is not true"]);
}

#[test]
fn layers_that_are_none_or_both() {
    for (kda, full, layer) in [
        (json!([1]), json!([3]), 2),
        (json!([1, 2]), json!([]), 3),
        (json!([1, 2]), json!([2, 3]), 2),
        (json!([]), json!([2, 3]), 1),
        // counted from zero
        (json!([0, 1]), json!([2]), 0),
        (json!([0, 1, 2]), json!([3]), 0),
        (json!([1, 2]), json!([0, 3]), 0),
    ] {
        let result = open_with("kimi_linear", |config| {
            config["linear_attn_config"]["kda_layers"] = kda;
            config["linear_attn_config"]["full_attn_layers"] = full;
        });
        let words = format!("layer {layer} is not in one of kda_layers and full_attn_layers, which count from 1 to 3");
        refused(result, &["config.json: ", &words]);
    }
    for key in ["kda_layers", "full_attn_layers", "num_heads", "head_dim", "short_conv_kernel_size"] {
        let table = |config: &mut Value| drop(config["linear_attn_config"].as_object_mut().unwrap().remove(key));
        refused(open_with("kimi_linear", table), &["config.json: ", key]);
    }
    for value in [json!("3"), json!(null), json!(-1), json!(2.5)] {
        for key in ["num_heads", "head_dim", "short_conv_kernel_size", "kda_layers", "full_attn_layers"] {
            let result = open_at("kimi_linear", &format!("/linear_attn_config/{key}"), &value);
            refused(result, &[&format!("config.json: {key}: invalid ")]);
        }
    }
    for value in [json!(null), json!([]), json!(3)] {
        let result = open_at("kimi_linear", "/linear_attn_config", &value);
        refused(result, &["config.json: there is no table `linear_attn_config`"]);
    }
}

#[test]
fn positions_that_are_stretched_by_nothing() {
    let yarn = |key: &str, value: Value| open_at("qwen3-yarn", &format!("/rope_scaling/{key}"), &value);
    for key in ["factor", "original_max_position_embeddings"] {
        refused(yarn(key, json!(null)), &[&format!("config.json: a rope of type `yarn` has no {key}")]);
    }
    refused(yarn("original_max_position_embeddings", json!(0)), &["no original_max_position_embeddings"]);
    for key in ["factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"] {
        refused(yarn(key, json!(-1)), &[&format!("config.json: {key} -1 is not a positive number")]);
        refused(yarn(key, json!(1e300)), &[&format!("config.json: {key} inf is not a positive number")]);
    }
}

#[test]
fn packings_that_are_not_supported() {
    const TABLE: &str = "/text_config/quantization_config";
    for (key, value, words) in [
        ("num_bits", json!(8), "num_bits of weights in group_0 is 8, and only 4 is supported"),
        ("num_bits", json!(null), "num_bits of weights in group_0 is null"),
        ("group_size", json!(128), "group_size of weights in group_0 is 128, and only 32 is supported"),
        ("group_size", json!(null), "group_size of weights in group_0 is null"),
        ("symmetric", json!(false), "symmetric of weights in group_0 is false, and only true is supported"),
        ("type", json!("float"), "type of weights in group_0 is \"float\", and only \"int\" is supported"),
    ] {
        let pointer = format!("{TABLE}/config_groups/group_0/weights/{key}");
        refused(open_at(PACKED, &pointer, &value), &["config.json: ", words]);
    }
    // one group of two
    let other = json!({ "weights": { "num_bits": 8, "type": "int", "symmetric": true, "group_size": 32 } });
    refused(
        open_at(PACKED, &format!("{TABLE}/config_groups/group_1"), &other),
        &["num_bits of weights in group_1 is 8"],
    );
    for format in ["float-quantized", "nvfp4-pack-quantized", ""] {
        let words = format!("the compressed-tensors format `{format}` is not supported, only pack-quantized");
        refused(open_at(PACKED, &format!("{TABLE}/format"), &json!(format)), &[&words]);
    }
    for groups in [json!({}), json!(null), json!([])] {
        let words = "config.json: config_groups of quantization_config does not say how weights are packed";
        refused(open_at(PACKED, &format!("{TABLE}/config_groups"), &groups), &[words]);
    }
    // then they are looked for as they are not there
    let words = format!("has no tensor `{}", UP.replace("experts.2.up", "experts.0.gate"));
    refused_with_hint(open_at(PACKED, TABLE, &json!(null)), &[&words], "incomplete");
}

/// Damages one tensor and returns its file with what opening the model gives.
fn open(tensor: &str, damage: impl FnOnce(&mut Plain)) -> (String, Result<Model>) {
    let specimen = Specimen::of(PACKED);
    let file = specimen.edit_tensor(tensor, damage);
    (file, specimen.open())
}

fn without(kinds: &[&str]) -> Result<Model> {
    let specimen = Specimen::of(PACKED);
    for kind in kinds {
        let tensor = format!("{UP}.weight_{kind}");
        specimen.edit_tensors(&specimen.file_of(&tensor), |tensors| drop(tensors.remove(&tensor).unwrap()));
        specimen.edit_json(INDEX, |index| drop(index["weight_map"].as_object_mut().unwrap().remove(&tensor)));
    }
    specimen.open()
}

fn zeros(dtype: Dtype, shape: &[usize]) -> Plain {
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
    Plain { dtype, shape: shape.to_vec(), bytes }
}

#[test]
fn parts_of_a_packed_matrix_that_are_missing() {
    refused_with_hint(without(&["scale"]), &[&format!("has no tensor `{UP}.weight_scale`")], "incomplete");
    refused_with_hint(without(&["packed"]), &[&format!("has no tensor `{UP}.weight`")], "incomplete");
    refused_with_hint(without(&["packed", "scale"]), &[&format!("has no tensor `{UP}.weight`")], "incomplete");
    // its shape is told by the others
    without(&["shape"]).unwrap_or_else(|error| panic!("{error:?}"));
}

#[test]
fn parts_of_a_packed_matrix_that_nobody_uses() {
    let router = UP.replace("experts.2.up_proj", "gate");
    for (tensor, like) in [
        (format!("{router}.weight_shape"), "weight_shape"),
        (format!("{router}.weight_scale"), "weight_scale"),
        (format!("{UP}.weight_g_idx"), "weight_shape"),
        (format!("{UP}.weight"), "weight_scale"),
        (format!("{UP}.weight_zero_point"), "weight_packed"),
        (format!("{}.weight_packed", UP.replace("experts.2", "experts.4")), "weight_packed"),
    ] {
        let specimen = Specimen::of(PACKED);
        let like = format!("{UP}.{like}");
        let file = specimen.file_of(&like);
        specimen.edit_tensors(&file, |tensors| {
            let Plain { dtype, ref shape, .. } = tensors[&like];
            let plain = zeros(dtype, shape);
            tensors.insert(tensor.clone(), plain);
        });
        specimen.edit_json(INDEX, |index| index["weight_map"][&tensor] = json!(file));
        let words = format!("1 tensors this architecture does not use, the first is `{tensor}`");
        refused_with_hint(specimen.open(), &[&words], "do not belong together");
    }
}

#[test]
fn parts_of_a_packed_matrix_that_do_not_fit() {
    for (kind, right, wrong) in [
        ("packed", vec![32, 4], vec![4, 32]),
        ("packed", vec![32, 4], vec![128]),
        ("packed", vec![32, 4], vec![32, 4, 1]),
        ("scale", vec![32, 1], vec![1, 32]),
        ("scale", vec![32, 1], vec![32]),
    ] {
        let (file, result) = open(&format!("{UP}.weight_{kind}"), |plain| {
            assert_eq!(plain.shape, right);
            plain.shape = wrong.clone();
        });
        let words = format!("tensor `{UP}.weight_{kind}` has shape {wrong:?}, not {right:?}");
        refused_with_hint(result, &[&file, &words], "config.json and the weights do not belong together");
    }
    for (dtype, name) in [(Dtype::F32, "F32"), (Dtype::BF16, "Bf16"), (Dtype::U8, "U8"), (Dtype::F8_E4M3, "Fp8")] {
        let (file, result) = open(&format!("{UP}.weight_packed"), |plain| *plain = zeros(dtype, &plain.shape));
        refused(result, &[&file, &format!("the packed tensor `{UP}.weight_packed` is {name}, not I32")]);
    }
    for dtype in [Dtype::I64, Dtype::I8] {
        let (file, result) = open(&format!("{UP}.weight_packed"), |plain| *plain = zeros(dtype, &plain.shape));
        refused(result, &[&file, &format!("tensor `{UP}.weight_packed` is stored as {dtype:?}")]);
    }
    for (dtype, name) in [(Dtype::U8, "U8"), (Dtype::F8_E4M3, "Fp8"), (Dtype::U32, "U32")] {
        let (_, result) = open(&format!("{UP}.weight_scale"), |plain| *plain = zeros(dtype, &plain.shape));
        refused(result, &[&format!("`{UP}.weight_packed`: {name} scales do not belong to affine values")]);
    }
    let (file, result) = open(&format!("{UP}.weight_scale"), |plain| *plain = zeros(Dtype::I32, &plain.shape));
    refused(result, &[&file, &format!("tensor `{UP}.weight_scale` is stored as I32")]);
    for dtype in [Dtype::F16, Dtype::F32] {
        let (_, result) = open(&format!("{UP}.weight_scale"), |plain| *plain = zeros(dtype, &plain.shape));
        result.unwrap_or_else(|error| panic!("{dtype:?}: {error:?}"));
    }
}

#[test]
fn a_shape_that_is_not_that_of_the_codes() {
    // the first expert stands for its layer's
    let up = UP.replace("experts.2", "experts.0");
    let shape = format!("{up}.weight_shape");
    let said = |dtype: Dtype, bytes: Vec<u8>, length: usize| {
        open(&shape, |plain| *plain = Plain { dtype, shape: vec![length], bytes })
    };
    let narrow = |sizes: &[u32]| sizes.iter().flat_map(|size| size.to_le_bytes()).collect::<Vec<u8>>();
    let wide = |sizes: &[u64]| sizes.iter().flat_map(|size| size.to_le_bytes()).collect::<Vec<u8>>();
    // some tools write it in 64 bits
    for (dtype, bytes) in [(Dtype::I32, narrow(&[32, 32])), (Dtype::I64, wide(&[32, 32]))] {
        said(dtype, bytes, 2).1.unwrap_or_else(|error| panic!("{dtype:?}: {error:?}"));
    }
    for (dtype, bytes, words) in [
        (Dtype::I32, narrow(&[32, 30]), "[32, 30]"),
        (Dtype::I32, narrow(&[4, 32]), "[4, 32]"),
        (Dtype::I64, wide(&[32, 1 << 40]), "[32, 1099511627776]"),
        (Dtype::I32, narrow(&[32]), "[32]"),
        (Dtype::I32, narrow(&[32, 32, 1]), "[32, 32, 1]"),
    ] {
        let length = bytes.len() / (dtype.bitsize() / 8);
        let (file, result) = said(dtype, bytes, length);
        let words = format!("tensor `{shape}` says {words}, but `{up}.weight_packed` holds [32, 32] values");
        refused_with_hint(result, &[&file, &words], "fetch it again");
    }
    let (file, result) = said(Dtype::F32, narrow(&[32, 32]), 2);
    refused(result, &[&file, &format!("tensor `{shape}` is stored as F32, not I32 or I64")]);
}

#[test]
fn values_that_are_not_numbers() {
    let bias = "model.layers.2.mlp.gate.e_score_correction_bias";
    let latent = "model.layers.0.self_attn.kv_a_layernorm.weight";
    let decay = "model.layers.1.self_attn.A_log";
    for (fixture, tensor) in [
        (PACKED, format!("{UP}.weight_scale")),
        ("deepseek_v3", bias.to_owned()),
        ("deepseek_v3", latent.to_owned()),
        ("kimi_linear", decay.to_owned()),
    ] {
        let specimen = Specimen::of(fixture);
        specimen.run().unwrap_or_else(|error| panic!("{fixture}: {error:?}"));
        let file = specimen.edit_tensor(&tensor, |plain| plain.bytes.fill(0xff));
        let words = format!("tensor `{tensor}` holds values that are not numbers");
        refused_with_hint(specimen.run(), &[&file, &words], "fetch");
    }
    // codes of all ones are numbers
    let specimen = Specimen::of(PACKED);
    specimen.edit_tensor(&format!("{UP}.weight_packed"), |plain| plain.bytes.fill(0xff));
    specimen.run().unwrap_or_else(|error| panic!("{error:?}"));
}
