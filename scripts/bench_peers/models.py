"""The models that everyone runs: one set of weights, as hub checkpoint, GGUF and MLX, made where they are missing."""

import ctypes
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHARD_BYTES = 1 << 30
SEED = 20


@dataclass
class Format:
    """One file or directory of weights. `bits` is the class in which it is compared: 16, 8 or 4."""

    name: str
    bits: int
    path: Path


@dataclass
class Model:
    """A model in all its formats; `tests` are what is timed on it."""

    name: str
    title: str
    hub: Path
    gguf: list
    mlx: list
    tests: list
    short_tests: list

    @property
    def vocab(self):
        config = json.loads((self.hub / "config.json").read_text())
        return config.get("text_config", config)["vocab_size"]


# Qwen3's proportions at about 1.1 billion parameters.
QWEN3_1B = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
    "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 20, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "initializer_range": 0.02, "max_position_embeddings": 32768, "max_window_layers": 20,
    "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "use_sliding_window": False,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 49152}

# 8 of the 64 layers of Qwen3.6-27B, with a vocabulary small enough that the head has about its true share of the work.
QWEN36_TEXT = {
    "attention_bias": False, "attention_dropout": 0.0, "attn_output_gate": True, "bos_token_id": 1, "dtype": "bfloat16", "eos_token_id": 2,
    "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
    "intermediate_size": 17408, "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 48, "linear_value_head_dim": 128,
    "mamba_ssm_dtype": "float32", "max_position_embeddings": 32768, "model_type": "qwen3_5_text", "num_attention_heads": 24,
    "num_hidden_layers": 8, "num_key_value_heads": 4, "output_gate_type": "swish", "pad_token_id": None, "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "use_cache": True, "vocab_size": 49152,
    "rope_parameters": {"mrope_interleaved": True, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25, "rope_theta": 10000000,
                        "rope_type": "default"}}
QWEN36_8L = {"architectures": ["Qwen3_5ForConditionalGeneration"], "dtype": "bfloat16", "language_model_only": False,
             "model_type": "qwen3_5", "text_config": QWEN36_TEXT, "tie_word_embeddings": False}

# Qwen3-MoE's proportions at 1.2 billion parameters, 0.2 billion of which a token uses.
QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False, "attention_dropout": 0.0,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "decoder_sparse_step": 1, "hidden_size": 1024, "intermediate_size": 3072,
    "moe_intermediate_size": 512, "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": True, "mlp_only_layers": [],
    "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "initializer_range": 0.02,
    "max_position_embeddings": 32768, "max_window_layers": 12, "output_router_logits": False, "router_aux_loss_coef": 0.001,
    "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "use_sliding_window": False,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 49152}

MODELS = {
    "smollm2": ("SmolLM2-135M-Instruct", None),
    "qwen3-1b": ("Qwen3 of 1.1B parameters, random weights", QWEN3_1B),
    "qwen3-moe": ("Qwen3-MoE of 1.2B parameters, 64 experts of which 8 work, random weights", QWEN3_MOE),
    "qwen3.6-8l": ("Qwen3.6-27B, 8 of 64 layers, random weights", QWEN36_8L),
}


def say(text):
    print(f"bench-peers: {text}", file=sys.stderr, flush=True)


def values(rng, name, shape):
    """Returns random f32 values such that a deep model's activations stay finite and its logits tell tokens apart."""
    if name.endswith("norm.weight"):
        zero_centred = ".linear_attn." not in name and "language_model" in name
        return rng.normal(0.0 if zero_centred else 1.0, 0.05, shape)
    if name.endswith("A_log"):
        return np.log(rng.uniform(1.0, 16.0, shape))
    if name.endswith("dt_bias"):
        return rng.uniform(-4.0, 1.0, shape)
    if name.endswith("conv1d.weight"):
        return rng.normal(0.0, 0.5, shape)
    return rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5 if "embed_tokens" not in name else 0.5)


def make_random(config, tokenizer_from, out):
    """Writes a hub checkpoint of `config` with random bf16 weights and the tokenizer of another one."""
    import fixture_models
    from smollm2_convert import to_bf16, write_json, write_safetensors

    hybrid = config["model_type"] == "qwen3_5"
    text, prefix = (config["text_config"], "model.language_model.") if hybrid else (config, "model.")
    shapes = fixture_models.decoder(prefix, text, qk_norm=True, gated=hybrid)
    out.mkdir(parents=True)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", {"bos_token_id": text["bos_token_id"], "eos_token_id": [text["eos_token_id"]]})
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / file, out / file)
    rng, shards, size = np.random.default_rng(SEED), [[]], 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        if shards[-1] and size + nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    weight_map = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(out / file, {name: to_bf16(values(rng, name, shapes[name])) for name in names})
        weight_map |= dict.fromkeys(names, file)
    total = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def made(path, make):
    """Calls make(temporary path) unless `path` is there; a broken attempt leaves nothing behind."""
    if path.exists():
        return path
    say(f"making {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part-{path.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.unlink(missing_ok=True)
    make(part)
    part.rename(path)
    return path


def run_quietly(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"error: {command[0]} … {command[-1]} failed:\n{done.stdout[-2000:]}")


CONVERT = """
import runpy, sys
site, script = sys.argv[1:3]
sys.path.append(site)
sys.path.insert(0, script.rpartition("/")[0])
from conversion.base import TextModel
# The name of the split is looked up by a digest of what AutoTokenizer makes of it, which depends on the model's type.
TextModel.get_vocab_base_pre = lambda *_: "smollm"
sys.argv = sys.argv[2:]
runpy.run_path(script, run_name="__main__")
"""


def gguf_from_hub(settings, hub, out):
    """Runs llama.cpp's own converter; it needs torch, and packages of both environments."""
    script = settings.llama_cpp / "convert_hf_to_gguf.py"
    site = next(p for p in sys.path if p.endswith("site-packages"))
    more = ["--no-mtp"] if "qwen3_5" in (hub / "config.json").read_text() else []
    run_quietly([settings.torch_python, "-c", CONVERT, site, script, hub, "--outtype", "bf16", "--outfile", out, *more])


def gguf_quantized(source, kind, pure, out):
    """Runs llama.cpp's quantiser on a bf16 GGUF; `pure` gives every matrix the same type."""
    import llama_cpp

    from . import llama_cpp_peer

    llama_cpp_peer.listen()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), pure, 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)):
        sys.exit(f"error: llama.cpp did not quantise {source} to {kind}\n" + "".join(llama_cpp_peer.LOG[-5:]))


def mlx_quantized(hub, bits, group, out):
    """Runs mlx_lm.convert."""
    run_quietly([sys.executable, "-m", "mlx_lm", "convert", "--hf-path", hub, "--mlx-path", out, "-q",
                 "--q-bits", str(bits), "--q-group-size", str(group)])


def prepare(name, settings):
    """Returns the model of that name, after making what is not there yet."""
    title, config = MODELS[name]
    smollm2 = Path(subprocess.run([settings.scripts / "get-smollm2.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.split("\n")[-2])
    home = settings.work / "models" / name
    hub = smollm2 if config is None else made(home / "hub", lambda out: make_random(config, smollm2, out))
    bf16 = made(home / "bf16.gguf", lambda out: gguf_from_hub(settings, hub, out))
    # SmolLM2's rows are no multiple of 256, so K-quants do not fit it. Q4_0 is the type llama.cpp repacks for AVX-512.
    kinds = [("Q8_0", 8, False), ("Q4_0", 4, False)]
    kinds += [("Q4_0", 4, True), ("Q4_1", 4, False)] if config is None else [("Q4_K_M", 4, False)]
    if name == "smollm2":
        kinds.insert(0, ("F16", 16, False))
    gguf = [Format("BF16", 16, bf16)]
    for kind, bits, pure in kinds:
        label = kind + (" pure" if pure else "")
        path = made(home / f"{label.replace(' ', '-').lower()}.gguf", lambda out: gguf_quantized(bf16, kind, pure, out))
        gguf.append(Format(label, bits, path))
    mlx = [Format("bf16", 16, hub)]
    for bits, group in [(8, 64), (4, 64)] + ([(4, 32)] if config is None else []):
        path = made(home / f"mlx-{bits}bit-g{group}", lambda out: mlx_quantized(hub, bits, group, out))
        mlx.append(Format(f"{bits}-bit g{group}", bits, path))
    if name == "qwen3.6-8l":
        tests, short = ["pp512", "tg32"], ["pp128", "tg8"]
    else:
        tests, short = ["pp512", "tg128"], ["pp512", "tg128"] if name == "smollm2" else ["pp256", "tg32"]
    return Model(name, title, hub, gguf, mlx, tests, short)


def bytes_per_token(path):
    """Returns how many bytes of weights one token of an answer reads: all but an embedding that is not the head too, and of
    experts those that are chosen."""
    path = Path(path)
    if path.suffix == ".gguf":
        from gguf import GGUFReader

        sizes = {t.name: int(t.n_bytes) for t in GGUFReader(path).tensors}
        embedding, head = "token_embd.", "output."
    else:
        sizes = {}
        for file in path.glob("*.safetensors"):
            with open(file, "rb") as f:
                header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
            sizes |= {k: v["data_offsets"][1] - v["data_offsets"][0] for k, v in header.items() if k != "__metadata__"}
        embedding, head = "embed_tokens.", "lm_head."
    config = path / "config.json"
    if config.exists():
        text = json.loads(config.read_text())
        part = text.get("num_experts_per_tok", 1) / text.get("num_experts", 1)
    else:
        fields = GGUFReader(path).fields
        number = lambda end: next((f.contents() for key, f in fields.items() if key.endswith(end)), 1)
        part = number(".expert_used_count") / number(".expert_count")
    experts = (".experts.", ".switch_mlp.", "_exps.")
    sizes = {name: size * (part if any(module in name for module in experts) else 1) for name, size in sizes.items()}
    untied = any(name.startswith(head) or f".{head}" in name for name in sizes)
    return round(sum(size for name, size in sizes.items() if not (untied and embedding in name)))
