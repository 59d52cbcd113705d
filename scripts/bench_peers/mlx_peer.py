"""mlx-lm: its own generate_step, as its benchmark command uses it."""

import time
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from . import worker


class Peer:
    def __init__(self, args):
        self.model, _ = load_model(Path(args.model))
        self.info = {"device": str(mx.default_device())}

    def step(self, ids, n):
        """Yields the time after each of `n` tokens that follow `ids`."""
        for _ in generate_step(mx.array(ids), self.model, max_tokens=n):
            yield time.perf_counter()

    def prompt(self, ids):
        start = time.perf_counter()
        return next(self.step(ids, 1)) - start

    def answer(self, ids, sequences):
        if sequences != 1:
            raise SystemExit("error: only one sequence at a time is timed here")
        times = list(self.step(ids[:1], len(ids) + 1))
        return times[-1] - times[0]

    def logits(self, ids):
        return np.array(self.model(mx.array([ids]))[0].astype(mx.float32))

    def greedy(self, ids, n):
        cache, out = make_prompt_cache(self.model), []
        while len(out) < n:
            logits = self.model(mx.array([[out[-1]] if out else ids]), cache=cache)[0, -1]
            out.append(int(mx.argmax(logits.astype(mx.float32))))
        return out


if __name__ == "__main__":
    arguments = worker.parse()
    worker.serve(arguments, Peer(arguments))
