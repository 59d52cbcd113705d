//! Random models of every architecture, and random layouts for them.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use tbshard::models::{Blueprint, architectures};
use tbshard::partition::Layout;
use tbshard::weights::Invented;

/// The sizes of a model; an architecture uses those it has.
#[derive(Debug, Clone)]
pub struct Shape {
    pub kind: &'static str,
    pub format: Invented,
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
    pub latent: Latent,
}

/// What only the architectures with latent attention have.
#[derive(Debug, Clone)]
pub struct Latent {
    pub q_rank: Option<usize>,
    pub kv_rank: usize,
    pub plain_dim: usize,
    pub rope_dim: usize,
    pub yarn: bool,
    // groups of `experts` experts each, and how many of them may be chosen from
    pub groups: usize,
    pub top_groups: usize,
    // experts that every row uses
    pub shared: usize,
    // layers without experts
    pub dense: usize,
}

impl Shape {
    pub fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Whether attention keeps latent vectors.
    pub fn is_latent(&self) -> bool {
        self.kind.contains("kimi") || self.kind == "deepseek_v3"
    }

    /// Whether layer `layer` of Kimi-Linear is a Kimi Delta Attention, of `key_heads` heads of `value_dim`.
    pub fn is_kda(&self, layer: usize) -> bool {
        self.kind == "kimi_linear" && !(layer + 1).is_multiple_of(self.interval)
    }

    /// Columns of the experts that every row uses.
    pub fn shared_columns(&self) -> Option<usize> {
        match self.is_latent() {
            true => Some(self.latent.shared * self.expert_inner).filter(|columns| *columns > 0),
            false => self.is_hybrid().then_some(self.shared_inner),
        }
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
        if self.is_latent() {
            add(self.latent_keys());
            text.as_object_mut().unwrap().shift_remove("head_dim");
        }
        text["quantization_config"] = match self.format {
            Invented::Bf16 => Value::Null,
            Invented::BlockFp8 => json!({ "quant_method": "fp8", "weight_block_size": [128, 128] }),
            Invented::Int4Experts => {
                let weights = json!({ "num_bits": 4, "type": "int", "symmetric": true, "group_size": 32 });
                json!({ "quant_method": "compressed-tensors", "format": "pack-quantized",
                    "config_groups": { "group_0": { "weights": weights } } })
            }
        };
        let inner_kind = match self.kind {
            "qwen3_5" | "qwen3_5_moe" => format!("{}_text", self.kind),
            "kimi_k25" => "kimi_k2".to_owned(),
            _ => return text,
        };
        text["model_type"] = inner_kind.into();
        json!({ "model_type": self.kind, "text_config": text, "tie_word_embeddings": self.tied })
    }

    /// The keys of DeepSeek-V3, or Kimi-Linear's names for them.
    fn latent_keys(&self) -> Value {
        let Latent { q_rank, kv_rank, plain_dim, rope_dim, groups, top_groups, shared, dense, yarn } = self.latent;
        let (count, chosen) = (self.experts * groups, (self.experts * top_groups).div_ceil(2));
        let mut keys = json!({
            "q_lora_rank": q_rank, "kv_lora_rank": kv_rank, "qk_nope_head_dim": plain_dim,
            "qk_rope_head_dim": rope_dim, "v_head_dim": self.head_dim, "num_key_value_heads": self.heads(),
            "moe_intermediate_size": self.expert_inner, "first_k_dense_replace": dense,
            "moe_layer_freq": self.sparse_step, "topk_group": top_groups, "routed_scaling_factor": 2.5,
        });
        let more = if self.kind == "kimi_linear" {
            let (kda, full): (Vec<usize>, Vec<usize>) = (1..=self.layers).partition(|layer| self.is_kda(layer - 1));
            json!({ "num_experts": count, "num_experts_per_token": chosen, "num_shared_experts": shared,
                "num_expert_group": groups, "moe_renormalize": true, "mla_use_nope": true,
                "linear_attn_config": { "kda_layers": kda, "full_attn_layers": full, "num_heads": self.key_heads,
                    "head_dim": self.value_dim, "short_conv_kernel_size": self.kernel } })
        } else {
            let stretched = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
                "mscale": 1.0, "mscale_all_dim": 1.0 });
            json!({ "n_routed_experts": count, "num_experts_per_tok": chosen, "n_shared_experts": shared,
                "n_group": groups, "norm_topk_prob": true, "rope_scaling": yarn.then_some(stretched) })
        };
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        keys
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
    let formats = prop::sample::select(vec![Invented::Bf16, Invented::BlockFp8, Invented::Int4Experts]);
    let latent = (
        (prop::option::of(1..=70usize), 1..=70usize, 1..=40usize, times(2, 1..=12), any::<bool>()),
        (1..=3usize, 1..=3usize, 0..=2usize, 0..=2usize),
    );
    (
        (prop::sample::select(kinds), formats, any::<bool>(), 1..=5usize, hidden, vocab),
        (heads.clone(), 1..=6usize, prop::sample::select(widths.clone()), any::<bool>()),
        (inner.clone(), experts, inner.clone(), inner, 1..=3usize),
        (heads, 1..=4usize, prop::sample::select(widths), values, 2..=4usize, 1..=3usize),
        latent,
    )
        .prop_map(|(model, attention, mlp, delta, (mla, routing))| {
            let (kind, format, tied, layers, hidden, vocab) = model;
            let (kv_heads, group, head_dim, gated) = attention;
            let (inner, experts, expert_inner, shared_inner, sparse_step) = mlp;
            let (key_heads, v_group, key_dim, value_dim, kernel, interval) = delta;
            let (q_rank, kv_rank, plain_dim, rope_dim, yarn) = mla;
            let (groups, top_groups, shared, dense) = routing;
            // whole groups in the rows of experts
            let whole =
                |columns: usize| if format == Invented::Int4Experts { columns.next_multiple_of(32) } else { columns };
            Shape {
                kind,
                format,
                tied,
                layers,
                hidden: whole(hidden),
                vocab,
                kv_heads,
                group,
                head_dim,
                gated,
                inner,
                experts,
                expert_inner: whole(expert_inner),
                shared_inner,
                sparse_step,
                key_heads,
                v_group,
                key_dim,
                value_dim,
                kernel,
                interval,
                latent: Latent {
                    q_rank,
                    kv_rank,
                    plain_dim,
                    rope_dim,
                    yarn,
                    groups,
                    top_groups: top_groups.min(groups),
                    shared: shared.min(experts * groups),
                    dense,
                },
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
