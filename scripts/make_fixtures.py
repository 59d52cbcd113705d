#!/usr/bin/env python3
"""Write tiny random checkpoints in the on-disk layout of the hub, each with reference results that
transformers computed from them on the CPU in fp32.

    make_fixtures.py [NAME...] [--out tests/fixtures/tiny]

Every directory gets config.json, generation_config.json, tokenizer.json, tokenizer_config.json, two
or more safetensors files with an index, and
  fixture.json         prompts, input ids, greedy tokens, margins, a chat rendering
  fixture.safetensors  p0.logits [T,V], p1.logits [LAST,V], p{i}.decode_logits [new,V], p0.hidden [layers+1,LAST,H], f32
The seed is the first for which the reference is unambiguous (see `Fixture.objection`) and every
tensor matters (see `weakest_tensor`). The same versions give the same bytes.
"""

import argparse
import hashlib
import json
import math
import re
import shutil
import time
from pathlib import Path

import numpy as np
import reference
import torch
import transformers
from safetensors.torch import save_file

import fixture_latent
import fixture_models
import fixture_tokenizer
from fixture_models import BLOCK

MODELS = fixture_models.MODELS | fixture_latent.MODELS

PROMPTS = ("The lamp turns.", "At dusk ships ask for\n3 lamps & café: 灯塔.")
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is the lamp on?"}]
NEW = 8  # greedy tokens
LAST = 2  # rows that are kept where all would be many
MIN_MARGIN = 0.01  # between the best and the second-best logit, at every position
MIN_ROUTER_MARGIN = 0.002  # between the last chosen and the first passed-over expert's logit
MAX_DISAGREEMENT = 1e-4  # of a logit between cached decode and a run without a cache
MIN_EFFECT = 0.02  # on some logit, when a tensor is replaced by what a program that ignores it would use


def randn(seed, name, shape):
    """Returns normal numbers that depend on the seed and the tensor's name only."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little"))).standard_normal(shape)


def initial(model, seed, name, shape):
    """Returns a tensor's value (f64): spread enough that leaving the tensor out changes the logits."""
    x = randn(seed, name, shape)
    if name.endswith("A_log"):
        return np.log(np.abs(x) * 4 + 0.5)
    if name.endswith("dt_bias"):
        return x * 0.5 - 1.0
    if name.endswith("e_score_correction_bias"):
        return x * 0.15
    if "visual" in name or name.startswith(("mtp.", "vision_tower.", "mm_projector.")):
        return x * 0.1
    if name.endswith("norm.weight") and "linear_attn" in name:
        return 1 + x * 0.3
    tied = "lm_head.weight" not in model.shapes
    if "norm" in name:
        # Under a tied head small embeddings keep the answer from echoing the prompt; the last norm makes up for them.
        gain = 2.5 if tied and ".layers." not in name else 1.0
        return (1 + x * 0.3) * gain - (1 if model.zero_centred_norms else 0)
    if name.endswith(".bias"):
        return x * 0.5
    if "conv1d" in name:
        return x * 0.8
    if "embed_tokens" in name:
        return x * (0.15 if tied else 1.0)
    gain = 3.0 if name.startswith("lm_head") else 1.5 if name.endswith(("mlp.gate.weight", "moe.gate.weight", "in_proj_qkv.weight", "in_proj_qkvz.weight")) else 1.0
    return x * gain / math.sqrt(shape[-1])


def is_quantised(name, shape):
    """Returns whether the FP8 checkpoints hold this tensor in FP8."""
    return len(shape) == 2 and re.search(r"\.(mlp|self_attn|linear_attn)\.", name) and not re.search(
        r"visual|norm|mlp\.gate\.|shared_expert_gate|in_proj_(a|b)\.", name)


def quantise(name, weight, seed, dtype):
    """Returns {name: e4m3, name_scale_inv: dtype} with one scale a block; the blocks get unlike
    magnitudes first, so that a wrong scale is a wrong result."""
    rows, cols = weight.shape
    grid = (-(-rows // BLOCK), -(-cols // BLOCK))
    spread = np.exp2(np.clip(randn(seed, name + ":spread", grid), -1.5, 1.5))
    expand = lambda blocks: blocks.repeat(BLOCK, 0)[:rows].repeat(BLOCK, 1)[:, :cols]
    weight = weight * expand(spread)
    peak = np.array([[np.abs(weight[r * BLOCK:(r + 1) * BLOCK, c * BLOCK:(c + 1) * BLOCK]).max() for c in range(grid[1])] for r in range(grid[0])])
    scale = torch.from_numpy(peak / 448).to(dtype)
    scaled = np.clip(weight / expand(scale.double().numpy()), -448, 448)
    return {name: torch.from_numpy(scaled).float().to(torch.float8_e4m3fn), name + "_scale_inv": scale}


def pack(name, weight):
    """Returns compressed-tensors' {packed, scale, shape} of a matrix: eight codes q + 8 a word, a bf16 scale for 32 columns."""
    rows, cols = weight.shape
    groups = torch.from_numpy(weight).float().view(rows, cols // 32, 32)
    scale = (groups.abs().amax(-1) / 7.5).to(torch.bfloat16)
    codes = (torch.round(groups / scale.float()[..., None]).clamp(-8, 7).to(torch.int64) + 8).view(rows, cols // 8, 8)
    words = (codes << (4 * torch.arange(8))).sum(-1)
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    return {name + "_packed": words, name + "_scale": scale, name + "_shape": torch.tensor([rows, cols], dtype=torch.int32)}


def is_f32(model, name):
    """Returns whether the checkpoints hold this tensor in f32."""
    return name.endswith("e_score_correction_bias") or model.config["model_type"] == "kimi_linear" and name.endswith(("A_log", "dt_bias"))


def checkpoint(model, seed):
    """Returns every tensor as stored."""
    out = {}
    for name, shape in model.shapes.items():
        value = initial(model, seed, name, shape)
        if model.fp8 and is_quantised(name, shape):
            # DeepSeek's scales are f32
            out |= quantise(name, value, seed, torch.float32 if model.config["model_type"] == "deepseek_v3" else torch.bfloat16)
        elif model.int4 and ".experts." in name:
            out |= pack(name, value)
        elif is_f32(model, name):
            out[name] = torch.from_numpy(value).float()
        else:
            out[name] = torch.from_numpy(value).to(torch.bfloat16)
    return out


def files(model, tensors):
    """Returns {file name: tensor names}. Like the real shards, the two do not follow the layers."""
    if model.file_per_layer:
        place = lambda n: (re.search(r"language_model\.(layers)\.(\d+)", n) or re.match(r"(mtp)\.()", n))
        key = lambda n: "-".join(filter(None, place(n).groups())) if place(n) else "outside"
    else:
        key = lambda n: f"model-0000{1 + hashlib.sha256(n.removesuffix('_scale_inv').encode()).digest()[0] % 2}-of-00002"
    out = {}
    for name in sorted(tensors):
        out.setdefault(key(name) + ".safetensors", []).append(name)
    return dict(sorted(out.items()))


def dump(path, value, indent=None):
    separators = None if indent else (",", ":")
    path.write_text(json.dumps(value, indent=indent, separators=separators, ensure_ascii=False) + "\n")


def write_checkpoint(out, name, model, tokenizer, ids, seed):
    """Writes everything but the reference."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tensors, config = checkpoint(model, seed), dict(model.config)
    if model.fp8:
        config["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
        if name != "qwen3-fp8":
            kept = [n for n, t in tensors.items() if t.dtype == torch.bfloat16 and t.ndim > 1 and not n.endswith("_scale_inv")]
            config["quantization_config"]["modules_to_not_convert"] = sorted(n.removesuffix(".weight") for n in kept)
    if model.int4:
        config["text_config"] = config["text_config"] | {"quantization_config": fixture_latent.INT4}
    dump(out / "config.json", dict(sorted(config.items())), indent=2)
    eos, end = ids[fixture_tokenizer.IM_END], ids[fixture_tokenizer.END_OF_TEXT]
    bos = ids.get(fixture_tokenizer.LLAMA_BOS, end)
    dump(out / "generation_config.json", {"bos_token_id": bos, "do_sample": True, "eos_token_id": [eos, end], "pad_token_id": end,
                                          "temperature": 0.6, "top_k": 20, "top_p": 0.95}, indent=2)
    (out / "tokenizer.json").write_text(fixture_tokenizer.compact(tokenizer) + "\n")
    dump(out / "tokenizer_config.json", fixture_tokenizer.config(model.family, ids))
    weight_map = {}
    for file, names in files(model, tensors).items():
        save_file({n: tensors[n].contiguous() for n in names}, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    dump(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def router_margin(net, ids):
    """Returns the smallest gap between chosen and passed-over experts, or groups of them; inf for a dense model."""
    gaps, text = [math.inf], net.config.get_text_config()
    def gap(values, count):
        best = values.sort(descending=True).values
        return float((best[:, count - 1] - best[:, count]).min()) if count < best.shape[1] else math.inf
    def watch(module, inputs, _):
        logits = torch.nn.functional.linear(inputs[0], module.weight).view(-1, module.weight.shape[0])
        if not hasattr(module, "e_score_correction_bias"):
            return gaps.append(gap(logits, text.num_experts_per_tok))
        wanted = (logits.sigmoid() + module.e_score_correction_bias).view(len(logits), text.n_group, -1)
        sums = wanted.topk(2, -1).values.sum(-1)
        closed = torch.ones_like(sums).scatter(1, sums.topk(text.topk_group).indices, 0).bool()
        open_only = wanted.masked_fill(closed[..., None], -1e3).flatten(1)
        gaps.extend((gap(sums, text.topk_group), gap(open_only, text.num_experts_per_tok)))
    hooks = [m.register_forward_hook(watch) for n, m in net.named_modules() if n.endswith("mlp.gate")]
    reference.prefill(net, ids)
    for hook in hooks:
        hook.remove()
    return min(gaps)


@torch.no_grad()
def weakest_tensor(net, zero_centred, prompts):
    """Returns (effect, name) of the tensor, or single expert, whose loss changes the logits least. A
    norm is replaced by one that does not scale, anything else by zeros."""
    run = lambda: torch.cat([reference.prefill(net, ids)[0] for ids in prompts])
    before, effects = run(), []
    biases = [(n, b) for n, b in net.named_buffers() if n.endswith("e_score_correction_bias")]
    for name, parameter in [*net.named_parameters(), *biases]:
        if any(part in name for part in (".visual.", "vision_tower.", "mm_projector.")):
            continue
        plain_norm = "norm" in name and not (zero_centred and "linear_attn" not in name)
        for part, piece in enumerate(parameter if ".experts." in name and parameter.ndim == 3 else [parameter]):
            saved = piece.clone()
            piece.fill_(1.0 if plain_norm else 0.0)
            effects.append((float((run() - before).abs().max()), f"{name}[{part}]"))
            piece.copy_(saved)
    return min(effects)


class Fixture:
    """The reference results of one checkpoint directory."""

    def __init__(self, out, tokenizer):
        self.out, self.tokenizer = out, tokenizer
        self.net, self.tensors, self.prompts = reference.load(out), {}, []
        for i, text in enumerate(PROMPTS):
            self.run(i, text)

    def run(self, i, text):
        """Runs a prompt; the cached decode must agree with a run without a cache."""
        ids = self.tokenizer.encode(text).ids
        logits, hidden = reference.prefill(self.net, ids, hidden=i == 0)
        tokens, decoded = reference.greedy(self.net, ids, NEW)
        whole = reference.prefill(self.net, ids + tokens)[0]
        best = torch.cat([whole.topk(2).values, decoded.topk(2).values])
        kept = logits if i == 0 else logits[-LAST:]
        self.tensors |= {f"p{i}.logits": kept.contiguous(), f"p{i}.decode_logits": decoded.contiguous()}
        if hidden is not None:
            self.tensors[f"p{i}.hidden"] = hidden[:, -LAST:].contiguous()
        self.prompts.append({
            "text": text, "input_ids": ids, "greedy": tokens, "text_out": self.tokenizer.decode(tokens, skip_special_tokens=False),
            "min_margin": float((best[:, 0] - best[:, 1]).min()), "min_router_margin": router_margin(self.net, ids + tokens),
            "cache_vs_full_max_abs": float((whole[len(ids) - 1:-1] - decoded).abs().max()), "logits_abs_max": float(logits.abs().max())})

    def objection(self):
        """Returns why this seed makes a poor test, or None."""
        last = self.tokenizer.get_vocab_size()
        stops = {self.tokenizer.token_to_id(t) for t in (fixture_tokenizer.END_OF_TEXT, fixture_tokenizer.IM_END)}
        for prompt in self.prompts:
            if prompt["min_margin"] < MIN_MARGIN:
                return "two logits are close"
            if prompt["min_router_margin"] < MIN_ROUTER_MARGIN:
                return "two experts are close"
            if stops & set(prompt["greedy"]) or max(prompt["greedy"]) >= last:
                return "the answer has a stop or padding token"
            if len(set(prompt["greedy"])) < 4:
                return "the answer repeats itself"
            if prompt["cache_vs_full_max_abs"] > MAX_DISAGREEMENT:
                return "decode and prefill disagree"
        return None

    def chat(self):
        """Returns what transformers' own tokenizer makes of CHAT; it must agree on the prompts too."""
        auto = transformers.AutoTokenizer.from_pretrained(self.out)
        for prompt in self.prompts:
            assert auto(prompt["text"])["input_ids"] == prompt["input_ids"], "AutoTokenizer disagrees"
        text = auto.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        return {"messages": CHAT, "text": text, "input_ids": auto(text, add_special_tokens=False)["input_ids"]}

    def save(self, about):
        for prompt in self.prompts:
            if prompt["min_router_margin"] == math.inf:
                del prompt["min_router_margin"]
        save_file(self.tensors, self.out / "fixture.safetensors")
        dump(self.out / "fixture.json", about | {"prompts": self.prompts, "chat": self.chat()})


def make(name, out):
    """Makes one fixture directory; returns its size in bytes."""
    start = time.time()
    family = fixture_models.family_of(name)
    tokenizer, ids = fixture_tokenizer.build(family)
    model = MODELS[name](ids)
    for seed in range(1000):
        write_checkpoint(out, name, model, tokenizer, ids, seed)
        fixture = Fixture(out, tokenizer)
        if fixture.objection():
            continue
        effect, weakest = weakest_tensor(fixture.net, model.zero_centred_norms, [p["input_ids"] for p in fixture.prompts])
        if effect >= MIN_EFFECT:
            break
    else:
        raise SystemExit(f"error: no seed below 1000 makes a good {name}")
    fixture.save({"arch": name.split("-")[0], "seed": seed, "quant": "fp8" if model.fp8 else "int4" if model.int4 else "none",
                  "transformers": transformers.__version__, "torch": torch.__version__})
    for file in out.iterdir():
        file.chmod(0o644)
    size = sum(f.stat().st_size for f in out.iterdir())
    print(f"{name}: {size / 1000:.0f} kB, seed {seed}, weakest tensor {weakest} {effect:.3f}, "
          f"margin {min(p['min_margin'] for p in fixture.prompts):.3f}, decode against prefill "
          f"{max(p['cache_vs_full_max_abs'] for p in fixture.prompts):.0e}, {time.time() - start:.0f} s", flush=True)
    return size


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; default all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests/fixtures/tiny")
    args = parser.parse_args()
    if unknown := set(args.names) - set(MODELS):
        parser.error(f"no fixture is called {', '.join(sorted(unknown))}")
    torch.set_num_threads(reference.THREADS)
    torch.use_deterministic_algorithms(True)
    total = sum(make(name, args.out / name) for name in args.names or MODELS)
    print(f"total: {total / 1000:.0f} kB")


if __name__ == "__main__":
    main()
