//! What is told without weights is what loading takes, for models of any size.

use serde_json::{Value, json};
use tbshard::models::{Blueprint, catalogue};
use tbshard::partition::{Layout, Plan};
use tbshard::weights::{Invented, Outline, Piece, Random, Share, Source};

use super::shapes::{cases, check};
use crate::support::tiny::tiny_checkpoints;

fn pieces(share: &Share) -> Vec<(String, Vec<Piece>)> {
    share.tensors().map(|(name, pieces)| (name.to_owned(), pieces.to_vec())).collect()
}

fn same(blueprint: impl Fn() -> Blueprint, plan: &Plan) {
    for rank in 0..plan.world_size() {
        let told = blueprint().share(plan, rank).unwrap();
        let model = blueprint().load(plan, rank, &|_, _| ()).unwrap();
        assert_eq!(pieces(&told), pieces(&model.share), "rank {rank} of {plan:?}");
    }
}

#[test]
fn loading_takes_what_was_told() {
    check(40, cases(true), |(shape, layout)| {
        same(|| shape.blueprint(), &Plan::new(shape.layers, shape.heads(), &layout).unwrap());
    });
    for dir in tiny_checkpoints() {
        let layers = Blueprint::open(&dir).unwrap().geometry.layers;
        let layout =
            Layout { world_size: 6, tp: Some(3), pp: Some(2), weights: vec![1, 2, 1, 1, 1, 3], ..Layout::default() };
        same(|| Blueprint::open(&dir).unwrap(), &Plan::new(layers, 99, &layout).unwrap());
    }
}

/// The bytes of all tensors of a model, each once.
fn bytes(config: &Value) -> u64 {
    let blueprint = Blueprint::random(config, None, 0).unwrap();
    let share = blueprint.share(&Plan::solo(blueprint.geometry.layers), 0).unwrap();
    share.tensors().flat_map(|(name, _)| share.byte_ranges(name)).map(|range| range.end - range.start).sum()
}

#[test]
fn figures_are_those_of_the_catalogue() {
    let mut known = 0;
    for entry in catalogue::all().unwrap() {
        // others have vision or prediction layers, and these two store a head beside the table that they are tied to
        let alone = ["llama", "qwen2", "qwen3", "qwen3_moe"].contains(&entry.architecture.as_str());
        if alone && !["qwen3-0.6b", "qwen3-1.7b"].contains(&entry.name.as_str()) {
            assert_eq!(bytes(&entry.config), entry.bytes, "{}", entry.name);
            known += 1;
        }
    }
    assert!(known > 15, "{known}");
}

#[test]
fn tensors_larger_than_memory_are_outlined_and_absurd_ones_refused() {
    let source = Random::new(0, Invented::Bf16);
    let outline = Outline::new(&source);
    let table = outline.get("table", &[1 << 19, 1 << 20]).unwrap();
    assert_eq!((table.bytes.len(), table.bytes[1 << 39]), (1 << 40, 0));
    // the smaller is a part of the larger, and the larger outlives it
    let small = outline.get("small", &[7]).unwrap();
    assert_eq!((small.bytes.as_ptr(), small.bytes.len()), (table.bytes.as_ptr(), 14));
    for shape in [vec![1 << 24; 2], vec![1 << 24; 3]] {
        let error = outline.get("absurd", &shape).unwrap_err();
        assert!(error.to_string().contains("no room for tensor `absurd`") && error.hint_text().is_some(), "{error:?}");
    }
}

#[test]
fn a_trillion_parameters_cost_nothing() {
    let config = json!({
        "model_type": "qwen3_moe", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 163_840, "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": false, "intermediate_size": 18_432,
        "num_experts": 384, "num_experts_per_tok": 8, "moe_intermediate_size": 2048,
        "quantization_config": { "quant_method": "fp8", "weight_block_size": [128, 128] },
    });
    let blueprint = Blueprint::random(&config, None, 0).unwrap();
    let layout = Layout { world_size: 4, tp: Some(4), ..Layout::default() };
    let plan = Plan::new(61, 64, &layout).unwrap();
    let share = blueprint.share(&plan, 3).unwrap();
    let quarter = 61 * 384 * 3 * 7168 * 2048 / 4;
    assert!(share.bytes() > quarter && share.bytes() < quarter * 21 / 20, "{} of {quarter}", share.bytes());
}
