#!/usr/bin/env python3
"""What MLX and mlx_lm make of the same input, for tests/slow.

    mlx_reference.py convert SOURCE OUT MODE BITS GROUP    what `mlx_lm.convert -q` writes
    mlx_reference.py logits DIR IDS OUT                    f32 logits of the ids (51,441,…) computed in fp32
    mlx_reference.py rows SEED OUT                         many rows of every type, and what mx.quantize returns
    mlx_reference.py each FILE                             all of a JSON list of the above, as lists of words
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import mlx.core as mx
import numpy as np

DTYPES = {"bf16": mx.bfloat16, "f16": mx.float16, "f32": mx.float32}


def convert(source, out, mode, bits, group):
    from mlx_lm.convert import convert

    convert(source, out, quantize=True, q_bits=int(bits), q_group_size=int(group), q_mode=mode)


def logits(directory, ids, out):
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(directory))
    model.set_dtype(mx.float32)
    ids = [int(token) for token in ids.split(",")]
    mx.save_safetensors(out, {"logits": model(mx.array([ids]))[0].astype(mx.float32)})


def rows(seed, out):
    """Normal rows of many scales, and for the two-byte types a group for every positive magnitude there is."""
    rng = np.random.default_rng(int(seed))
    tensors = {}
    for name, dtype in DTYPES.items():
        scales = np.exp(rng.uniform(-8, 8, (1000, 1)))
        values = rng.standard_normal((1000, 128)) * scales * rng.choice([1, 1, 1, 1e-3, 30], (1000, 128))
        if name == "f16":
            values = np.clip(values, -65504, 65504)
        if name != "f32":
            # E8M0 reaches down to 2^-127, and below an MLX that does not clamp wraps round
            first, last = (0x0600, 0x7E00) if name == "bf16" else (0x0001, 0x7C00)
            bits = np.arange(first, last, 4 if name == "bf16" else 1).astype(np.uint16)
            largest = (bits.astype(np.uint32) << 16).view(np.float32) if name == "bf16" else bits.view(np.float16)
            largest = largest.astype(np.float64)[:, None]
            every = largest * np.where(np.arange(32) == 7, 1, rng.uniform(-1, 1, (len(bits), 32)))
            every = every[: len(every) // 4 * 4].reshape(-1, 128)
            values = np.concatenate([values, every])
        values = mx.array(values.astype(np.float32)).astype(dtype)
        tensors[name] = values
        schemes = [("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
        for mode, bits, group in [*schemes, ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]:
            packed = mx.quantize(values, group_size=group, bits=bits, mode=mode)
            for part, tensor in zip(("codes", "scales", "biases"), packed):
                tensors[f"{name}.{mode}.{bits}.{group}.{part}"] = tensor
    mx.save_safetensors(out, tensors)


def each(file):
    for words in json.loads(Path(file).read_text()):
        run(*words)


def run(command, *args):
    {"convert": convert, "logits": logits, "rows": rows, "each": each}[command](*args)


if __name__ == "__main__":
    run(*sys.argv[1:])
