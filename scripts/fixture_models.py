"""The tiny models of make_fixtures.py: config.json and every tensor's name and shape, written out as
the checkpoints on the hub have them (not as transformers would save them)."""

from dataclasses import dataclass, field

import fixture_tokenizer

LAYERS = 4
BLOCK = 128  # edge of an FP8 scale block
VISION_PATCH = 4
ROPE_THETA = 1000  # of the partly rotated models; at the real 1e7 a wrong one would not show in 40 tokens


@dataclass
class Model:
    """One fixture: what goes into config.json, and {tensor name: shape} before quantisation."""

    family: str  # of fixture_tokenizer.PATTERNS
    config: dict
    shapes: dict = field(default_factory=dict)
    zero_centred_norms: bool = False  # stored norm weights are (w - 1)
    fp8: bool = False
    int4: bool = False  # experts in compressed-tensors' pack-quantized format
    file_per_layer: bool = False  # `layers-N.safetensors`, as in the Qwen3.5 FP8 checkpoints


def dense(prefix, hidden, intermediate):
    """Returns the tensors of a SwiGLU block."""
    return {f"{prefix}.gate_proj.weight": (intermediate, hidden), f"{prefix}.up_proj.weight": (intermediate, hidden),
            f"{prefix}.down_proj.weight": (hidden, intermediate)}


def moe(prefix, hidden, text, fused):
    """Returns the tensors of a mixture of experts, with the shared expert if the config has one."""
    count, inner = text["num_experts"], text["moe_intermediate_size"]
    out = {f"{prefix}.gate.weight": (count, hidden)}
    if fused:
        out[f"{prefix}.experts.gate_up_proj"] = (count, 2 * inner, hidden)
        out[f"{prefix}.experts.down_proj"] = (count, hidden, inner)
    else:
        for e in range(count):
            out |= dense(f"{prefix}.experts.{e}", hidden, inner)
    if "shared_expert_intermediate_size" in text:
        out |= dense(f"{prefix}.shared_expert", hidden, text["shared_expert_intermediate_size"])
        out[f"{prefix}.shared_expert_gate.weight"] = (1, hidden)
    return out


def attention(prefix, hidden, text, bias, qk_norm, gated):
    """Returns the tensors of grouped-query attention; `gated` doubles q_proj by an output gate."""
    heads, kv, dim = text["num_attention_heads"], text["num_key_value_heads"], text.get("head_dim")
    dim = dim or hidden // heads
    rows = {"q_proj": heads * dim * (2 if gated else 1), "k_proj": kv * dim, "v_proj": kv * dim}
    out = {f"{prefix}.{name}.weight": (n, hidden) for name, n in rows.items()}
    out[f"{prefix}.o_proj.weight"] = (hidden, heads * dim)
    if bias:
        out |= {f"{prefix}.{name}.bias": (n,) for name, n in rows.items()}
    if qk_norm:
        out |= {f"{prefix}.q_norm.weight": (dim,), f"{prefix}.k_norm.weight": (dim,)}
    return out


def delta_net(prefix, hidden, text, fused):
    """Returns the tensors of a gated delta net; `fused` is Qwen3-Next's interleaved projection pair."""
    k_heads, v_heads = text["linear_num_key_heads"], text["linear_num_value_heads"]
    keys, values = k_heads * text["linear_key_head_dim"], v_heads * text["linear_value_head_dim"]
    out = {f"{prefix}.A_log": (v_heads,), f"{prefix}.dt_bias": (v_heads,),
           f"{prefix}.conv1d.weight": (2 * keys + values, 1, text["linear_conv_kernel_dim"]),
           f"{prefix}.norm.weight": (text["linear_value_head_dim"],), f"{prefix}.out_proj.weight": (hidden, values)}
    rows = ({"in_proj_qkvz": 2 * keys + 2 * values, "in_proj_ba": 2 * v_heads} if fused else
            {"in_proj_qkv": 2 * keys + values, "in_proj_z": values, "in_proj_b": v_heads, "in_proj_a": v_heads})
    return out | {f"{prefix}.{name}.weight": (n, hidden) for name, n in rows.items()}


def vision(prefix, width, inner, hidden):
    """Returns the vision tower that a text decoder skips: one block, patch embedding, merger."""
    linear = lambda name, rows, cols: {f"{prefix}.{name}.weight": (rows, cols), f"{prefix}.{name}.bias": (rows,)}
    norm = lambda name: {f"{prefix}.{name}.weight": (width,), f"{prefix}.{name}.bias": (width,)}
    return {f"{prefix}.patch_embed.proj.weight": (width, 3, 2, VISION_PATCH, VISION_PATCH),
            f"{prefix}.patch_embed.proj.bias": (width,), f"{prefix}.pos_embed.weight": (16, width),
            **norm("blocks.0.norm1"), **norm("blocks.0.norm2"), **norm("merger.norm"),
            **linear("blocks.0.attn.qkv", 3 * width, width), **linear("blocks.0.attn.proj", width, width),
            **linear("blocks.0.mlp.linear_fc1", inner, width), **linear("blocks.0.mlp.linear_fc2", width, inner),
            **linear("merger.linear_fc1", 4 * width, 4 * width), **linear("merger.linear_fc2", hidden, 4 * width)}


def multi_token_head(hidden):
    """Returns some of the multi-token-prediction tensors, which a plain decoder skips."""
    norms = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "layers.0.input_layernorm")
    return {"mtp.fc.weight": (hidden, 2 * hidden)} | {f"mtp.{n}.weight": (hidden,) for n in norms}


def decoder(prefix, text, *, bias=False, qk_norm=False, gated=False, fused_delta=False, fused_experts=False):
    """Returns the tensors of a whole decoder whose names start with `prefix`."""
    hidden, out = text["hidden_size"], {}
    for n in range(text["num_hidden_layers"]):
        layer = f"{prefix}layers.{n}"
        out |= {f"{layer}.input_layernorm.weight": (hidden,), f"{layer}.post_attention_layernorm.weight": (hidden,)}
        if "full_attention_interval" in text and (n + 1) % text["full_attention_interval"]:
            out |= delta_net(f"{layer}.linear_attn", hidden, text, fused_delta)
        else:
            out |= attention(f"{layer}.self_attn", hidden, text, bias, qk_norm, gated)
        if "num_experts" in text:
            out |= moe(f"{layer}.mlp", hidden, text, fused_experts)
        else:
            out |= dense(f"{layer}.mlp", hidden, text["intermediate_size"])
    out |= {f"{prefix}embed_tokens.weight": (text["vocab_size"], hidden), f"{prefix}norm.weight": (hidden,)}
    return out if text["tie_word_embeddings"] else out | {"lm_head.weight": (text["vocab_size"], hidden)}


def common(ids, hidden, **more):
    """Returns the keys that every config.json has."""
    base = {"attention_dropout": 0.0, "bos_token_id": ids[fixture_tokenizer.END_OF_TEXT],
            "eos_token_id": ids[fixture_tokenizer.IM_END], "hidden_act": "silu", "hidden_size": hidden,
            "initializer_range": 0.02, "max_position_embeddings": 4096, "num_hidden_layers": LAYERS,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "use_cache": True,
            "vocab_size": fixture_tokenizer.VOCAB_SIZE}
    return base | more


def heads(query, kv, dim=None):
    """Returns the attention head counts; configs without `head_dim` mean hidden / heads."""
    return {"num_attention_heads": query, "num_key_value_heads": kv} | ({"head_dim": dim} if dim else {})


SLIDING = {"sliding_window": None, "use_sliding_window": False, "max_window_layers": LAYERS}
QWEN3 = {"attention_bias": False, "rope_scaling": None, "rope_theta": 1000000, "torch_dtype": "bfloat16", **SLIDING}
DELTA = {"full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16,
         "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_value_head_dim": 16}
MOE = {"moe_intermediate_size": 16, "norm_topk_prob": True, "num_experts": 5, "num_experts_per_tok": 2,
       "output_router_logits": False, "router_aux_loss_coef": 0.001}


def llama(ids):
    """9 query heads on 3 KV heads, tied, with a tokenizer that puts a BOS in front."""
    text = common(ids, 72, architectures=["LlamaForCausalLM"], model_type="llama", attention_bias=False, mlp_bias=False,
                  bos_token_id=ids[fixture_tokenizer.LLAMA_BOS], intermediate_size=32, pretraining_tp=1, rms_norm_eps=1e-5,
                  rope_scaling=None, rope_theta=100000, tie_word_embeddings=True, torch_dtype="bfloat16", **heads(9, 3, 16))
    return Model("llama", text, decoder("model.", text))


def qwen2(ids):
    """Biases on q, k and v, no `head_dim` in the config, tied; the MLP is wider than 128."""
    text = common(ids, 48, architectures=["Qwen2ForCausalLM"], model_type="qwen2", intermediate_size=136,
                  rope_theta=1000000.0, tie_word_embeddings=True, torch_dtype="bfloat16", **SLIDING, **heads(3, 1))
    return Model("qwen2", text, decoder("model.", text, bias=True))


def qwen3(ids, fp8):
    """q and k norms; heads x head_dim is not hidden. The FP8 one has matrices of 2 x 2 blocks."""
    size = {"hidden_size": 136, "intermediate_size": 144, "num_hidden_layers": 3, "tie_word_embeddings": True} if fp8 else {"intermediate_size": 48}
    text = common(ids, 64, architectures=["Qwen3ForCausalLM"], model_type="qwen3", **QWEN3, **heads(6, 2, 16)) | size
    return Model("qwen2", text, decoder("model.", text, qk_norm=True), fp8=fp8)


def qwen3_yarn(ids):
    """Positions stretched by YaRN beyond 16, which both prompts but the first few tokens exceed."""
    yarn = {"factor": 4.0, "original_max_position_embeddings": 16, "rope_type": "yarn"}
    text = common(ids, 32, architectures=["Qwen3ForCausalLM"], model_type="qwen3", **QWEN3, **heads(3, 1, 16))
    text |= {"intermediate_size": 24, "num_hidden_layers": 2, "rope_scaling": yarn, "rope_theta": ROPE_THETA, "tie_word_embeddings": True}
    return Model("qwen2", text, decoder("model.", text, qk_norm=True))


def qwen3_moe(ids, fp8):
    """6 experts, 2 a token."""
    shape = heads(6, 2, 24) if fp8 else heads(6, 2, 16)
    text = common(ids, 64 if fp8 else 48, architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe",
                  decoder_sparse_step=1, intermediate_size=96, mlp_only_layers=[], **QWEN3, **MOE, **shape) | {"num_experts": 6}
    return Model("qwen2", text, decoder("model.", text, qk_norm=True), fp8=fp8)


def qwen3_next(ids):
    """Gated delta net with the fused, per-head interleaved projections; rotary keys at the top level."""
    text = common(ids, 48, architectures=["Qwen3NextForCausalLM"], model_type="qwen3_next", attention_bias=False,
                  decoder_sparse_step=1, dtype="bfloat16", intermediate_size=96, mlp_only_layers=[],
                  partial_rotary_factor=0.25, rope_scaling=None, rope_theta=ROPE_THETA,
                  shared_expert_intermediate_size=16, use_sliding_window=False, **DELTA, **MOE, **heads(6, 2, 16))
    shapes = decoder("model.", text, qk_norm=True, gated=True, fused_delta=True) | multi_token_head(48)
    return Model("qwen2", text, shapes, zero_centred_norms=True)


def qwen3_5_text_config(ids, hidden, model_type, head, **more):
    """Returns the text part of a Qwen 3.5 / 3.6 config; its own eos is not the chat's `<|im_end|>`."""
    end = ids[fixture_tokenizer.END_OF_TEXT]
    rotary = head[2] // 8
    sections = [rotary - 2 * (rotary // 3), rotary // 3, rotary // 3]
    text = common(ids, hidden, attention_bias=False, attn_output_gate=True, dtype="bfloat16", mamba_ssm_dtype="float32",
                  model_type=model_type, mtp_num_hidden_layers=1, mtp_use_dedicated_embeddings=False,
                  output_gate_type="swish", pad_token_id=None, partial_rotary_factor=0.25, **DELTA, **heads(*head))
    text |= {"bos_token_id": end, "eos_token_id": end, **more}
    text["layer_types"] = ["full_attention" if n % 4 == 3 else "linear_attention" for n in range(LAYERS)]
    text["rope_parameters"] = {"mrope_interleaved": True, "mrope_section": sections, "partial_rotary_factor": 0.25,
                               "rope_theta": ROPE_THETA, "rope_type": "default"}
    return text


def qwen3_5_text(ids):
    """The bare text model, tied."""
    text = qwen3_5_text_config(ids, 48, "qwen3_5_text", (6, 2, 32), intermediate_size=32, tie_word_embeddings=True)
    text["architectures"] = ["Qwen3_5ForCausalLM"]
    return Model("qwen3_5", text, decoder("model.", text, qk_norm=True, gated=True), zero_centred_norms=True)


def qwen3_5(ids, moe, fp8):
    """The vision-language wrapper of Qwen 3.5 / 3.6 with a vision tower and a multi-token head to skip."""
    hidden = 64 if fp8 else 48
    name = "qwen3_5_moe" if moe else "qwen3_5"
    more = ({k: v for k, v in MOE.items() if k != "norm_topk_prob"} | {"shared_expert_intermediate_size": 16} if moe else
            {"intermediate_size": 136 if fp8 else 32})
    text = qwen3_5_text_config(ids, hidden, f"{name}_text", (6, 2, 16) if moe and not fp8 else (6, 2, 32), **more)
    tower = {"deepstack_visual_indexes": [], "depth": 1, "dtype": "bfloat16", "hidden_act": "gelu_pytorch_tanh", "hidden_size": 8,
             "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 12, "model_type": "qwen3_5_moe_vision" if moe else "qwen3_5",
             "num_heads": 1, "num_position_embeddings": 16, "out_hidden_size": hidden, "patch_size": VISION_PATCH,
             "spatial_merge_size": 2, "temporal_patch_size": 2}
    config = {"architectures": ["Qwen3_5MoeForConditionalGeneration" if moe else "Qwen3_5ForConditionalGeneration"],
              "dtype": "bfloat16", "image_token_id": ids["<|image_pad|>"], "language_model_only": False, "model_type": name,
              "text_config": text, "tie_word_embeddings": False, "video_token_id": ids["<|video_pad|>"], "vision_config": tower,
              "vision_end_token_id": ids["<|vision_end|>"], "vision_start_token_id": ids["<|vision_start|>"]}
    shapes = decoder("model.language_model.", text, qk_norm=True, gated=True, fused_experts=not fp8)
    shapes |= vision("model.visual", 8, 12, hidden) | multi_token_head(hidden)
    return Model("qwen3_5", config, shapes, zero_centred_norms=True, fp8=fp8, file_per_layer=fp8 and not moe)


MODELS = {
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": lambda ids: qwen3(ids, fp8=False),
    "qwen3-yarn": qwen3_yarn,
    "qwen3-fp8": lambda ids: qwen3(ids, fp8=True),
    "qwen3_moe": lambda ids: qwen3_moe(ids, fp8=False),
    "qwen3_moe-fp8": lambda ids: qwen3_moe(ids, fp8=True),
    "qwen3_next": qwen3_next,
    "qwen3_5": lambda ids: qwen3_5(ids, moe=False, fp8=False),
    "qwen3_5-fp8": lambda ids: qwen3_5(ids, moe=False, fp8=True),
    "qwen3_5_text": qwen3_5_text,
    "qwen3_5_moe": lambda ids: qwen3_5(ids, moe=True, fp8=False),
    "qwen3_5_moe-fp8": lambda ids: qwen3_5(ids, moe=True, fp8=True),
}


def family_of(name):
    """Returns which tokenizer family a fixture uses."""
    return "llama" if name == "llama" else "qwen3_5" if name.startswith("qwen3_5") else "qwen2"
