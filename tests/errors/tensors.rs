//! Tensors that are missing, too many, of another shape or type than config.json says, or not numbers.

use safetensors::tensor::Dtype;
use serde_json::json;
use tbshard::error::Result;
use tbshard::models::{Blueprint, Model};
use tbshard::partition::{Layout, Plan};

use crate::damage::{INDEX, Plain, Specimen, refused, refused_with_hint};

const UP: &str = "model.layers.1.mlp.up_proj.weight";

/// Damages one tensor and returns its file with what opening the model gives.
fn open(fixture: &str, tensor: &str, damage: impl FnOnce(&mut Plain)) -> (String, Result<Model>) {
    let specimen = Specimen::of(fixture);
    let file = specimen.edit_tensor(tensor, damage);
    (file, specimen.open())
}

/// Removes a tensor from its file and from the index.
fn open_without(fixture: &str, tensor: &str) -> Result<Model> {
    let specimen = Specimen::of(fixture);
    specimen.edit_tensors(&specimen.file_of(tensor), |tensors| drop(tensors.remove(tensor).unwrap()));
    specimen.edit_json(INDEX, |index| drop(index["weight_map"].as_object_mut().unwrap().remove(tensor)));
    specimen.open()
}

/// Adds a copy of the tensor `like` as `tensor`.
fn with(fixture: &str, tensor: &str, like: &str) -> Specimen {
    let specimen = Specimen::of(fixture);
    let file = specimen.file_of(like);
    specimen.edit_tensors(&file, |tensors| {
        let Plain { dtype, shape, bytes } = &tensors[like];
        let copy = Plain { dtype: *dtype, shape: shape.clone(), bytes: bytes.clone() };
        tensors.insert(tensor.to_owned(), copy);
    });
    specimen.edit_json(INDEX, |index| index["weight_map"][tensor] = json!(file));
    specimen
}

fn open_with(fixture: &str, tensor: &str, like: &str) -> Result<Model> {
    with(fixture, tensor, like).open()
}

#[test]
fn tensors_that_are_missing() {
    let cases = [
        ("llama", "model.embed_tokens.weight"),
        ("llama", "model.norm.weight"),
        ("llama", "model.layers.3.self_attn.o_proj.weight"),
        ("llama", "model.layers.0.post_attention_layernorm.weight"),
        ("qwen2", "model.layers.2.self_attn.k_proj.bias"),
        ("qwen3", "model.layers.1.self_attn.q_norm.weight"),
        ("qwen3", "lm_head.weight"),
        ("qwen3_moe", "model.layers.1.mlp.experts.5.down_proj.weight"),
        ("qwen3_moe", "model.layers.1.mlp.gate.weight"),
        ("qwen3_next", "model.layers.0.linear_attn.in_proj_qkvz.weight"),
        ("qwen3_next", "model.layers.0.linear_attn.A_log"),
        ("qwen3_5", "model.language_model.layers.2.linear_attn.conv1d.weight"),
        ("qwen3_5", "model.language_model.layers.2.linear_attn.dt_bias"),
        ("qwen3_5_moe", "model.language_model.layers.2.mlp.experts.down_proj"),
        ("qwen3_5_moe", "model.language_model.layers.0.mlp.shared_expert_gate.weight"),
    ];
    for (fixture, tensor) in cases {
        let words = format!("has no tensor `{tensor}`");
        refused_with_hint(open_without(fixture, tensor), &[&words], "incomplete");
    }
    // fused experts that are gone are looked for one by one
    let words = "has no tensor `model.language_model.layers.0.mlp.experts.0.gate_proj.weight`";
    refused(open_without("qwen3_5_moe", "model.language_model.layers.0.mlp.experts.gate_up_proj"), &[words]);
}

#[test]
fn tensors_that_nobody_uses() {
    let words = |tensor: &str| format!("1 tensors this architecture does not use, the first is `{tensor}` in `");
    let cases = [
        ("llama", "model.layers.4.mlp.up_proj.weight", UP),
        ("llama", "model.layers.1.self_attn.q_norm.weight", "model.norm.weight"),
        ("llama", "model.layers.1.self_attn.q_proj.bias", "model.norm.weight"),
        ("qwen3", "model.layers.1.self_attn.q_proj.weight_scale_inv", UP),
        ("qwen3", "model.norm.weight_scale_inv", "model.norm.weight"),
        ("qwen3_moe", "model.layers.0.mlp.experts.6.up_proj.weight", "model.layers.0.mlp.experts.5.up_proj.weight"),
        ("qwen3_5", "model.visualise", "model.language_model.norm.weight"),
    ];
    for (fixture, tensor, like) in cases {
        let file = Specimen::of(fixture).file_of(like);
        refused_with_hint(open_with(fixture, tensor, like), &[&words(tensor), &file], "do not belong together");
    }
    // a cut-down model whose weights were not cut
    let specimen = Specimen::of("llama");
    specimen.edit_json("config.json", |config| config["num_hidden_layers"] = json!(3));
    refused(specimen.open(), &["9 tensors", "the first is `model.layers.3.input_layernorm.weight`"]);
    // a head that a tied model stores all the same is not left alone
    let words = "tensor `lm_head.weight` has shape [32, 72], not [300, 72]";
    refused(open_with("llama", "lm_head.weight", UP), &[&Specimen::of("llama").file_of(UP), words]);
    // what a text decoder leaves alone knowingly
    for (fixture, tensor, like) in [
        ("llama", "lm_head.weight", "model.embed_tokens.weight"),
        ("qwen3_5", "model.visual.more", "model.language_model.norm.weight"),
        ("qwen3_next", "mtp.more", "model.norm.weight"),
    ] {
        open_with(fixture, tensor, like).unwrap_or_else(|error| panic!("{error:?}"));
    }
}

#[test]
fn tensors_that_no_stage_uses() {
    let cases = [
        ("llama", "model.layers.1.self_attn.q_norm.weight", "model.norm.weight"),
        ("qwen3_moe", "model.layers.0.mlp.experts.6.up_proj.weight", "model.layers.0.mlp.experts.5.up_proj.weight"),
        ("qwen3_5", "model.visualise", "model.language_model.norm.weight"),
    ];
    for (fixture, tensor, like) in cases {
        let (whole, odd) = (Specimen::of(fixture), with(fixture, tensor, like));
        let words = format!("1 tensors this architecture does not use, the first is `{tensor}` in `");
        let layers = Blueprint::open(whole.dir.path()).unwrap().geometry.layers;
        for (tp, pp) in [(2, 1), (1, 2), (2, 2)] {
            let layout = Layout { world_size: tp * pp, tp: Some(tp), pp: Some(pp), ..Layout::default() };
            let plan = Plan::new(layers, 8, &layout).unwrap();
            for rank in 0..tp * pp {
                let load =
                    |from: &Specimen| Blueprint::open(from.dir.path()).unwrap().load(&plan, rank, &|_, _| ()).map(drop);
                load(&whole).unwrap_or_else(|error| panic!("{error:?}"));
                refused_with_hint(load(&odd), &[&words, &odd.file_of(tensor)], "do not belong together");
            }
        }
    }
}

#[test]
fn shapes_that_are_not_the_configs() {
    let cases: &[(&str, &str, &[usize], &[usize])] = &[
        ("llama", UP, &[32, 72], &[72, 32]),
        ("llama", UP, &[32, 72], &[2304]),
        ("llama", UP, &[32, 72], &[1, 32, 72]),
        ("llama", UP, &[32, 72], &[32, 72, 1]),
        ("llama", "model.norm.weight", &[72], &[72, 1]),
        ("llama", "model.norm.weight", &[72], &[8, 9]),
        ("llama", "model.embed_tokens.weight", &[300, 72], &[72, 300]),
        ("qwen2", "model.layers.0.self_attn.q_proj.bias", &[48], &[6, 8]),
        ("qwen3_5", "model.language_model.layers.0.linear_attn.conv1d.weight", &[160, 1, 4], &[160, 4]),
        ("qwen3_5", "model.language_model.layers.0.linear_attn.A_log", &[6], &[3, 2]),
        ("qwen3_5_moe", "model.language_model.layers.0.mlp.experts.gate_up_proj", &[5, 32, 48], &[5, 48, 32]),
        ("qwen3_5_moe", "model.language_model.layers.0.mlp.experts.down_proj", &[5, 48, 16], &[240, 16]),
    ];
    for (fixture, tensor, right, wrong) in cases {
        let (file, result) = open(fixture, tensor, |plain| {
            assert_eq!(plain.shape, *right, "{fixture} {tensor}");
            plain.shape = wrong.to_vec();
        });
        let words = format!("tensor `{tensor}` has shape {wrong:?}, not {right:?}");
        refused_with_hint(result, &[&file, &words], "config.json and the weights do not belong together");
    }
    for (shape, bytes) in [(vec![0, 72], 0), (vec![], 2), (vec![31, 72], 31 * 144)] {
        let words = format!("tensor `{UP}` has shape {shape:?}, not [32, 72]");
        let (file, result) = open("llama", UP, |plain| {
            plain.shape = shape;
            plain.bytes.truncate(bytes);
        });
        refused(result, &[&file, &words]);
    }
}

#[test]
fn types_that_weights_cannot_be_in() {
    for (dtype, width) in [(Dtype::I64, 8), (Dtype::I32, 4), (Dtype::I8, 1), (Dtype::BOOL, 1)] {
        let (file, result) = open("llama", UP, |plain| {
            plain.dtype = dtype;
            plain.bytes = vec![1; 32 * 72 * width];
        });
        let words = format!("tensor `{UP}` is stored as {dtype:?}");
        refused_with_hint(result, &[&file, &words], "F32, F16, BF16 and F8_E4M3");
    }
    for (dtype, width) in [(Dtype::F64, 8), (Dtype::F8_E5M2, 1), (Dtype::I16, 2)] {
        let (file, result) = open("llama", "model.norm.weight", |plain| {
            plain.dtype = dtype;
            plain.bytes = vec![0; 72 * width];
        });
        refused(result, &[&file, &format!("tensor `model.norm.weight` is stored as {dtype:?}")]);
    }
    // a type that is known in a place where it means nothing
    let (file, result) = open("qwen3-fp8", "model.norm.weight", |plain| {
        plain.dtype = Dtype::F8_E4M3;
        plain.bytes = vec![0x38; 136];
    });
    refused(result, &[&file, "tensor `model.norm.weight` is Fp8 where plain numbers are needed"]);
    let fused = "model.language_model.layers.1.mlp.experts.down_proj";
    let (file, result) = open("qwen3_5_moe", fused, |plain| {
        plain.dtype = Dtype::F8_E4M3;
        plain.bytes = vec![0x38; 5 * 48 * 16];
    });
    refused(result, &[&file, &format!("`{fused}`"), "FP8"]);
}

#[test]
fn fp8_without_its_scales() {
    let (weight, scales) = ("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight_scale_inv");
    let words = format!("FP8 tensor `{weight}` has no `{scales}`");
    refused_with_hint(open_without("qwen3-fp8", scales), &["model-00001-of-00002.safetensors", &words], "incomplete");
    for wrong in [vec![4], vec![1, 4], vec![4, 1], vec![2, 2, 1]] {
        let (file, result) = open("qwen3-fp8", scales, |plain| plain.shape = wrong.clone());
        refused(result, &[&file, &format!("tensor `{scales}` has shape {wrong:?}, not [2, 2]")]);
    }
    // one scale for the whole tensor, and one for every row: other ways to quantise
    for (wrong, values) in [(vec![1], 1), (vec![144, 1], 144)] {
        let words = format!("tensor `{scales}` has shape {wrong:?}, not [2, 2]");
        let (file, result) = open("qwen3-fp8", scales, |plain| {
            plain.shape = wrong;
            plain.bytes = vec![0; values * 2];
        });
        refused(result, &[&file, &words]);
    }
    for (dtype, width, words) in [
        (Dtype::I32, 4, format!("tensor `{scales}` is stored as I32")),
        (Dtype::F8_E8M0, 1, format!("tensor `{scales}` is stored as F8_E8M0")),
        (Dtype::F8_E4M3, 1, format!("tensor `{scales}` is Fp8 where plain numbers are needed")),
    ] {
        let (file, result) = open("qwen3-fp8", scales, |plain| {
            plain.dtype = dtype;
            plain.bytes = vec![0x38; 4 * width];
        });
        refused(result, &[&file, &words]);
    }
    for dtype in [Dtype::F32, Dtype::F16] {
        let (_, result) = open("qwen3-fp8", scales, |plain| {
            plain.dtype = dtype;
            plain.bytes = vec![0; 4 * dtype.bitsize() / 8];
        });
        result.unwrap_or_else(|error| panic!("{error:?}"));
    }
}

#[test]
fn values_that_are_not_numbers() {
    let bf16 = |bits: u16| move |plain: &mut Plain| plain.bytes = bits.to_le_bytes().repeat(plain.bytes.len() / 2);
    let one_nan = |plain: &mut Plain| plain.bytes[1000..1002].copy_from_slice(&0x7fc0_u16.to_le_bytes());
    let fp8 = |byte: u8| move |plain: &mut Plain| plain.bytes.fill(byte);
    type Damage = Box<dyn FnOnce(&mut Plain)>;
    let cases: Vec<(&str, &str, Damage)> = vec![
        ("llama", UP, Box::new(bf16(0x7fc0))),
        ("llama", UP, Box::new(bf16(0xffff))),
        ("llama", UP, Box::new(bf16(0x7f80))),
        ("llama", UP, Box::new(one_nan)),
        ("llama", "model.norm.weight", Box::new(bf16(0x7fc0))),
        ("llama", "model.layers.3.self_attn.v_proj.weight", Box::new(bf16(0x7fc0))),
        ("qwen2", "model.layers.0.self_attn.k_proj.bias", Box::new(bf16(0x7fc0))),
        ("qwen3", "lm_head.weight", Box::new(bf16(0x7fc0))),
        ("qwen3-fp8", UP, Box::new(fp8(0x7f))),
        ("qwen3-fp8", UP, Box::new(fp8(0xff))),
        ("qwen3-fp8", "model.layers.2.self_attn.o_proj.weight", Box::new(fp8(0x7f))),
        ("qwen3-fp8", "model.layers.1.mlp.up_proj.weight_scale_inv", Box::new(bf16(0x7fc0))),
        ("qwen3_moe", "model.layers.2.mlp.gate.weight", Box::new(bf16(0x7fc0))),
        ("qwen3_5", "model.language_model.layers.0.linear_attn.A_log", Box::new(bf16(0x7fc0))),
        ("qwen3_5", "model.language_model.layers.1.linear_attn.in_proj_qkv.weight", Box::new(bf16(0x7fc0))),
        ("qwen3_5_moe", "model.language_model.layers.3.mlp.experts.gate_up_proj", Box::new(bf16(0x7fc0))),
    ];
    for (fixture, tensor, damage) in cases {
        let specimen = Specimen::of(fixture);
        specimen.run().unwrap_or_else(|error| panic!("{fixture}: {error:?}"));
        let file = specimen.edit_tensor(tensor, damage);
        let words = format!("tensor `{tensor}` holds values that are not numbers");
        refused_with_hint(specimen.run(), &[&file, &words], "fetch");
        refused_with_hint(specimen.run_greedily(), &[&file, &words], "fetch");
    }
}
