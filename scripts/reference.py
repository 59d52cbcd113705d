#!/usr/bin/env python3
"""What transformers makes of a checkpoint on the CPU in fp32, as one JSON object on stdout.

    reference.py MODEL_DIR --prompt-tokens 1,2,3 --new 32     greedy continuation, not stopped by EOS
    reference.py MODEL_DIR --perplexity-tokens FILE           mean NLL of the ids in FILE (a JSON list)
    reference.py MODEL_DIR --prompt-tokens 1,2,3 --logits OUT.safetensors
                                                              logits [T,V] of the prompt, f32

Several may be asked for at once. Attention is the eager implementation. Block-FP8 and INT4 weights
are multiplied out to fp32 first (transformers itself would round them to bf16).
"""

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from safetensors.torch import load_file, save_file

THREADS = 2
transformers.utils.logging.disable_progress_bar()


# What transformers calls the classes that the hub's configs name otherwise.
CLASSES = {"KimiK25ForConditionalGeneration": "Kimi_K25ForConditionalGeneration"}


def unpack(words, scale):
    """Returns an INT4 matrix of compressed-tensors: w = (code - 8) * scale, eight codes a word, 32 columns a scale."""
    codes = (words.to(torch.int64)[..., None] >> (4 * torch.arange(8))) & 15
    return (codes.flatten(1) - 8).float() * scale.float().repeat_interleave(32, 1)


def read_tensors(directory):
    """Returns every tensor of a checkpoint, FP8 blocks (w = fp8 * weight_scale_inv) and INT4 groups multiplied out."""
    raw = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        if path.name != "fixture.safetensors":
            raw |= load_file(path)
    out = {}
    for name, tensor in raw.items():
        if name.endswith(("_scale_inv", ".weight_scale", ".weight_shape")):
            continue
        if name.endswith(".weight_packed"):
            name = name.removesuffix("_packed")
            out[name] = unpack(tensor, raw[name + "_scale"])
            continue
        scale = raw.get(name + "_scale_inv")
        if scale is not None:
            rows, cols = tensor.shape
            blocks = scale.float().repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols]
            tensor = tensor.float() * blocks
        out[name] = tensor.float()
    return out


def load(directory):
    """Returns the model of a checkpoint directory, fp32, eager; fails if a tensor is missing or left over."""
    config = json.loads(Path(directory, "config.json").read_text())
    quantised = config.pop("quantization_config", None) or config.get("text_config", {}).pop("quantization_config", None)
    name = config["architectures"][0]
    model_class = getattr(transformers, CLASSES.get(name, name))
    with tempfile.TemporaryDirectory() as tmp:
        source = directory
        if quantised:
            is_fp8 = quantised.get("quant_method") == "fp8" and quantised.get("weight_block_size") == [128, 128]
            if not is_fp8 and quantised.get("format") != "pack-quantized":
                sys.exit(f"error: quantisation {quantised} is neither the 128 x 128 block FP8 nor the INT4 known here")
            Path(tmp, "config.json").write_text(json.dumps(config))
            save_file(read_tensors(directory), Path(tmp, "model.safetensors"), metadata={"format": "pt"})
            source = tmp
        model, info = model_class.from_pretrained(source, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        sys.exit(f"error: {directory} does not load cleanly: {wrong}")
    return model.eval()


@torch.no_grad()
def greedy(model, ids, new):
    """Returns (tokens, logits [new, vocab]) of a cached greedy decode."""
    cache, step, tokens, logits = None, torch.tensor([ids]), [], []
    for _ in range(new):
        out = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits[0, -1].float())
        step = logits[-1].argmax().view(1, 1)
        tokens.append(int(step))
    return tokens, torch.stack(logits)


@torch.no_grad()
def prefill(model, ids, hidden=False):
    """Returns (logits [T, vocab], hidden states [layers + 1, T, hidden] or None) without a cache."""
    out = model(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=hidden)
    return out.logits[0].float(), torch.stack([h[0].float() for h in out.hidden_states]) if hidden else None


def mean_nll(model, ids):
    """Returns the mean of -ln p(id[t] | id[..t]) over t >= 1, in nats, summed in f64."""
    logits, _ = prefill(model, ids)
    chosen = torch.log_softmax(logits[:-1].double(), -1).gather(1, torch.tensor(ids[1:]).view(-1, 1))
    return float(-chosen.mean())


def id_list(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir")
    parser.add_argument("--prompt-tokens", type=id_list, metavar="1,2,3")
    parser.add_argument("--new", type=int, default=0, help="tokens to generate")
    parser.add_argument("--perplexity-tokens", metavar="FILE")
    parser.add_argument("--logits", metavar="OUT.safetensors")
    args = parser.parse_args()
    if not args.prompt_tokens and (args.new or args.logits or not args.perplexity_tokens):
        parser.error("--prompt-tokens or --perplexity-tokens is needed (--new and --logits go with the former)")
    if not Path(args.model_dir, "config.json").is_file():
        parser.error(f"{args.model_dir} has no config.json")
    torch.set_num_threads(THREADS)
    model = load(args.model_dir)
    answer = {"transformers": transformers.__version__, "torch": torch.__version__}
    if args.new:
        answer["greedy"], logits = greedy(model, args.prompt_tokens, args.new)
        best = logits.topk(2).values
        answer["margins"] = [round(float(m), 6) for m in best[:, 0] - best[:, 1]]
    if args.logits:
        save_file({"logits": prefill(model, args.prompt_tokens)[0].contiguous()}, args.logits)
        answer["logits"] = args.logits
    if args.perplexity_tokens:
        ids = json.loads(Path(args.perplexity_tokens).read_text())
        nll = mean_nll(model, ids)
        answer |= {"tokens": len(ids), "mean_nll": nll, "perplexity": math.exp(nll)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
