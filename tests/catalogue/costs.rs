//! What `kernels/costs.yaml` says a token reads, from the shapes of the models.

use serde_json::Value;
use tbshard::models::catalogue::find;

fn costs() -> Value {
    serde_saphyr::from_str(include_str!("../../kernels/costs.yaml")).unwrap()
}

/// Tokens a second of one machine at the full bandwidth and at four fifths of it, to a tenth.
fn rates(bytes: f64, bandwidth: f64) -> Vec<f64> {
    [1.0, 0.8].map(|part| (part * bandwidth / bytes * 10.0).round() / 10.0).to_vec()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn a_token_of_the_27b_reads_what_is_written() {
    let (costs, entry) = (costs(), find("qwen3.6-27b").unwrap());
    let config = &entry.config["text_config"];
    let of = |name: &str| config[name].as_u64().unwrap();
    let (hidden, layers) = (of("hidden_size"), of("num_hidden_layers"));
    let attention_layers = layers / of("full_attention_interval");
    let delta_layers = layers - attention_layers;
    let (keys, values) = (
        of("linear_num_key_heads") * of("linear_key_head_dim"),
        of("linear_num_value_heads") * of("linear_value_head_dim"),
    );
    let mlp = 3 * hidden * of("intermediate_size");
    // queries, keys, values, their gate; decay and strength; back
    let delta = hidden * (2 * keys + 2 * values) + 2 * hidden * of("linear_num_value_heads") + values * hidden + mlp;
    let (queries, shared) = (of("num_attention_heads") * of("head_dim"), of("num_key_value_heads") * of("head_dim"));
    let attention = hidden * (2 * queries + 2 * shared) + queries * hidden + mlp;
    let parameters = delta_layers * delta + attention_layers * attention + of("vocab_size") * hidden;

    let said = &costs["decode"][0];
    assert_eq!(said["parameters"], parameters);
    let state = 12 * delta_layers * values * of("linear_key_head_dim");
    let cache = 8 * attention_layers * shared * 4096;
    assert_eq!((&said["state"], &said["cache"]), (&Value::from(state), &Value::from(cache)));
    let bandwidth = costs["machines"]["m3-ultra"]["bandwidth"].as_f64().unwrap();
    for weights in said["weights"].as_array().unwrap() {
        let bytes = parameters as f64 * weights["bits"].as_f64().unwrap() / 8.0;
        assert_eq!(weights["bytes"].as_f64().unwrap(), bytes);
        assert_eq!(numbers(&weights["tokens_a_second"]), rates(bytes + (state + cache) as f64, bandwidth));
    }
}

#[test]
fn a_token_of_kimi_reads_what_is_written() {
    let (costs, entry) = (costs(), find("kimi-k2.6").unwrap());
    let config = entry.config.get("text_config").unwrap_or(&entry.config);
    let of = |name: &str| config[name].as_u64().unwrap();
    let (hidden, heads, layers) = (of("hidden_size"), of("num_attention_heads"), of("num_hidden_layers"));
    let (rank, rope) = (of("kv_lora_rank"), of("qk_rope_head_dim"));
    let (nope, value) = (of("qk_nope_head_dim"), of("v_head_dim"));
    let attention = hidden * of("q_lora_rank")
        + of("q_lora_rank") * heads * (nope + rope)
        + hidden * (rank + rope)
        + rank * heads * (nope + value)
        + heads * value * hidden;
    let dense = of("first_k_dense_replace");
    let expert = 3 * hidden * of("moe_intermediate_size");
    let sparse = layers - dense;
    let bf16 = |parameters: u64| parameters as f64 * 2.0;
    let parts = [
        ("attention", bf16(layers * attention)),
        ("dense", bf16(dense * 3 * hidden * of("intermediate_size"))),
        ("shared_experts", bf16(sparse * of("n_shared_experts") * expert)),
        ("routed_experts", (sparse * of("num_experts_per_tok") * expert) as f64 * 4.5 / 8.0),
        ("routers", bf16(sparse * of("n_routed_experts") * hidden)),
        ("head", bf16(of("vocab_size") * hidden)),
    ];
    let said = &costs["decode"][1];
    let weights = &said["weights"][0];
    for (name, bytes) in parts {
        assert_eq!(weights["of"][name].as_f64().unwrap(), bytes, "{name}");
    }
    let bytes: f64 = parts.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(weights["bytes"].as_f64().unwrap(), bytes);
    let cache = (layers * 4096 * (rank + rope) * 4) as f64;
    assert_eq!(said["cache"].as_f64().unwrap(), cache);
    let bandwidth = costs["machines"]["m3-ultra"]["bandwidth"].as_f64().unwrap();
    assert_eq!(numbers(&weights["tokens_a_second"]), rates(bytes + cache, bandwidth));
}
