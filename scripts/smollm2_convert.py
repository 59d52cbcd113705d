#!/usr/bin/env python3
"""Turn the SmolLM2-135M-Instruct GGUF into a checkpoint in the layout of the hub.

    smollm2_convert.py MODEL.gguf OUT_DIR

Writes config.json, generation_config.json, tokenizer.json, tokenizer_config.json and bf16 weights in
three safetensors files with an index. The weights are the 4-bit ones of the file, multiplied out and
rounded to bf16. Needs numpy, gguf and tokenizers.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SHARDS = 3
CONTROL = 3  # gguf's token type of special tokens
MODULES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def hub_name(name):
    """Returns the hub's name of a GGUF tensor."""
    if name in ("token_embd.weight", "output_norm.weight"):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
    _, layer, module, _ = name.split(".")
    return f"model.layers.{layer}.{MODULES[module]}.weight"


def to_bf16(x):
    """Returns f32 values rounded to the nearest bf16, ties to even, as u16 bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def weights(reader, field):
    """Returns {hub name: bf16 bits}."""
    out = {}
    heads = {"attn_q": field("llama.attention.head_count"), "attn_k": field("llama.attention.head_count_kv")}
    for tensor in reader.tensors:
        w = dequantize(tensor.data, tensor.tensor_type).reshape([int(n) for n in tensor.shape[::-1]])
        module = tensor.name.split(".")[-2]
        if module in heads:
            # GGUF interleaves the two rotary halves of each head; the hub keeps them apart.
            n, rows = heads[module], w.shape[0]
            w = w.reshape(n, rows // n // 2, 2, -1).swapaxes(1, 2).reshape(rows, -1)
        out[hub_name(tensor.name)] = to_bf16(w)
    return out


def write_safetensors(path, tensors):
    """Writes bf16 bits; by hand, because numpy has no bf16 for the safetensors package to take."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [offset, offset + t.nbytes]}
        offset += t.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for t in tensors.values():
            file.write(t.tobytes())


def write_weights(out, tensors):
    """Splits the tensors over SHARDS files of about equal size and writes the index."""
    total, seen, shards, weight_map = sum(t.nbytes for t in tensors.values()), 0, [{} for _ in range(SHARDS)], {}
    for name in sorted(tensors):
        shards[min(seen * SHARDS // total, SHARDS - 1)][name] = tensors[name]
        seen += tensors[name].nbytes
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{SHARDS:05d}.safetensors"
        write_safetensors(out / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_tokenizer(out, field):
    """Writes tokenizer.json from the vocabulary and merges of the GGUF, whose pre-tokenizer `smollm`
    is single digits, then GPT-2's split."""
    if (field("tokenizer.ggml.model"), field("tokenizer.ggml.pre")) != ("gpt2", "smollm"):
        sys.exit("error: the tokenizer of this file is not SmolLM's")
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(pair.split(" ")) for pair in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(out / "tokenizer.json"))
    name = lambda key: tokens[field(f"tokenizer.ggml.{key}_token_id")]
    write_json(out / "tokenizer_config.json", {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(tokenizer.token_to_id(t)): {"content": t, "lstrip": False, "normalized": False, "rstrip": False,
                                                                 "single_word": False, "special": True} for t in special},
        "bos_token": name("bos"), "chat_template": field("tokenizer.chat_template"), "clean_up_tokenization_spaces": False,
        "eos_token": name("eos"), "model_max_length": field("llama.context_length"), "pad_token": name("padding"),
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": name("unknown")})


def write_configs(out, field):
    """Writes config.json and generation_config.json."""
    hidden, heads = field("llama.embedding_length"), field("llama.attention.head_count")
    if field("llama.rope.dimension_count") * heads != hidden:
        sys.exit("error: the head size of this file is not hidden / heads")
    bos, eos, pad = (field(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "padding"))
    write_json(out / "config.json", {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": bos,
        "eos_token_id": eos, "hidden_act": "silu", "hidden_size": hidden, "intermediate_size": field("llama.feed_forward_length"),
        "max_position_embeddings": field("llama.context_length"), "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": heads, "num_hidden_layers": field("llama.block_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"), "pad_token_id": pad, "pretraining_tp": 1,
        "rms_norm_eps": float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"), "rope_scaling": None,
        "rope_theta": field("llama.rope.freq_base"), "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "use_cache": True, "vocab_size": field("llama.vocab_size")})
    write_json(out / "generation_config.json", {"bos_token_id": bos, "eos_token_id": [eos], "pad_token_id": pad})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: smollm2_convert.py MODEL.gguf OUT_DIR")
    reader, out = GGUFReader(sys.argv[1]), Path(sys.argv[2])
    field = lambda key: reader.fields[key].contents()
    if field("general.architecture") != "llama":
        sys.exit("error: this file is not of the llama architecture")
    out.mkdir(parents=True, exist_ok=True)
    write_configs(out, field)
    write_tokenizer(out, field)
    write_weights(out, weights(reader, field))


if __name__ == "__main__":
    main()
