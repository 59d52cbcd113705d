//! Random models of every architecture, and random layouts for them.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use tbshard::models::{Blueprint, architectures};
use tbshard::partition::Layout;

/// The sizes of a model; an architecture uses those it has.
#[derive(Debug, Clone)]
pub struct Shape {
    pub kind: &'static str,
    pub fp8: bool,
    pub tied: bool,
    pub layers: usize,
    pub hidden: usize,
    pub vocab: usize,
    pub kv_heads: usize,
    // query heads that share a key head
    pub group: usize,
    pub head_dim: usize,
    pub gated: bool,
    pub inner: usize,
    pub experts: usize,
    pub expert_inner: usize,
    pub shared_inner: usize,
    pub sparse_step: usize,
    pub key_heads: usize,
    // value heads that share a key head
    pub v_group: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub kernel: usize,
    pub interval: usize,
}

impl Shape {
    pub fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    pub fn has_experts(&self) -> bool {
        self.kind.contains("moe") || self.kind == "qwen3_next"
    }

    pub fn is_hybrid(&self) -> bool {
        self.kind.contains("qwen3_5") || self.kind == "qwen3_next"
    }

    /// Whether the input projections are interleaved per key head.
    pub fn is_fused(&self) -> bool {
        self.kind == "qwen3_next"
    }

    pub fn config(&self) -> Value {
        let mut text = json!({
            "model_type": self.kind, "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads(), "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
            "tie_word_embeddings": self.tied, "intermediate_size": self.inner,
        });
        let mut add = |more: Value| text.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        if self.has_experts() {
            add(json!({
                "num_experts": self.experts, "num_experts_per_tok": self.experts.div_ceil(2),
                "moe_intermediate_size": self.expert_inner, "norm_topk_prob": true,
                "decoder_sparse_step": self.sparse_step,
            }));
        }
        if self.is_hybrid() {
            add(json!({
                "linear_conv_kernel_dim": self.kernel, "linear_key_head_dim": self.key_dim,
                "linear_value_head_dim": self.value_dim, "linear_num_key_heads": self.key_heads,
                "linear_num_value_heads": self.key_heads * self.v_group, "full_attention_interval": self.interval,
                "attn_output_gate": self.gated,
            }));
            if self.has_experts() {
                add(json!({ "shared_expert_intermediate_size": self.shared_inner }));
            }
        }
        let fp8 = json!({ "quant_method": "fp8", "weight_block_size": [128, 128] });
        let quantisation = if self.fp8 { fp8 } else { Value::Null };
        if ["qwen3_5", "qwen3_5_moe"].contains(&self.kind) {
            text["model_type"] = format!("{}_text", self.kind).into();
            let kind = self.kind;
            return json!({ "model_type": kind, "text_config": text, "quantization_config": quantisation,
                "tie_word_embeddings": self.tied });
        }
        text["quantization_config"] = quantisation;
        text
    }

    pub fn blueprint(&self) -> Blueprint {
        Blueprint::random(&self.config(), None, 11).unwrap_or_else(|error| panic!("{self:?}: {error:?}"))
    }
}

/// One of `from`, times `unit`.
fn times(unit: usize, from: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = usize> {
    from.prop_map(move |n| n * unit)
}

/// Models of any architecture: `small` ones can be run, the others only be planned.
pub fn shapes(small: bool) -> impl Strategy<Value = Shape> {
    let kinds: Vec<&'static str> = architectures().collect();
    let widths = if small { vec![8, 16, 32, 40] } else { vec![64, 128, 256] };
    let (inner, vocab) = if small { (1..=700usize, 20..=300usize) } else { (1..=5000, 1..=3000) };
    let experts = if small { 1..=5usize } else { 1..=8 };
    let (heads, hidden) =
        if small { (1..=4usize, times(8, 2..=24).boxed()) } else { (1..=9, times(8, 2..=96).boxed()) };
    let values = if small { times(16, 1..=2).boxed() } else { times(16, 1..=8).boxed() };
    (
        (prop::sample::select(kinds), any::<bool>(), any::<bool>(), 1..=5usize, hidden, vocab),
        (heads.clone(), 1..=6usize, prop::sample::select(widths.clone()), any::<bool>()),
        (inner.clone(), experts, inner.clone(), inner, 1..=3usize),
        (heads, 1..=4usize, prop::sample::select(widths), values, 2..=4usize, 1..=3usize),
    )
        .prop_map(|(model, attention, mlp, delta)| {
            let (kind, fp8, tied, layers, hidden, vocab) = model;
            let (kv_heads, group, head_dim, gated) = attention;
            let (inner, experts, expert_inner, shared_inner, sparse_step) = mlp;
            let (key_heads, v_group, key_dim, value_dim, kernel, interval) = delta;
            Shape {
                kind,
                fp8,
                tied,
                layers,
                hidden,
                vocab,
                kv_heads,
                group,
                head_dim,
                gated,
                inner,
                experts,
                expert_inner,
                shared_inner,
                sparse_step,
                key_heads,
                v_group,
                key_dim,
                value_dim,
                kernel,
                interval,
            }
        })
}

/// One to nine ranks in any arrangement that a model of `layers` layers allows, of any weights.
pub fn layouts(layers: usize) -> impl Strategy<Value = Layout> {
    let shapes: Vec<(usize, usize)> =
        (1..=9).flat_map(|tp| (1..=9 / tp).map(move |pp| (tp, pp))).filter(|(_, pp)| *pp <= layers).collect();
    prop::sample::select(shapes).prop_flat_map(|(tp, pp)| {
        let world_size = tp * pp;
        let weights = prop_oneof![Just(Vec::new()), prop::collection::vec(1..=9u64, world_size)];
        weights.prop_map(move |weights| Layout { world_size, tp: Some(tp), pp: Some(pp), weights, ..Layout::default() })
    })
}

/// A model and a layout for it.
pub fn cases(small: bool) -> impl Strategy<Value = (Shape, Layout)> {
    shapes(small).prop_flat_map(|shape| {
        let layers = shape.layers;
        (Just(shape), layouts(layers))
    })
}

/// Tries `test` on `cases` values of `strategy`, the same ones every time; the first that fails is shown, made small.
pub fn check<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value)) {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[4; 32]);
    let config = Config { cases, failure_persistence: None, max_shrink_time: 20_000, ..Config::default() };
    let outcome = TestRunner::new_with_rng(config, rng).run(&strategy, |value| {
        test(value);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
