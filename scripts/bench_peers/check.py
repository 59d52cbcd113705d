"""Do the formats compute the same function? Logits and greedy tokens of everyone beside those of transformers."""

import json
import sys

import numpy as np

from . import models, turn, worker

BF16_COSINE = 0.999  # bf16 arithmetic in another order; a wrong rotation or permutation gives less than 0.9


def outcome(command, out, settings):
    turn.run([*command, "--check", out], settings)
    with np.load(out) as file:
        return file["logits"].astype(np.float64), file["greedy"].tolist()


def tbshard_outcome(path, arithmetic, out, settings):
    """Returns tbshard's logits and greedy tokens of the same prompt."""
    ids = ",".join(map(str, worker.CHECK_PROMPT))
    common = ["--model", path, "--prompt-tokens", ids, "--json", "-q"] + (["--arithmetic", arithmetic] if arithmetic else [])
    file = out.with_suffix(".safetensors")
    turn.run([settings.tbshard, "score", *common, "--logits", file], settings)
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    spec = json.loads(data[8:8 + size])["logits"]
    start, end = spec["data_offsets"]
    logits = np.frombuffer(data[8 + size + start:8 + size + end], np.float32).reshape(spec["shape"])
    answer, _ = turn.run([settings.tbshard, "generate", *common, "-n", worker.CHECK_TOKENS, "--temp", "0", "--ignore-eos"], settings)
    return logits.astype(np.float64), json.loads(answer)["tokens"]


def compared(reference, other):
    """Returns how alike two outcomes are; logits are centred, because a constant does not matter to softmax."""
    a, b = (x[0] - x[0].mean(1, keepdims=True) for x in (reference, other))
    rows = min(len(a), len(b))
    a, b = a[:rows], b[:rows]
    cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    same = next((i for i, (x, y) in enumerate(zip(reference[1], other[1])) if x != y), len(reference[1]))
    return {"cosine_mean": round(float(cosine.mean()), 6), "cosine_min": round(float(cosine.min()), 6),
            "same_top_token": round(float((a.argmax(1) == b.argmax(1)).mean()), 3), "greedy_tokens_alike": same}


def check(model, everyone, settings):
    """Returns {who: how alike}; ends the program if a bf16 conversion is wrong."""
    out = settings.work / f"check-{model.name}.npz"
    args = ["--vocab", model.vocab, "--threads", settings.threads]
    reference = outcome([settings.torch_python, "-m", "bench_peers.transformers_peer", model.hub, *args], out, settings)
    result = {}
    for c in everyone:
        if c.engine == "transformers" or (c.engine == "mlx-lm" and c.bits < 16):  # mlx-lm's would take minutes
            continue
        module = {"llama.cpp": "llama_cpp_peer", "mlx-lm": "mlx_peer"}.get(c.engine)
        try:
            if module:
                other = outcome([sys.executable, "-m", f"bench_peers.{module}", c.path, *args], out, settings)
            else:
                flag = c.arithmetic if "--arithmetic" in map(str, c.commands[0]) else ""
                other = tbshard_outcome(c.path, flag, out, settings)
        except RuntimeError as error:
            result[c.title] = {"error": str(error)}
            continue
        result[c.title] = compared(reference, other)
        models.say(f"{c.title}: {result[c.title]}")
        wrong = result[c.title]["cosine_mean"] < BF16_COSINE or (model.name == "smollm2" and c.format == "BF16"
                                                                 and result[c.title]["greedy_tokens_alike"] < worker.CHECK_TOKENS)
        if c.bits == 16 and c.engine == "llama.cpp" and wrong:
            sys.exit(f"error: {c.path} does not compute what {model.hub} does: {result[c.title]}")
    for file in (out, out.with_suffix(".safetensors")):
        file.unlink(missing_ok=True)
    return result
