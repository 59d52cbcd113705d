//! MLX checkpoints: parts of packed tensors that are missing or do not fit, and a table that tells another story.

use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tbshard::error::Result;
use tbshard::models::Model;

use crate::damage::{INDEX, Plain, Specimen, refused, refused_with_hint};

const DENSE: &str = "mlx-qwen3-mixed";
const MIXTURE: &str = "mlx-qwen3_5_moe-mixed";
const FILE: &str = "model.safetensors`";
/// Two bits in groups of 32: `[32, 4]` words, `[32, 2]` scales and biases.
const AFFINE: &str = "model.layers.0.self_attn.k_proj";
const MXFP4: &str = "model.layers.1.self_attn.q_proj";
const MXFP8: &str = "model.layers.1.self_attn.k_proj";
const NVFP4: &str = "model.layers.1.self_attn.v_proj";
const PLAIN: &str = "model.layers.1.mlp.down_proj";
/// mxfp4, `[5, 16, 8]` words.
const EXPERTS: &str = "language_model.model.layers.0.mlp.switch_mlp.up_proj";

fn open(fixture: &str, tensor: &str, damage: impl FnOnce(&mut Plain)) -> Result<Model> {
    let specimen = Specimen::of(fixture);
    specimen.edit_tensor(tensor, damage);
    specimen.open()
}

fn without(fixture: &str, tensor: &str) -> Specimen {
    let specimen = Specimen::of(fixture);
    specimen.edit_tensors(&specimen.file_of(tensor), |tensors| drop(tensors.remove(tensor).unwrap()));
    specimen.edit_json(INDEX, |index| drop(index["weight_map"].as_object_mut().unwrap().remove(tensor)));
    specimen
}

/// With one more tensor.
fn with(fixture: &str, tensor: &str, plain: Plain) -> Specimen {
    let specimen = Specimen::of(fixture);
    specimen.edit_tensors("model.safetensors", |tensors| drop(tensors.insert(tensor.to_owned(), plain)));
    specimen.edit_json(INDEX, |index| index["weight_map"][tensor] = json!("model.safetensors"));
    specimen
}

fn zeros(dtype: Dtype, shape: &[usize]) -> Plain {
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
    Plain { dtype, shape: shape.to_vec(), bytes }
}

fn open_with_table(fixture: &str, edit: impl FnOnce(&mut Value)) -> Result<Model> {
    let specimen = Specimen::of(fixture);
    specimen.edit_json("config.json", |config| edit(&mut config["quantization"]));
    specimen.open()
}

#[test]
fn parts_that_are_missing() {
    for module in [AFFINE, MXFP4] {
        let words = format!("packed tensor `{module}.weight` has no `{module}.scales`");
        refused_with_hint(without(DENSE, &format!("{module}.scales")).open(), &[FILE, &words], "incomplete");
        let words = format!("has no tensor `{module}.weight`");
        refused_with_hint(without(DENSE, &format!("{module}.weight")).open(), &[&words], "incomplete");
    }
    let words = format!("has no tensor `{AFFINE}.biases`");
    refused_with_hint(without(DENSE, &format!("{AFFINE}.biases")).open(), &[&words], "incomplete");
    let words = format!("packed tensor `{EXPERTS}.weight` has no `{EXPERTS}.scales`");
    refused_with_hint(without(MIXTURE, &format!("{EXPERTS}.scales")).open(), &[FILE, &words], "incomplete");
    // the hub's name is the one that is looked for
    let words = "has no tensor `model.language_model.layers.1.self_attn.o_proj.weight`";
    refused(without(MIXTURE, "language_model.model.layers.1.self_attn.o_proj.weight").open(), &[words]);
}

#[test]
fn shapes_that_do_not_fit() {
    let cases: [(&str, &str, &str, &[usize], &[usize]); 9] = [
        (DENSE, AFFINE, "weight", &[32, 4], &[4, 32]),
        (DENSE, AFFINE, "weight", &[32, 4], &[128]),
        (DENSE, AFFINE, "scales", &[32, 2], &[2, 32]),
        (DENSE, AFFINE, "biases", &[32, 2], &[64]),
        (DENSE, MXFP4, "scales", &[96, 2], &[96, 2, 1]),
        (DENSE, NVFP4, "scales", &[32, 4], &[64, 2]),
        (DENSE, "lm_head", "scales", &[300, 1], &[1, 300]),
        (MIXTURE, EXPERTS, "weight", &[5, 16, 8], &[80, 8]),
        (MIXTURE, EXPERTS, "scales", &[5, 16, 2], &[80, 2]),
    ];
    for (fixture, module, kind, right, wrong) in cases {
        let result = open(fixture, &format!("{module}.{kind}"), |plain| {
            assert_eq!(plain.shape, right, "{module}.{kind}");
            plain.shape = wrong.to_vec();
        });
        let words = format!("tensor `{module}.{kind}` has shape {wrong:?}, not {right:?}");
        refused_with_hint(result, &[FILE, &words], "config.json and the weights do not belong together");
    }
    // an expert too few, of all parts and of one
    let cut = |plain: &mut Plain| {
        plain.bytes.truncate(plain.bytes.len() / 5 * 4);
        plain.shape[0] = 4;
    };
    let words = |kind: &str, size: usize| format!("`{EXPERTS}.{kind}` has shape [4, 16, {size}], not [5, 16, {size}]");
    refused(open(MIXTURE, &format!("{EXPERTS}.weight"), cut), &[FILE, &words("weight", 8)]);
    refused(open(MIXTURE, &format!("{EXPERTS}.scales"), cut), &[FILE, &words("scales", 2)]);
    // nothing at all
    let words = format!("`{AFFINE}.scales` has shape [0, 2], not [32, 2]");
    refused(open(DENSE, &format!("{AFFINE}.scales"), |plain| *plain = zeros(Dtype::BF16, &[0, 2])), &[FILE, &words]);
}

#[test]
fn types_that_do_not_belong_together() {
    let open = |tensor: &str, dtype| open(DENSE, tensor, |plain| *plain = zeros(dtype, &plain.shape));
    let (scales, biases) = (format!("{AFFINE}.scales"), format!("{AFFINE}.biases"));
    for dtype in [Dtype::F16, Dtype::F32] {
        let name = if dtype == Dtype::F16 { "F16" } else { "F32" };
        let words =
            [FILE, &format!("tensor `{AFFINE}.weight`"), &format!("biases are {name} where the scales are Bf16")];
        refused_with_hint(open(&biases, dtype), &words, "config.json and the weights do not belong together");
        refused(open(&scales, dtype), &[FILE, &format!("biases are Bf16 where the scales are {name}")]);
    }
    for (dtype, name) in [(Dtype::U8, "U8"), (Dtype::U32, "U32"), (Dtype::F8_E4M3, "Fp8")] {
        let words =
            [FILE, &format!("tensor `{AFFINE}.weight`"), &format!("{name} scales do not belong to affine values")];
        refused(open(&scales, dtype), &words);
    }
    for (module, mode) in [(MXFP4, "mxfp4"), (MXFP8, "mxfp8"), (NVFP4, "nvfp4")] {
        for (dtype, name) in [(Dtype::BF16, "Bf16"), (Dtype::F8_E4M3, "Fp8")] {
            let words = format!("{name} scales do not belong to {mode} values");
            refused(open(&format!("{module}.scales"), dtype), &[FILE, &format!("tensor `{module}.weight`"), &words]);
        }
    }
    for dtype in [Dtype::I32, Dtype::I64, Dtype::F8_E8M0] {
        let words = format!("tensor `{AFFINE}.scales` is stored as {dtype:?}");
        refused_with_hint(open(&scales, dtype), &[FILE, &words], "U32 with scales in U8");
    }
    for (dtype, name) in [(Dtype::BF16, "Bf16"), (Dtype::U8, "U8"), (Dtype::F32, "F32")] {
        let words = format!("tensor `{AFFINE}.weight` has scales, but is {name} and not packed");
        refused_with_hint(open(&format!("{AFFINE}.weight"), dtype), &[FILE, &words], "damaged");
    }
    // packed where nothing can be
    let norm = "model.layers.1.self_attn.q_norm.weight";
    refused(open(norm, Dtype::U32), &[FILE, &format!("packed tensor `{norm}` has no `")]);
    refused(open(norm, Dtype::U8), &[FILE, &format!("tensor `{norm}` is U8 where plain numbers are needed")]);
}

#[test]
fn tensors_that_nobody_uses() {
    let unused = |tensor: &str| format!("1 tensors this architecture does not use, the first is `{tensor}`");
    for (fixture, tensor, plain) in [
        (DENSE, "model.layers.1.mlp.extra_proj.scales", zeros(Dtype::BF16, &[48, 2])),
        // biases of a format that has none, and scales of a bias
        (DENSE, "model.layers.1.self_attn.q_proj.biases", zeros(Dtype::BF16, &[96, 2])),
        (DENSE, "model.layers.1.self_attn.q_proj.weight_scale_inv", zeros(Dtype::F32, &[1, 1])),
        (MIXTURE, "language_model.model.layers.0.mlp.switch_mlp.gate_proj.bias", zeros(Dtype::BF16, &[5, 16])),
        (MIXTURE, "language_model.model.layers.2.mlp.gate.weight", zeros(Dtype::U32, &[5, 16])),
    ] {
        let result = with(fixture, tensor, plain).open();
        refused_with_hint(result, &[FILE, &unused(tensor)], "config.json and the weights do not belong together");
    }
    // scales of what cannot be packed, and of what is not
    for (module, shape) in [("model.norm", vec![1]), (PLAIN, vec![64, 3])] {
        let result = with(DENSE, &format!("{module}.scales"), zeros(Dtype::BF16, &shape)).open();
        refused(result, &[FILE, &format!("tensor `{module}.weight` has scales")]);
    }
    with(MIXTURE, "vision_tower.blocks.0.attn.qkv.weight", zeros(Dtype::BF16, &[8, 8])).open().unwrap();
}

#[test]
fn a_table_that_does_not_fit_the_tensors() {
    let hint = "config.json and the weights do not belong together";
    let entry = |value: Value| move |table: &mut Value| table[AFFINE] = value;
    let weight = format!("tensor `{AFFINE}.weight` has shape [32, 4], not [32, ");
    let scales = format!("tensor `{AFFINE}.scales` has shape [32, 2], not [32, ");
    for (value, words) in [
        (json!({"bits": 3, "group_size": 32}), format!("{weight}6]")),
        (json!({"bits": 4, "group_size": 32}), format!("{weight}8]")),
        (json!({"bits": 2, "group_size": 64}), format!("{scales}1]")),
        (json!({"bits": 2, "group_size": 128}), format!("{scales}0]")),
        (json!({"mode": "mxfp8"}), format!("{weight}16]")),
    ] {
        refused_with_hint(open_with_table(DENSE, entry(value)), &[FILE, &words], hint);
    }
    // the sizes fit, the kind does not
    let result = open_with_table(DENSE, |table| table[MXFP4] = json!({"bits": 4, "group_size": 32}));
    refused_with_hint(result, &[FILE, &format!("`{MXFP4}.weight`"), "U8 scales do not belong to affine values"], hint);
    let words = format!("tensor `{AFFINE}.weight` has scales, but config.json does not say how it is coded");
    refused_with_hint(open_with_table(DENSE, entry(json!(false))), &[FILE, &words], "quantization");
    // the default of modules that are not named, which may be of another mode than they say
    let words = "tensor `model.layers.0.mlp.down_proj.scales` has shape [64, 3], not [64, 1]";
    refused(open_with_table(DENSE, |table| table["mode"] = json!("mxfp4")), &["quantization", "mxfp4 has 4 bits"]);
    let default = |table: &mut Value| {
        table["mode"] = json!("affine");
        table["group_size"] = json!(32);
    };
    refused(open_with_table(DENSE, default), &[FILE, words]);
    // groups that the columns are no multiple of, although there is a scale for those that are whole
    let specimen = Specimen::of(DENSE);
    let down = "model.layers.0.mlp.down_proj";
    specimen.edit_json("config.json", |config| config["quantization"][down] = json!({"bits": 4, "group_size": 32}));
    for kind in ["scales", "biases"] {
        specimen.edit_tensors("model.safetensors", |tensors| {
            drop(tensors.insert(format!("{down}.{kind}"), zeros(Dtype::BF16, &[64, 1])));
        });
        specimen.edit_json(INDEX, |index| index["weight_map"][format!("{down}.{kind}")] = json!("model.safetensors"));
    }
    let words = "rows of 48 values are no whole groups of 32";
    refused_with_hint(specimen.open(), &[FILE, &format!("tensor `{down}.weight`"), words], hint);
}

#[test]
fn a_table_that_is_missing_or_wrong() {
    for fixture in [DENSE, MIXTURE] {
        let specimen = Specimen::of(fixture);
        specimen.edit_json("config.json", |config| {
            config.as_object_mut().unwrap().retain(|key, _| !key.starts_with("quantization"));
        });
        let words = "has scales, but config.json does not say how it is coded";
        refused_with_hint(specimen.open(), &[FILE, "tensor `", words], "config.json needs the table `quantization`");
        // nor do the files say whose they are
        if fixture == DENSE {
            specimen.edit_header("model.safetensors", |header| drop(header.remove("__metadata__")));
            let words = "`model.embed_tokens.weight` holds U32, and nothing says how it is coded";
            refused_with_hint(specimen.open(), &[FILE, words], "incomplete");
        }
    }
    // the copy for transformers is no substitute
    let specimen = Specimen::of(DENSE);
    specimen.edit_json("config.json", |config| drop(config.as_object_mut().unwrap().remove("quantization")));
    refused(specimen.open(), &["the quantisation method `` is not supported"]);
    for (value, words) in [
        (json!([4, 64]), "quantization is [4,64], not a table"),
        (json!({"bits": "4"}), "bits \"4\" of quantization is not a number"),
        (json!({"bits": 4.5}), "bits 4.5 of quantization is not a number"),
        (json!({"group_size": -64}), "group_size -64 of quantization is not a number"),
        (json!({"group_size": 0}), "no affine format of 4 bits in groups of 0"),
        (json!({"bits": 260}), "no affine format of 260 bits in groups of 64"),
        (json!({"bits": 1}), "no affine format of 1 bits in groups of 64"),
        (json!({"mode": 4}), "mode of quantization is not a text"),
        (json!({"mode": "nvfp4", "group_size": 32}), "nvfp4 has 4 bits in groups of 16, not 4 in 32"),
        (json!({ AFFINE: {"bits": 7} }), "quantization of `model.layers.0.self_attn.k_proj`"),
        (json!({ AFFINE: {"mode": "q4"} }), "the quantisation mode `q4` is not known"),
    ] {
        refused(open_with_table(DENSE, |table| *table = value), &["config.json: ", words]);
    }
}

#[test]
fn values_that_are_not_numbers() {
    let bf16 = |bits: u16| move |plain: &mut Plain| plain.bytes[..2].copy_from_slice(&bits.to_le_bytes());
    let byte = |byte: u8| move |plain: &mut Plain| plain.bytes[1] = byte;
    type Damage = Box<dyn FnOnce(&mut Plain)>;
    let cases: Vec<(&str, String, Damage)> = vec![
        (DENSE, format!("{AFFINE}.scales"), Box::new(bf16(0x7fc0))),
        (DENSE, format!("{AFFINE}.biases"), Box::new(bf16(0xffc0))),
        (DENSE, format!("{AFFINE}.scales"), Box::new(bf16(0x7f80))),
        (DENSE, "lm_head.biases".to_owned(), Box::new(bf16(0x7fc0))),
        (DENSE, format!("{MXFP4}.scales"), Box::new(byte(0xff))),
        (DENSE, format!("{MXFP8}.scales"), Box::new(byte(0xff))),
        (DENSE, format!("{NVFP4}.scales"), Box::new(byte(0xff))),
        (DENSE, format!("{NVFP4}.scales"), Box::new(byte(0x7f))),
        (DENSE, format!("{MXFP8}.weight"), Box::new(byte(0x7f))),
        (DENSE, format!("{MXFP8}.weight"), Box::new(byte(0xff))),
        (MIXTURE, format!("{EXPERTS}.scales"), Box::new(|plain| plain.bytes.fill(0xff))),
        (MIXTURE, "language_model.model.norm.weight".to_owned(), Box::new(bf16(0x7fc0))),
    ];
    for fixture in [DENSE, MIXTURE] {
        Specimen::of(fixture).run().unwrap_or_else(|error| panic!("{fixture}: {error:?}"));
    }
    for (fixture, tensor, damage) in cases {
        let specimen = Specimen::of(fixture);
        specimen.edit_tensor(&tensor, damage);
        let words = format!("tensor `{tensor}` holds values that are not numbers");
        refused_with_hint(specimen.run(), &[FILE, &words], "fetch");
    }
}

#[test]
fn codes_that_look_like_nan_are_numbers() {
    // 0x7f is no NaN in four bits or in words of affine values, nor is 0xff; 0x7f is 1 in E8M0
    let specimen = Specimen::of(DENSE);
    for (tensor, byte) in [(format!("{AFFINE}.weight"), 0xff), (format!("{MXFP4}.weight"), 0x7f)] {
        specimen.edit_tensor(&tensor, |plain| plain.bytes.fill(byte));
    }
    specimen.edit_tensor(&format!("{MXFP8}.scales"), |plain| plain.bytes.fill(0x7f));
    // so that they are not taken for the reason
    let culprit = "model.layers.3.mlp.gate_proj.biases";
    specimen.run().unwrap_or_else(|error| panic!("{error:?}"));
    specimen.edit_tensor(culprit, |plain| plain.bytes[..2].copy_from_slice(&0x7fc0_u16.to_le_bytes()));
    refused(specimen.run(), &[FILE, &format!("tensor `{culprit}` holds values that are not numbers")]);
}
