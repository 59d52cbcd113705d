//! Packed models of random formats: groups that are wider than heads, on ranks that must not cut either.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use tbshard::comm::Algorithm;
use tbshard::models::Blueprint;
use tbshard::partition::{Layout, Plan};
use tbshard::weights::{self, Coding, Share};
use tempfile::TempDir;

use super::cover::{check_cover, check_groups};
use crate::kernels::random::Rng;
use crate::kernels::stored::{Format, PACKED, Stored};
use crate::support::ranks::{mesh, run};

struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A checkpoint as mlx_lm writes it, every module in a format of its own.
struct Checkpoint {
    dir: TempDir,
    rng: Rng,
    tensors: BTreeMap<String, Tensor>,
    table: Map<String, Value>,
    heads: usize,
}

const LAYERS: usize = 2;

impl Checkpoint {
    /// Dense for even seeds, a mixture for odd ones. Heads are narrower than most groups.
    fn random(seed: usize) -> Self {
        let table = json!({ "group_size": 64, "bits": 4 }).as_object().unwrap().clone();
        let rng = Rng::new(seed as u64);
        let mut made = Self { dir: TempDir::new().unwrap(), rng, tensors: BTreeMap::new(), table, heads: 0 };
        // whole groups of 128 in all rows
        let (head_dim, least) = made.rng.pick(&[(16, 8), (32, 4), (64, 2), (48, 8)]);
        let kv_heads = made.rng.pick(&[1, 2, 3]);
        let heads = kv_heads * made.rng.pick(&[1, 2, 3]) * least;
        made.heads = heads;
        let (hidden, inner) = (made.rng.pick(&[128, 256]), made.rng.pick(&[128, 384, 640]));
        let (vocab, experts, mixture) = (80, 3, seed % 2 == 1);
        made.weight("model.embed_tokens", 1, vocab, hidden);
        made.weight("lm_head", 1, vocab, hidden);
        made.ones("model.norm", hidden);
        for layer in 0..LAYERS {
            let layer = format!("model.layers.{layer}");
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                made.ones(&format!("{layer}.{norm}"), hidden);
            }
            for (name, heads) in [("q", heads), ("k", kv_heads), ("v", kv_heads)] {
                made.weight(&format!("{layer}.self_attn.{name}_proj"), 1, heads * head_dim, hidden);
            }
            made.weight(&format!("{layer}.self_attn.o_proj"), 1, hidden, heads * head_dim);
            made.ones(&format!("{layer}.self_attn.q_norm"), head_dim);
            made.ones(&format!("{layer}.self_attn.k_norm"), head_dim);
            let (mlp, count) = if mixture { ("mlp.switch_mlp", experts) } else { ("mlp", 1) };
            for (name, out, columns) in [("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)] {
                made.weight(&format!("{layer}.{mlp}.{name}_proj"), count, out, columns);
            }
            if mixture {
                made.weight(&format!("{layer}.mlp.gate"), 1, experts, hidden);
            }
        }
        let config = json!({
            "model_type": if mixture { "qwen3_moe" } else { "qwen3" }, "hidden_size": hidden,
            "num_hidden_layers": LAYERS, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "head_dim": head_dim, "vocab_size": vocab, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
            "rope_theta": 1e4, "tie_word_embeddings": false, "intermediate_size": inner, "num_experts": experts,
            "num_experts_per_tok": 2, "moe_intermediate_size": inner, "norm_topk_prob": true,
            "decoder_sparse_step": 1, "quantization": made.table,
        });
        made.write(&config);
        made
    }

    fn ones(&mut self, module: &str, width: usize) {
        let bytes = [0x80, 0x3f].repeat(width);
        self.tensors.insert(format!("{module}.weight"), Tensor { dtype: Dtype::BF16, shape: vec![width], bytes });
    }

    /// `count` matrices in a format that is picked at random, plain for one of eight modules.
    fn weight(&mut self, module: &str, count: usize, out: usize, inner: usize) {
        let bf16 = |format: &&Format| !matches!(format, Format::Packed(_, weights::Dtype::F16 | weights::Dtype::F32));
        let packed: Vec<Format> = PACKED.iter().filter(bf16).copied().collect();
        let format = if self.rng.below(8) == 0 { Format::Bf16 } else { self.rng.pick(&packed) };
        let stored = Stored::random(&mut self.rng, format, count * out, inner);
        let mut add = |kind: &str, dtype: Dtype, columns: usize, bytes: Vec<u8>| {
            let shape = if count > 1 { vec![count, out, columns] } else { vec![out, columns] };
            self.tensors.insert(format!("{module}.{kind}"), Tensor { dtype, shape, bytes });
        };
        let Format::Packed(coding, _) = format else { return add("weight", Dtype::BF16, inner, stored.bytes) };
        add("weight", Dtype::U32, coding.words(inner), stored.bytes);
        let affine = matches!(coding, Coding::Affine { .. });
        add("scales", if affine { Dtype::BF16 } else { Dtype::U8 }, inner / coding.group(), stored.scales);
        if affine {
            add("biases", Dtype::BF16, inner / coding.group(), stored.biases);
        }
        let entry = json!({ "mode": coding.mode(), "bits": coding.bits(), "group_size": coding.group() });
        self.table.insert(module.to_owned(), entry);
    }

    fn write(&self, config: &Value) {
        let views = self.tensors.iter().map(|(name, Tensor { dtype, shape, bytes })| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        std::fs::write(self.dir.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap())
            .unwrap();
        std::fs::write(self.dir.path().join("config.json"), config.to_string()).unwrap();
    }

    fn blueprint(&self) -> Blueprint {
        Blueprint::open(self.dir.path()).unwrap_or_else(|error| panic!("{error:?}"))
    }
}

fn layout(tp: usize, pp: usize) -> Layout {
    Layout { world_size: tp * pp, tp: Some(tp), pp: Some(pp), ..Layout::default() }
}

#[test]
fn no_group_is_cut() {
    for seed in 0..40 {
        let made = Checkpoint::random(seed);
        let blueprint = made.blueprint();
        let whole = blueprint.share(&Plan::solo(LAYERS), 0).unwrap();
        // of 32 ranks each has one leaf at most: their borders are those of all leaves
        for layout in (1..=9).map(|tp| layout(tp, 1)).chain([layout(32, 1), layout(2, 2), layout(5, 2)]) {
            let plan = Plan::new(LAYERS, blueprint.geometry.heads, &layout).unwrap();
            let shares: Vec<Share> = (0..plan.world_size()).map(|rank| blueprint.share(&plan, rank).unwrap()).collect();
            check_cover(&plan, &whole, &shares);
            check_groups(&shares);
            for (name, pieces) in shares.iter().flat_map(Share::tensors) {
                for piece in pieces.iter().filter(|_| name.ends_with("o_proj.weight")) {
                    let edges = [piece.columns.start, piece.columns.end];
                    let whole = edges.iter().all(|word| (word * made.heads).is_multiple_of(piece.stride));
                    assert!(whole, "{name} of {} heads is cut at {edges:?} of {}", made.heads, piece.stride);
                }
            }
        }
    }
}

#[test]
fn any_layout_has_the_bits_of_one_rank() {
    for seed in 0..16 {
        let made = Checkpoint::random(seed);
        let open = || made.blueprint();
        let one = run(&open, &layout(1, 1), Algorithm::Auto, mesh(1));
        for layout in [layout(2, 1), layout(3, 1), layout(5, 1), layout(8, 1), layout(2, 2)] {
            let many = run(&open, &layout, Algorithm::Auto, mesh(layout.world_size));
            assert_eq!(many, one, "seed {seed} on {layout:?}");
        }
    }
}
