//! Shape formulas written from the tensor lists of the checkpoints.

use serde_json::Value;
use tbshard::models::catalogue::Entry;

/// What a checkpoint stores, by the way its format treats it.
#[derive(Default)]
struct Tally {
    plain: u64,
    float32: u64,
    matrix: u64,
    expert: u64,
    expert_matrices: u64,
    blocks: u64,
}

impl Tally {
    fn matrix(&mut self, times: u64, rows: u64, columns: u64) {
        self.matrix += times * rows * columns;
        self.blocks += times * rows.div_ceil(128) * columns.div_ceil(128);
    }

    fn experts(&mut self, count: u64, hidden: u64, inter: u64) {
        self.expert += 3 * count * hidden * inter;
        self.expert_matrices += 3 * count;
        self.blocks += 3 * count * hidden.div_ceil(128) * inter.div_ceil(128);
    }

    fn swiglu(&mut self, times: u64, hidden: u64, inter: u64) {
        self.matrix(2 * times, inter, hidden);
        self.matrix(times, hidden, inter);
    }

    fn parameters(&self) -> u64 {
        self.plain + self.float32 + self.matrix + self.expert
    }

    fn bytes(&self, config: &Value, scale: u64) -> u64 {
        let quantization = config.get("quantization_config").or(config["text_config"].get("quantization_config"));
        let (matrix, expert) = match quantization.map(|quantization| quantization["quant_method"].as_str().unwrap()) {
            None => (2 * self.matrix, 2 * self.expert),
            Some("fp8") => (self.matrix, self.expert + scale * self.blocks),
            Some("compressed-tensors") => {
                (2 * self.matrix, self.expert / 2 + self.expert / 32 * 2 + 8 * self.expert_matrices)
            }
            Some(other) => panic!("{other}"),
        };
        2 * self.plain + 4 * self.float32 + matrix + expert
    }
}

fn n(config: &Value, key: &str) -> u64 {
    config[key].as_u64().unwrap_or_else(|| panic!("{key}"))
}

fn embeddings(tally: &mut Tally, config: &Value, tied: bool) {
    let copies = if tied { 1 } else { 2 };
    tally.plain += copies * n(config, "vocab_size") * n(config, "hidden_size") + n(config, "hidden_size");
}

/// llama, qwen2, qwen3 and qwen3_moe: grouped-query attention, then a SwiGLU or experts without a shared one.
fn decoder(tally: &mut Tally, config: &Value, model_type: &str) {
    embeddings(tally, config, config["tie_word_embeddings"].as_bool().unwrap());
    let (layers, hidden) = (n(config, "num_hidden_layers"), n(config, "hidden_size"));
    let (heads, kv) = (n(config, "num_attention_heads"), n(config, "num_key_value_heads"));
    let dim = config["head_dim"].as_u64().unwrap_or(hidden / heads);
    tally.matrix(2 * layers, heads * dim, hidden);
    tally.matrix(2 * layers, kv * dim, hidden);
    tally.plain += layers * 2 * hidden;
    tally.plain += layers
        * match model_type {
            "qwen2" => (heads + 2 * kv) * dim,
            "llama" => 0,
            _ => 2 * dim,
        };
    if model_type == "qwen3_moe" {
        tally.plain += layers * n(config, "num_experts") * hidden;
        tally.experts(layers * n(config, "num_experts"), hidden, n(config, "moe_intermediate_size"));
    } else {
        tally.swiglu(layers, hidden, n(config, "intermediate_size"));
    }
}

/// qwen3_next, qwen3_5 and qwen3_5_moe: three gated delta nets to one gated attention, and a prediction layer.
fn hybrid(tally: &mut Tally, config: &Value, tied: bool, state_in_float32: bool) {
    embeddings(tally, config, tied);
    let (layers, hidden) = (n(config, "num_hidden_layers"), n(config, "hidden_size"));
    let full = layers / n(config, "full_attention_interval");
    let linear = layers - full;
    let keys = n(config, "linear_num_key_heads") * n(config, "linear_key_head_dim");
    let (value_heads, value_dim) = (n(config, "linear_num_value_heads"), n(config, "linear_value_head_dim"));
    let values = value_heads * value_dim;
    tally.matrix(linear, 2 * keys + values, hidden);
    tally.matrix(2 * linear, values, hidden);
    tally.plain += linear * (2 * value_heads * hidden + n(config, "linear_conv_kernel_dim") * (2 * keys + values));
    tally.plain += linear * value_heads;
    *if state_in_float32 { &mut tally.float32 } else { &mut tally.plain } += linear * (value_heads + value_dim);

    let (heads, kv, dim) = (n(config, "num_attention_heads"), n(config, "num_key_value_heads"), n(config, "head_dim"));
    tally.matrix(full + 1, 2 * heads * dim, hidden);
    tally.matrix(2 * (full + 1), kv * dim, hidden);
    tally.matrix(full + 1, hidden, heads * dim);
    tally.plain += 2 * dim * (full + 1);
    tally.plain += 2 * hidden * hidden + 3 * hidden;

    let blocks = layers + 1;
    tally.plain += 2 * hidden * blocks;
    match config["num_experts"].as_u64() {
        Some(experts) => {
            tally.plain += blocks * (experts + 1) * hidden;
            tally.experts(blocks * experts, hidden, n(config, "moe_intermediate_size"));
            tally.swiglu(blocks, hidden, n(config, "shared_expert_intermediate_size"));
        }
        None => tally.swiglu(blocks, hidden, n(config, "intermediate_size")),
    }
}

/// A vision tower with its merger, Qwen's or Kimi's.
fn vision(tally: &mut Tally, patch: u64, positions: u64, [depth, hidden, inter, merged, out]: [u64; 5]) {
    tally.plain += hidden * (patch + 1) + hidden * positions;
    tally.plain += depth * (4 * hidden * hidden + 2 * hidden * inter + 9 * hidden + inter);
    tally.plain += 2 * hidden + merged * merged + merged + merged * out + out;
}

fn qwen_vision(tally: &mut Tally, config: &Value) {
    let hidden = n(config, "hidden_size");
    let patch = n(config, "in_channels") * n(config, "temporal_patch_size") * n(config, "patch_size").pow(2);
    let merged = hidden * n(config, "spatial_merge_size").pow(2);
    let shape = [n(config, "depth"), hidden, n(config, "intermediate_size"), merged, n(config, "out_hidden_size")];
    vision(tally, patch, n(config, "num_position_embeddings"), shape);
}

fn kimi_vision(tally: &mut Tally, config: &Value) {
    let hidden = n(config, "vt_hidden_size");
    let positions = n(config, "init_pos_emb_height") * n(config, "init_pos_emb_width");
    let merged =
        hidden * config["merge_kernel_size"].as_array().unwrap().iter().filter_map(Value::as_u64).product::<u64>();
    let shape = [
        n(config, "vt_num_hidden_layers"),
        hidden,
        n(config, "vt_intermediate_size"),
        merged,
        n(config, "text_hidden_size"),
    ];
    vision(tally, 3 * n(config, "patch_size").pow(2), positions, shape);
    tally.plain += 2 * hidden;
}

/// Multi-head latent attention in `layers` layers, with or without a low rank for the queries.
fn latent_attention(tally: &mut Tally, config: &Value, layers: u64) {
    let (hidden, heads) = (n(config, "hidden_size"), n(config, "num_attention_heads"));
    let (nope, rope) = (n(config, "qk_nope_head_dim"), n(config, "qk_rope_head_dim"));
    let (rank, value) = (n(config, "kv_lora_rank"), n(config, "v_head_dim"));
    let queries = config["q_lora_rank"].as_u64();
    if let Some(queries) = queries {
        tally.matrix(layers, queries, hidden);
        tally.plain += layers * queries;
    }
    tally.matrix(layers, heads * (nope + rope), queries.unwrap_or(hidden));
    tally.matrix(layers, rank + rope, hidden);
    tally.matrix(layers, heads * (nope + value), rank);
    tally.matrix(layers, hidden, heads * value);
    tally.plain += layers * rank;
}

/// One dense layer, then experts with a bias for choosing and shared experts.
fn deepseek_layers(tally: &mut Tally, config: &Value, experts: u64, shared: u64) {
    let (layers, hidden, dense) =
        (n(config, "num_hidden_layers"), n(config, "hidden_size"), n(config, "first_k_dense_replace"));
    let inter = n(config, "moe_intermediate_size");
    tally.plain += layers * 2 * hidden + (layers - dense) * experts * hidden;
    tally.swiglu(dense, hidden, n(config, "intermediate_size"));
    tally.swiglu(layers - dense, hidden, shared * inter);
    tally.experts((layers - dense) * experts, hidden, inter);
}

fn kimi_k2(tally: &mut Tally, config: &Value) {
    embeddings(tally, config, false);
    latent_attention(tally, config, n(config, "num_hidden_layers"));
    let experts = n(config, "n_routed_experts");
    deepseek_layers(tally, config, experts, n(config, "n_shared_experts"));
    tally.float32 += (n(config, "num_hidden_layers") - n(config, "first_k_dense_replace")) * experts;
}

fn kimi_linear(tally: &mut Tally, config: &Value) {
    embeddings(tally, config, false);
    let attention = &config["linear_attn_config"];
    let [delta, full] = ["kda_layers", "full_attn_layers"].map(|key| attention[key].as_array().unwrap().len() as u64);
    assert_eq!(delta + full, n(config, "num_hidden_layers"));
    latent_attention(tally, config, full);
    let (hidden, heads, dim) = (n(config, "hidden_size"), n(attention, "num_heads"), n(attention, "head_dim"));
    tally.matrix(4 * delta, heads * dim, hidden);
    tally.matrix(2 * delta, dim, hidden);
    tally.matrix(2 * delta, heads * dim, dim);
    tally.plain += delta * (heads * hidden + 3 * heads * dim * n(attention, "short_conv_kernel_size") + dim);
    tally.float32 += delta * (heads + heads * dim);
    let experts = n(config, "num_experts");
    deepseek_layers(tally, config, experts, n(config, "num_shared_experts"));
    tally.plain += (n(config, "num_hidden_layers") - n(config, "first_k_dense_replace")) * experts;
}

/// Parameters and bytes by the shapes that the entry's config gives.
pub(super) fn counted(entry: &Entry) -> (u64, u64) {
    let (config, mut tally) = (&entry.config, Tally::default());
    let (text, mut scale, mut buffers) = (config.get("text_config").unwrap_or(config), 2, 0);
    match entry.architecture.as_str() {
        "llama" | "qwen2" | "qwen3" | "qwen3_moe" => decoder(&mut tally, config, &entry.architecture),
        "qwen3_next" | "qwen3_5_moe_text" => hybrid(&mut tally, config, false, false),
        "qwen3_5" | "qwen3_5_moe" => {
            hybrid(&mut tally, text, config["tie_word_embeddings"].as_bool().unwrap(), entry.family == "Qwen3.5");
            qwen_vision(&mut tally, &config["vision_config"]);
        }
        "kimi_k2" | "kimi_k25" => {
            kimi_k2(&mut tally, text);
            scale = 4;
            config.get("vision_config").into_iter().for_each(|config| kimi_vision(&mut tally, config));
        }
        "kimi_linear" => kimi_linear(&mut tally, config),
        other => panic!("no formula for {other}"),
    }
    match entry.name.as_str() {
        // these two store the tied head as well
        "qwen3-0.6b" | "qwen3-1.7b" => tally.plain += n(config, "vocab_size") * n(config, "hidden_size"),
        // inv_freq of each layer: 56 BF16, or 64 F32
        "kimi-k2-instruct" => buffers = 61 * 56 * 2,
        "kimi-k2-instruct-0905" | "kimi-k2-thinking" => buffers = 61 * 64 * 4,
        _ => {}
    }
    (tally.parameters(), tally.bytes(config, scale) + buffers)
}
