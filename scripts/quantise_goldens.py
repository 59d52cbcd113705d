#!/usr/bin/env python3
"""Write what MLX makes of rows of ordinary and adversarial values, and digests of what mlx_lm.convert makes of the tiny
checkpoints, on a CPU.

    quantise_goldens.py [--out tests/fixtures]

quantise.safetensors  `<dtype>`: values; `<dtype>.<mode>.<bits>.<group>.{codes,scales,biases}`: what mx.quantize returns
quantise.json         a list of conversions of tiny/*: settings, what was edited in config.json, the `quantization`
                      table of the result, SHA-256 over name, type, shape and bytes of its tensors by name, and over
                      their names in the order of the model, and how many parameters mlx_lm counts

mlx_lm does not read Qwen's block-FP8, nor the bare text model of Qwen3.5: it is given the same weights in bf16, and wrapped.
It knows no DeepSeek whose head is the embedding: it is given one with a head of its own. Everything else it reads itself.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import struct
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import mlx.core as mx
import mlx_lm.utils
import numpy as np
from mlx_lm.convert import convert

COLUMNS = 256
DTYPES = {"bf16": mx.bfloat16, "f16": mx.float16, "f32": mx.float32}
# the largest magnitude and the smallest that E8M0 scales can reach, which differ from MLX below it
LARGEST = {"bf16": 1e38, "f16": 65504.0, "f32": 1e38}
SMALLEST = {"bf16": 448 * 2.0**-125, "f16": 2.0**-14, "f32": 448 * 2.0**-125}

TINY = Path(__file__).parent.parent / "tests/fixtures/tiny"
BLOCK = 128  # edge of an FP8 scale block
AFFINE4, MXFP8, NVFP4 = ("affine", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)
# checkpoint, edits of config.json (null removes), settings
CONVERSIONS = [
    *[
        (path.name, {}, settings)
        for path in sorted(TINY.iterdir())
        if not path.name.startswith("mlx-")
        for settings in (AFFINE4, NVFP4)
    ],
    *[("qwen3", {}, ("affine", bits, group)) for bits, group in ((2, 64), (3, 32), (5, 64), (6, 32), (8, 64))],
    ("qwen3", {}, ("mxfp4", 4, 32)),
    ("qwen3", {}, MXFP8),
    *[("qwen3", {"torch_dtype": kind}, AFFINE4) for kind in ("float16", "float32", None)],
    *[("qwen3_5", {"torch_dtype": kind}, MXFP8) for kind in ("float16", "float32")],
    *[(name, {}, ("affine", 8, 32)) for name in ("deepseek_v3-fp8", "kimi_k25-int4")],
    *[(name, {"torch_dtype": "float16"}, AFFINE4) for name in ("kimi_k25-int4", "kimi_linear")],
    ("qwen3_next", {"torch_dtype": "float32"}, AFFINE4),
    ("qwen3_5_moe-fp8", {}, MXFP8),
]


def rows(dtype, rng):
    """Values of one dtype, before they are rounded to it."""

    def normal(scale):
        return rng.standard_normal(COLUMNS) * scale

    def groups(*values):
        """Each value for 32 columns, over and over."""
        return np.repeat(np.resize(values, COLUMNS // 32), 32)

    column = np.arange(COLUMNS)
    outlier = normal(0.02)
    outlier[[5, 70, 150, 255]] = [3.0, -7.5, 100.0, -0.9]
    yield normal(0.02)
    yield normal(np.exp(rng.uniform(-9, 5, COLUMNS // 32)).repeat(32))
    yield groups(0.0, 7.3, -0.125, 1.0, -3.7e-3, 0.0, 41.0, -6.0)
    yield np.where(rng.random(COLUMNS) < 0.5, 0.0, -0.0)
    yield outlier
    yield -np.abs(normal(0.5))
    yield 5.0 + normal(0.01)
    # nearly nothing, and a first value that keeps the group's scale in reach
    tiny = rng.uniform(-1, 1, COLUMNS) * 2.0 ** rng.uniform(-149, -126, COLUMNS)
    yield np.where(column % 32 == 0, SMALLEST[dtype] * 2.0 ** (column // 32 % 4), tiny)
    # below MLX's smallest affine scale, but for one value a group
    yield np.where(column % 64 == 9, 2e-7, rng.uniform(-1, 1, COLUMNS) * 1e-8)
    # exactly between the codes of E2M1, with 6 in every 16, then those of E4M3, with 448 in every 32
    yield np.resize([0.25, -0.25, 0.75, -0.75, 1.25, -1.75, 2.5, -3.5, 5, -5, 6, -6, -0.0, 1e-5, 2.51, -2.49], COLUMNS)
    yield np.resize(np.r_[448, 17, 19, -34, 38, 2.125, 4.75, -1 / 1024, 3 / 1024, 1 / 64, -1 / 65, 440, 431], COLUMNS)
    # whole and half steps
    yield np.resize(np.r_[np.arange(-8, 8), np.arange(-8, 8) + 0.5], COLUMNS)
    yield np.resize(np.arange(-120, 136) / 2, COLUMNS)
    # as far apart as values go
    yield rng.choice([-1, -0.5, 0.25, 1, 1e-3], COLUMNS) * LARGEST[dtype]
    yield normal(0.02) * rng.choice([1, 1, 1, 1, 1, 1, 1, 20], COLUMNS)
    yield np.linspace(-1, 3, COLUMNS)


def write_rows(out):
    tensors = {}
    for name, dtype in DTYPES.items():
        values = mx.array(np.stack(list(rows(name, np.random.default_rng(7)))).astype(np.float32)).astype(dtype)
        tensors[name] = values
        schemes = [("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
        for mode, bits, group in [*schemes, ("mxfp4", 4, 32), MXFP8, NVFP4]:
            packed = mx.quantize(values, group_size=group, bits=bits, mode=mode)
            for part, tensor in zip(("codes", "scales", "biases"), packed):
                tensors[f"{name}.{mode}.{bits}.{group}.{part}"] = tensor
    mx.save_safetensors(str(out), tensors, metadata={"mlx": mx.__version__})


def dequantised(weights):
    """Block-FP8 tensors in bf16, and experts that are modules of their own fused as mlx_lm expects them."""
    out = {}
    for name, tensor in weights.items():
        if name.endswith("_scale_inv"):
            continue
        if (scales := weights.get(f"{name}_scale_inv")) is not None:
            scales = mx.repeat(mx.repeat(scales.astype(mx.float32), BLOCK, axis=0), BLOCK, axis=1)
            values = mx.from_fp8(tensor, dtype=mx.float32)
            tensor = (values * scales[: values.shape[0], : values.shape[1]]).astype(mx.bfloat16)
        out[name] = tensor
    return out


def fused(weights):
    """Qwen3.5's experts as the bf16 checkpoints have them."""
    pattern = re.compile(r"(.*\.experts)\.0\.gate_proj\.weight")
    for prefix in [match[1] for name in weights if (match := pattern.fullmatch(name))]:
        count = sum(name.startswith(f"{prefix}.") and name.endswith("gate_proj.weight") for name in weights)
        take = lambda kind: mx.stack([weights.pop(f"{prefix}.{e}.{kind}.weight") for e in range(count)])  # noqa: E731
        weights[f"{prefix}.gate_up_proj"] = mx.concatenate([take("gate_proj"), take("up_proj")], axis=1)
        weights[f"{prefix}.down_proj"] = take("down_proj")
    return weights


def for_mlx(source, edits, out):
    """A copy of a checkpoint that mlx_lm can convert."""
    shutil.copytree(source, out)
    config = json.loads((source / "config.json").read_text())
    config = {key: value for key, value in (config | edits).items() if value is not None or key not in edits}
    weights = {}
    for path in sorted(out.glob("*.safetensors")):
        if path.name != "fixture.safetensors":
            weights |= mx.load(str(path))
        path.unlink()
    kind = config["model_type"]
    if kind == "deepseek_v3":
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    elif "kimi" not in kind:
        weights = dequantised(weights)
        config.pop("quantization_config", None)
    if kind == "qwen3_5_moe":
        weights = fused(weights)
    if kind == "qwen3_5_text":
        config = {"model_type": "qwen3_5", "text_config": config}
    mx.save_safetensors(str(out / "model.safetensors"), weights)
    (out / "model.safetensors.index.json").unlink(missing_ok=True)
    (out / "config.json").write_text(json.dumps(config))


def digest(directory):
    """SHA-256 over name, type, shape and bytes of all tensors, by name."""
    tensors = {}
    for path in directory.glob("model*.safetensors"):
        data = path.read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        for name, entry in json.loads(data[8:start]).items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                tensors[name] = (entry["dtype"], entry["shape"], data[start + first : start + last])
    sha = hashlib.sha256()
    for name, (dtype, shape, data) in sorted(tensors.items()):
        sha.update(f"{name} {dtype} {','.join(map(str, shape))}\n".encode() + data)
    return len(tensors), sha.hexdigest()


@contextlib.contextmanager
def noted_order():
    """A list that is filled with the names of all tensors in the order in which mlx_lm parts them into files."""
    names, part = [], mlx_lm.utils.make_shards
    def noting(weights, *more):
        names.extend(weights)
        return part(weights, *more)
    mlx_lm.utils.make_shards = noting
    yield names
    mlx_lm.utils.make_shards = part


def predicate(path, module):
    """mlx_lm's for these architectures, but for routers whose 64-column groups do not fit, where it fails."""
    if path.endswith(("mlp.gate", "shared_expert_gate")):
        return {"group_size": 64, "bits": 8} if module.weight.shape[-1] % 64 == 0 else False
    return True


def write_conversions(out):
    made = []
    for name, edits, (mode, bits, group) in CONVERSIONS:
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
            source, result = Path(scratch, "source"), Path(scratch, "result")
            for_mlx(TINY / name, edits, source)
            moe = "_moe" in name or "_next" in name
            with noted_order() as names:
                convert(str(source), str(result), quantize=True, q_bits=bits, q_group_size=group, q_mode=mode,
                        quant_predicate=predicate if moe else None)
            count, sha = digest(result)
            table = json.loads((result / "config.json").read_text())["quantization"]
            index = json.loads((result / "model.safetensors.index.json").read_text())
        made.append({"checkpoint": name, "edits": edits, "mode": mode, "bits": bits, "group": group, "tensors": count, "sha256": sha,
                     "order": hashlib.sha256("\n".join(names).encode()).hexdigest(),
                     "parameters": index["metadata"]["total_parameters"], "quantization": table})
        print(name, edits, mode, bits, group, count, "tensors")
    lines = ",\n".join(json.dumps(one) for one in made)
    out.write_text(f'{{"mlx": "{mx.__version__}", "mlx_lm": "{mlx_lm.__version__}", "conversions": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=TINY.parent)
    out = parser.parse_args().out
    write_rows(out / "quantise.safetensors")
    write_conversions(out / "quantise.json")
