"""Rows of ordinary and adversarial values and what MLX makes of them, as tests/fixtures/quantise.safetensors.

    python quantise_goldens.py OUT

Tensors: `<dtype>` are the values, `<dtype>.<mode>.<bits>.<group>.{codes,scales,biases}` what mx.quantize returns on a CPU.
"""

import sys

import mlx.core as mx
import numpy as np

COLUMNS = 256
DTYPES = {"bf16": mx.bfloat16, "f16": mx.float16, "f32": mx.float32}
# the largest magnitude and the smallest that E8M0 scales can reach, which differ from MLX below it
LARGEST = {"bf16": 1e38, "f16": 65504.0, "f32": 1e38}
SMALLEST = {"bf16": 448 * 2.0**-125, "f16": 2.0**-14, "f32": 448 * 2.0**-125}


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


def main(out):
    tensors = {}
    for name, dtype in DTYPES.items():
        values = mx.array(np.stack(list(rows(name, np.random.default_rng(7)))).astype(np.float32)).astype(dtype)
        tensors[name] = values
        schemes = [("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
        for mode, bits, group in [*schemes, ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]:
            packed = mx.quantize(values, group_size=group, bits=bits, mode=mode)
            for part, tensor in zip(("codes", "scales", "biases"), packed):
                tensors[f"{name}.{mode}.{bits}.{group}.{part}"] = tensor
    mx.save_safetensors(out, tensors, metadata={"mlx": mx.__version__})


if __name__ == "__main__":
    main(sys.argv[1])
