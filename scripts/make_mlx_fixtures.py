#!/usr/bin/env python3
"""Convert two of the tiny checkpoints with mlx_lm, each module in a format of its own, and write what mlx
computes from the result on the CPU in fp32.

    make_mlx_fixtures.py [NAME...] [--out tests/fixtures/tiny]

Needs an environment of python-env.sh, which has mlx and mlx-lm. The same versions give the same bytes.
"""

import argparse
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten
from mlx_lm.convert import convert
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from tokenizers import Tokenizer

PROMPTS = ("The lamp turns.", "Ships ask for lamps.", "At dusk: 3 lamps.", "Is the lamp on?", "Be brief, ships.")
NEW = 8  # greedy tokens
MIN_MARGIN = 0.01  # between the best and the second-best logit, at every position
MIN_EFFECT = 0.02  # on some logit, when a tensor is zeroed
BLOCK = 128  # edge of an FP8 scale block

# what is not named below
DEFAULT = {"group_size": 64, "bits": 4, "mode": "affine"}
MODES = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}


def coding(text):
    """Returns the entry of config.json's table for `4/64` or the name of a mode; of `-` False."""
    if match := re.fullmatch(r"(\d)/(\d+)", text):
        return {"group_size": int(match[2]), "bits": int(match[1]), "mode": "affine"}
    return dict(zip(("group_size", "bits", "mode"), (*MODES[text], text))) if text in MODES else False


# a row a layer; the rows of down_proj have 48 columns, which are whole groups of 16 only
QWEN3 = """
q      k      v      o      gate   up     down
4/64   2/32   3/32   6/32   5/64   8/32   nvfp4
mxfp4  mxfp8  nvfp4  5/32   2/64   3/64   -
8/64   4/32   6/64   mxfp8  mxfp4  mxfp8  nvfp4
3/32   5/32   2/64   nvfp4  6/32   4/64   nvfp4
"""


def qwen3_table():
    """Returns {module: coding} of the dense model."""
    kinds, *rows = (line.split() for line in QWEN3.strip().splitlines())
    part = lambda kind: "self_attn" if kind in "qkvo" else "mlp"
    layers = {f"layers.{n}.{part(kind)}.{kind}_proj": entry for n, row in enumerate(rows) for kind, entry in zip(kinds, row)}
    return {"embed_tokens": "6/32", "lm_head": "8/64"} | layers


# rows of down_proj have 16 columns, those of out_proj 96
MOE_TABLE = {
    "embed_tokens": "4/32", "in_proj_a": "8/32", "in_proj_b": "3/64", "in_proj_z": "mxfp8", "out_proj": "5/32",
    "k_proj": "6/64", "switch_mlp.up_proj": "mxfp4", "switch_mlp.down_proj": "nvfp4", "shared_expert.up_proj": "2/32",
    "shared_expert.down_proj": "nvfp4", "mlp.gate": "8/64", "shared_expert_gate": "8/64",
}


def coding_of(table, path):
    """Returns the entry for a module, named by the end of its path."""
    return next((coding(text) for end, text in table.items() if path.endswith("." + end) or path == end), DEFAULT)


def copied(source, out):
    """Returns the checkpoint as it is."""
    return source


def cut_and_fused(source, out):
    """Writes the FP8 mixture's last two layers in bf16, experts fused, as the hub has them; returns where."""
    weights = {}
    for file in sorted(source.glob("model*.safetensors")):
        weights |= mx.load(str(file))
    plain = {}
    for name, value in weights.items():
        if name.endswith("_scale_inv"):
            continue
        if (scales := weights.get(name + "_scale_inv")) is not None:
            rows, columns = value.shape
            spread = mx.repeat(mx.repeat(scales.astype(mx.float32), BLOCK, 0)[:rows], BLOCK, 1)[:, :columns]
            value = (mx.from_fp8(value, mx.float32) * spread).astype(mx.bfloat16)
        if (layer := re.search(r"layers\.(\d+)", name)) and name.startswith("model.language_model."):
            if int(layer[1]) < 2:
                continue
            name = name.replace(layer[0], f"layers.{int(layer[1]) - 2}")
        plain[name] = value
    for prefix in {name.split(".experts.")[0] for name in plain if ".experts." in name}:
        experts = 1 + max(int(name.split(".")[-3]) for name in plain if name.startswith(prefix + ".experts."))
        stack = lambda kind: mx.stack([plain.pop(f"{prefix}.experts.{e}.{kind}_proj.weight") for e in range(experts)])
        plain[f"{prefix}.experts.gate_up_proj"] = mx.concatenate([stack("gate"), stack("up")], 1)
        plain[f"{prefix}.experts.down_proj"] = stack("down")
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    mx.save_safetensors(str(out / "model.safetensors"), plain, {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config.pop("quantization_config")
    text = config["text_config"]
    text |= {"num_hidden_layers": 2, "full_attention_interval": 2, "layer_types": text["layer_types"][2:]}
    (out / "config.json").write_text(json.dumps(config))
    return out


FIXTURES = {
    "mlx-qwen3-mixed": ("qwen3", copied, qwen3_table(), coding("nvfp4")),
    "mlx-qwen3_5_moe-mixed": ("qwen3_5_moe-fp8", cut_and_fused, MOE_TABLE, DEFAULT),
}


def run(net, prompt):
    """Returns the logits of the prompt, the greedy tokens, and the logits that they are the best of."""
    ids = mx.array([prompt])
    logits, cache, tokens, rows = net(ids)[0], make_prompt_cache(net), [], []
    for _ in range(NEW):
        rows.append(net(ids, cache=cache)[0, -1])
        tokens.append(int(rows[-1].argmax().item()))
        ids = mx.array([tokens[-1:]])
    return logits.astype(mx.float32), tokens, mx.stack(rows).astype(mx.float32)


def weakest_tensor(net, prompt):
    """Returns (effect, name) of the tensor, or expert, whose loss changes the logits least."""
    ids, effects = mx.array([prompt]), []
    before = net(ids)
    for name, value in tree_flatten(net.parameters()):
        parts = range(value.shape[0]) if ".switch_mlp." in name else [None]
        for part in parts:
            lost = mx.zeros_like(value)
            if part is not None:
                lost = mx.where((mx.arange(value.shape[0]) == part).reshape(-1, 1, 1), lost, value)
            net.load_weights([(name, lost)], strict=False)
            effects.append((float(mx.abs(net(ids) - before).max()), f"{name}[{part}]"))
        net.load_weights([(name, value)], strict=False)
    return min(effects)


def write_table(out, default):
    """Writes config.json's table with another default, and `false` for modules that are not quantised."""
    path = out / "config.json"
    config = json.loads(path.read_text())
    table, stored = config["quantization"], mx.load(str(out / "model.safetensors"))
    own = {key: table.pop(key) for key in ("group_size", "bits", "mode")}
    for module in sorted(name[:-7] for name in stored if name.endswith("_proj.weight")):
        table.setdefault(module, own if module + ".scales" in stored else False)
    # the copy is for transformers
    config["quantization"] = config["quantization_config"] = default | {k: v for k, v in table.items() if v != default}
    path.write_text(json.dumps(config) + "\n")


def make(name, out, tiny):
    """Makes one fixture directory; returns its size in bytes."""
    source, prepare, table, default = FIXTURES[name]
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(tiny / source, Path(scratch) / "plain")
        # mlx_lm leaves modules alone that the groups of its default do not divide: the smallest are nvfp4's
        choose = lambda path, module: hasattr(module, "to_quantized") and coding_of(table, path)
        convert(str(prepared), str(out), quantize=True, q_mode="nvfp4", quant_predicate=choose)
    write_table(out, default)
    net, _ = load_model(out)
    net.set_dtype(mx.float32)
    about = json.loads((tiny / source / "fixture.json").read_text())
    tokenizer = Tokenizer.from_file(str(tiny / source / "tokenizer.json"))
    for text in PROMPTS:
        ids = tokenizer.encode(text).ids
        logits, tokens, decoded = run(net, ids)
        best = mx.sort(mx.concatenate([logits, decoded]), -1)
        margin = float((best[:, -1] - best[:, -2]).min())
        if margin >= MIN_MARGIN and len(set(tokens)) >= 4:
            break
    else:
        raise SystemExit(f"error: no prompt makes a good {name}")
    effect, weakest = weakest_tensor(net, ids)
    if effect < MIN_EFFECT:
        raise SystemExit(f"error: {name} is a poor test: without {weakest} logits change by {effect:.4f}")
    mx.save_safetensors(str(out / "fixture.safetensors"), {"p0.logits": logits, "p0.decode_logits": decoded})
    about |= {"quant": "mlx", "mlx": mx.__version__, "mlx_lm": mlx_lm.__version__}
    about["prompts"] = [{"text": text, "input_ids": ids, "greedy": tokens, "min_margin": margin,
                         "logits_abs_max": float(mx.abs(logits).max())}]
    for key in ("transformers", "torch", "seed"):
        about.pop(key, None)
    (out / "fixture.json").write_text(json.dumps(about, ensure_ascii=False) + "\n")
    (out / "README.md").unlink(missing_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(tiny / source / file, out / file)
    for file in out.iterdir():
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{name}: {size / 1000:.0f} kB, weakest tensor {weakest} {effect:.3f}, margin {margin:.3f}, greedy {tokens}")
    return size


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIXTURES)}; default all")
    tiny = Path(__file__).parent.parent / "tests/fixtures/tiny"
    parser.add_argument("--out", type=Path, default=tiny)
    args = parser.parse_args()
    if unknown := set(args.names) - set(FIXTURES):
        parser.error(f"no fixture is called {', '.join(sorted(unknown))}")
    mx.set_default_device(mx.cpu)
    total = sum(make(name, args.out / name, tiny) for name in args.names or FIXTURES)
    print(f"total: {total / 1000:.0f} kB")


if __name__ == "__main__":
    main()
