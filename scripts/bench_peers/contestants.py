"""Who runs what: a command for every engine, format and arithmetic, and how its answer is read."""

import json
import subprocess
import sys
from dataclasses import dataclass, field

from . import models

ENGINES = ["tbshard", "llama.cpp", "mlx-lm", "transformers"]
BATCHED = {"BF16", "bf16", "Q8_0", "8-bit g64", "Q4_0", "4-bit g64"}  # formats whose batches of answers are timed too
# mlx-lm's CPU kernels have few vector instructions: 512 tokens would take minutes.
MLX_TESTS = {16: ["pp32", "tg8"], 8: ["pp8", "tg4"], 4: ["pp8", "tg4"]}


@dataclass
class Contestant:
    """One row of the table. `samples` are its turns: {"round", "foreign", "tests": {name: [tokens a second]}}."""

    engine: str
    model: str
    format: str
    bits: int
    path: str
    commands: list
    arithmetic: str = ""
    rounds: int = 1 << 30
    bytes_per_token: int = 0
    samples: list = field(default_factory=list)
    info: dict = field(default_factory=dict)
    error: str = ""

    @property
    def title(self):
        return " ".join(filter(None, [self.engine, self.model, self.format, self.arithmetic]))

    def take(self, stdout):
        """Returns {test: [tokens a second]} of a command's output."""
        if self.engine == "tbshard":
            return self.take_tbshard(stdout)
        answer = json.loads(stdout)
        self.info = answer["info"]
        return answer["tests"]

    def take_tbshard(self, stdout):
        """Reads what `tbshard bench tokens-per-sec -o json` prints: a list with an object a test."""
        out = {}
        for row in json.loads(stdout):
            name = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
            out[name + (f"@{row['batch']}" if row["batch"] != 1 else "")] = row["samples_ts"]
            self.info |= {key: row[key] for key in ("build", "arithmetic", "backend", "model_digest", "memory_bandwidth")}
            self.info.setdefault("checksums", {})[row["test"]] = row["checksum"]
        return out


def peer_command(python, module, path, model, tests, settings):
    return [python, "-m", f"bench_peers.{module}", path, "--vocab", model.vocab, "--threads", settings.threads,
            "--reps", settings.inner, "--tests", ",".join(tests)]


def tbshard_commands(path, tests, batches, arithmetic, settings):
    """Returns the commands of one turn; batches in one of their own, because prompts of a batch would take long."""
    pp, tg = (next(t[2:] for t in tests if t.startswith(kind)) for kind in ("pp", "tg"))
    base = [settings.tbshard, "bench", "tokens-per-sec", "--model", path, "--threads", settings.threads, "-q", "-o", "json",
            "--reps", settings.inner] + (["--arithmetic", arithmetic] if arithmetic else [])
    out = [base + ["--pp", pp, "--tg", tg]]
    if batches:
        out.append(base + ["--pp", 1, "--tg", tg, "--batch", ",".join(map(str, batches))])
    return out


def arithmetics(help_text):
    """Returns which values `--arithmetic` takes, by the help of the binary; [""] if it has no such option."""
    return ["exact", "fast"] if "--arithmetic" in help_text else [""]


def contestants(model, settings):
    """Returns everyone who runs this model, in the order of their turns: those that are compared stand close together."""
    help_text = subprocess.run([settings.tbshard, "bench", "tokens-per-sec", "--help"], stdout=subprocess.PIPE, text=True).stdout
    tests = model.short_tests if settings.quick else model.tests
    slow = max(1, min(2, settings.rounds))
    out = []
    for bits in settings.bits:
        for fmt in model.mlx:
            batches = settings.batches if "--batch" in help_text and fmt.name in BATCHED else []
            for arithmetic in arithmetics(help_text) if fmt.bits == bits else []:
                commands = tbshard_commands(fmt.path, tests, batches, arithmetic, settings)
                out.append(Contestant("tbshard", model.name, fmt.name, bits, str(fmt.path), commands, arithmetic or "exact"))
        for fmt in model.gguf:
            batched = [f"{tests[1]}@{n}" for n in settings.batches] if fmt.name in BATCHED else []
            if fmt.bits == bits and not (settings.quick and fmt.name in ("F16", "Q4_1")):
                command = peer_command(sys.executable, "llama_cpp_peer", fmt.path, model, tests + batched, settings)
                out.append(Contestant("llama.cpp", model.name, fmt.name, bits, str(fmt.path), [command]))
        for fmt in model.mlx:
            if fmt.bits == bits and fmt.name != "4-bit g32" and model.name == "smollm2":
                command = peer_command(sys.executable, "mlx_peer", fmt.path, model, MLX_TESTS[bits], settings)
                out.append(Contestant("mlx-lm", model.name, fmt.name, bits, str(fmt.path), [command], rounds=slow))
        if bits == 16 and model.name != "qwen3.6-8l":
            short = [tests[0], "tg32"]
            command = peer_command(settings.torch_python, "transformers_peer", model.hub, model, short, settings)
            out.append(Contestant("transformers", model.name, "bf16", bits, str(model.hub), [command], rounds=slow))
    out = [c for c in out if c.engine in settings.engines]
    for contestant in out:
        contestant.bytes_per_token = models.bytes_per_token(contestant.path)
    return out
