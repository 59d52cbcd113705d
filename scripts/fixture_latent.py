"""The tiny models of make_fixtures.py that have latent attention: DeepSeek-V3, Kimi K2.5, Kimi-Linear; written out as the
checkpoints on the hub have them."""

from fixture_models import Model, common, dense

HIDDEN = 32
VISION = 8  # width of Kimi's vision tower
PATCH = 4
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 4.0, "original_max_position_embeddings": 16, "type": "yarn"}
LATENT = {"kv_lora_rank": 12, "num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": None, "qk_nope_head_dim": 8,
          "qk_rope_head_dim": 8, "v_head_dim": 12}
INT4 = {"config_groups": {"group_0": {
            "input_activations": None, "output_activations": None, "targets": ["Linear"],
            "weights": {"actorder": None, "block_structure": None, "dynamic": False, "group_size": 32, "num_bits": 4, "observer": "minmax",
                        "observer_kwargs": {}, "strategy": "group", "symmetric": True, "type": "int"}}},
        "format": "pack-quantized", "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
        "kv_cache_scheme": None, "quant_method": "compressed-tensors", "quantization_status": "compressed"}


def latent_attention(prefix, hidden, text):
    """Returns the tensors of multi-head latent attention."""
    heads, rank, rope = text["num_attention_heads"], text["kv_lora_rank"], text["qk_rope_head_dim"]
    plain, value, q_rank = text["qk_nope_head_dim"], text["v_head_dim"], text["q_lora_rank"]
    out = {f"{prefix}.kv_a_proj_with_mqa.weight": (rank + rope, hidden), f"{prefix}.kv_a_layernorm.weight": (rank,),
           f"{prefix}.kv_b_proj.weight": (heads * (plain + value), rank), f"{prefix}.o_proj.weight": (hidden, heads * value)}
    if q_rank is None:
        return out | {f"{prefix}.q_proj.weight": (heads * (plain + rope), hidden)}
    return out | {f"{prefix}.q_a_proj.weight": (q_rank, hidden), f"{prefix}.q_a_layernorm.weight": (q_rank,),
                  f"{prefix}.q_b_proj.weight": (heads * (plain + rope), q_rank)}


def delta_attention(prefix, hidden, linear):
    """Returns the tensors of Kimi Delta Attention."""
    heads, dim, kernel = linear["num_heads"], linear["head_dim"], linear["short_conv_kernel_size"]
    width = heads * dim
    out = {f"{prefix}.A_log": (1, 1, heads, 1), f"{prefix}.dt_bias": (width,), f"{prefix}.b_proj.weight": (heads, hidden),
           f"{prefix}.o_norm.weight": (dim,), f"{prefix}.o_proj.weight": (hidden, width)}
    for part in "qkv":
        out |= {f"{prefix}.{part}_proj.weight": (width, hidden), f"{prefix}.{part}_conv1d.weight": (width, 1, kernel)}
    for part in "fg":
        out |= {f"{prefix}.{part}_a_proj.weight": (dim, hidden), f"{prefix}.{part}_b_proj.weight": (width, dim)}
    return out


def experts(prefix, hidden, count, inner, shared, names=("gate_proj", "up_proj", "down_proj")):
    """Returns the tensors of a mixture of experts chosen by sigmoids; `names` are those of an expert's projections."""
    gate, up, down = names
    out = {f"{prefix}.gate.weight": (count, hidden), f"{prefix}.gate.e_score_correction_bias": (count,)}
    for e in range(count):
        out |= {f"{prefix}.experts.{e}.{gate}.weight": (inner, hidden), f"{prefix}.experts.{e}.{up}.weight": (inner, hidden),
                f"{prefix}.experts.{e}.{down}.weight": (hidden, inner)}
    return out | dense(f"{prefix}.shared_experts", hidden, shared * inner)


def decoder(prefix, head, text, mixer, moe):
    """Returns the tensors of a whole decoder; `mixer` and `moe` give those of a layer, unless it is dense."""
    hidden, out = text["hidden_size"], {}
    for n in range(text["num_hidden_layers"]):
        layer = f"{prefix}layers.{n}"
        out |= {f"{layer}.input_layernorm.weight": (hidden,), f"{layer}.post_attention_layernorm.weight": (hidden,)}
        out |= mixer(n, f"{layer}.self_attn")
        out |= dense(f"{layer}.mlp", hidden, text["intermediate_size"]) if n < text["first_k_dense_replace"] else moe(layer)
    out |= {f"{prefix}embed_tokens.weight": (text["vocab_size"], hidden), f"{prefix}norm.weight": (hidden,)}
    return out if text["tie_word_embeddings"] else out | {head: (text["vocab_size"], hidden)}


def deepseek_decoder(prefix, head, text):
    hidden = text["hidden_size"]
    moe = lambda layer: experts(f"{layer}.mlp", hidden, text["n_routed_experts"], text["moe_intermediate_size"], text["n_shared_experts"])
    return decoder(prefix, head, text, lambda _, name: latent_attention(name, hidden, text), moe)


def deepseek_config(ids, **more):
    return common(ids, HIDDEN, attention_bias=False, intermediate_size=16, moe_layer_freq=1, norm_topk_prob=True,
                  num_nextn_predict_layers=0, rope_theta=1000.0, scoring_func="sigmoid", topk_method="noaux_tc", **LATENT) | more


def deepseek_v3(ids):
    """Two dense layers, 2 of 3 groups of 2 experts, two shared experts, no q_lora_rank, yarn that scales cosines and scores."""
    text = deepseek_config(ids, architectures=["DeepseekV3ForCausalLM"], dtype="bfloat16", first_k_dense_replace=2, model_type="deepseek_v3",
                           moe_intermediate_size=8, n_group=3, n_routed_experts=6, n_shared_experts=2, num_experts_per_tok=3, num_hidden_layers=3,
                           rope_scaling=YARN | {"mscale": 0.707, "mscale_all_dim": 1.0}, routed_scaling_factor=2.5, tie_word_embeddings=True, topk_group=2)
    return Model("qwen2", text, deepseek_decoder("model.", "lm_head.weight", text))


def deepseek_v3_fp8(ids):
    """Kimi K2's form of it, in block-FP8, with sizes that whole groups of 32 divide: heads whose keys and values lie across blocks."""
    text = deepseek_config(ids, architectures=["DeepseekV3ForCausalLM"], dtype="bfloat16", first_k_dense_replace=1, hidden_size=64, intermediate_size=160,
                           kv_lora_rank=32, model_type="deepseek_v3", moe_intermediate_size=32, n_group=1, n_routed_experts=4, n_shared_experts=1,
                           num_experts_per_tok=2, num_hidden_layers=2, q_lora_rank=32, qk_nope_head_dim=32, rope_scaling=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
                           routed_scaling_factor=2.827, topk_group=1, v_head_dim=48)
    return Model("qwen2", text, deepseek_decoder("model.", "lm_head.weight", text), fp8=True)


def kimi_vision(width, inner, hidden):
    """Returns the vision tower that a text decoder skips, and the projector that follows it."""
    linear = lambda name, rows, cols: {f"{name}.weight": (rows, cols), f"{name}.bias": (rows,)}
    norm = lambda name: {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    block, merged = "vision_tower.encoder.blocks.0", 4 * width
    return {"vision_tower.patch_embed.proj.weight": (width, 3, PATCH, PATCH), "vision_tower.patch_embed.proj.bias": (width,),
            "vision_tower.patch_embed.pos_emb.weight": (4, 4, width), **norm(f"{block}.norm0"), **norm(f"{block}.norm1"),
            **norm("vision_tower.encoder.final_layernorm"), **linear(f"{block}.wqkv", 3 * width, width), **linear(f"{block}.wo", width, width),
            **linear(f"{block}.mlp.fc0", inner, width), **linear(f"{block}.mlp.fc1", width, inner), **norm("mm_projector.pre_norm"),
            **linear("mm_projector.proj.0", merged, merged), **linear("mm_projector.proj.2", hidden, merged)}


def kimi_k25(ids):
    """The wrapper of Kimi K2.5 to K2.7 with INT4 experts, a vision tower to skip, q_lora_rank, and Kimi's yarn."""
    text = deepseek_config(ids, architectures=["DeepseekV3ForCausalLM"], dtype="bfloat16", first_k_dense_replace=1, model_type="kimi_k2",
                           moe_intermediate_size=32, n_group=1, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, num_hidden_layers=2,
                           q_lora_rank=20, rms_norm_eps=1e-5, rope_scaling=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
                           routed_scaling_factor=2.827, topk_group=1)
    tower = {"hidden_size": VISION, "intermediate_size": 12, "merge_kernel_size": [2, 2], "num_attention_heads": 1, "num_hidden_layers": 1,
             "patch_size": PATCH, "pos_emb_height": 4, "pos_emb_time": 4, "pos_emb_width": 4}
    config = {"architectures": ["KimiK25ForConditionalGeneration"], "bos_token_id": text["bos_token_id"], "dtype": "bfloat16",
              "eos_token_id": text["eos_token_id"], "image_token_id": ids["<|image_pad|>"], "media_placeholder_token_id": ids["<|image_pad|>"],
              "model_type": "kimi_k25", "projection_hidden_size": VISION, "text_config": text, "tie_word_embeddings": False, "vision_config": tower}
    shapes = deepseek_decoder("language_model.model.", "language_model.lm_head.weight", text) | kimi_vision(VISION, 12, HIDDEN)
    return Model("qwen2", config, shapes, int4=True)


def kimi_linear(ids):
    """Two layers of Kimi Delta Attention, the first of them dense, then one of latent attention without positions."""
    hidden = 24
    linear = {"full_attn_layers": [3], "head_dim": 16, "kda_layers": [1, 2], "num_heads": 2, "short_conv_kernel_size": 4}
    text = common(ids, hidden, architectures=["KimiLinearForCausalLM"], dtype="bfloat16", first_k_dense_replace=1, head_dim=16,
                  intermediate_size=16, linear_attn_config=linear, mla_use_nope=True, model_max_length=4096, model_type="kimi_linear",
                  moe_intermediate_size=8, moe_layer_freq=1, moe_renormalize=True, moe_router_activation_func="sigmoid", num_expert_group=1,
                  num_experts=5, num_experts_per_token=2, num_hidden_layers=3, num_nextn_predict_layers=0, num_shared_experts=1,
                  pad_token_id=ids["<|endoftext|>"], rms_norm_eps=1e-5, rope_scaling=None, rope_theta=10000.0, routed_scaling_factor=2.446, topk_group=1,
                  use_grouped_topk=True, **LATENT)
    del text["max_position_embeddings"]
    mixer = lambda n, name: latent_attention(name, hidden, text) if n + 1 in linear["full_attn_layers"] else delta_attention(name, hidden, linear)
    moe = lambda layer: experts(f"{layer}.block_sparse_moe", hidden, 5, 8, 1, ("w1", "w3", "w2"))
    return Model("qwen2", text, decoder("model.", "lm_head.weight", text, mixer, moe))


MODELS = {"deepseek_v3": deepseek_v3, "deepseek_v3-fp8": deepseek_v3_fp8, "kimi_k25-int4": kimi_k25, "kimi_linear": kimi_linear}
