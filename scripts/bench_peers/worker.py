"""What the peers' processes share: their arguments, the prompts, the timing, the JSON on stdout."""

import argparse
import json
import re
import sys
import time

import numpy as np


def parse():
    """Returns the arguments of a peer: either --tests (time them) or --check (write logits and greedy tokens)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=1)
    parser.add_argument("--vocab", type=int, required=True)
    parser.add_argument("--tests", help="pp512,tg128,tg128@4: a prompt, an answer, answers of 4 sequences at once")
    parser.add_argument("--check", metavar="OUT.npz", help="write the logits of a fixed prompt, and what follows it greedily")
    return parser.parse_args()


def prompt(vocab, n):
    """Returns `n` token ids, the same for everyone."""
    return np.random.default_rng(1).integers(10, vocab, n).tolist()


# "What is the capital of France, and which river flows through it?" in SmolLM2's template and tokens, which all models here have.
CHECK_PROMPT = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 30, 2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 28, 284, 527,
                4626, 8634, 738, 357, 47, 2, 198, 1, 520, 9531, 198]
CHECK_TOKENS = 16


def tests(spec):
    """Yields (name, kind, tokens, sequences) of a comma list of tests."""
    for name in spec.split(","):
        match = re.fullmatch(r"(pp|tg)(\d+)(?:@(\d+))?", name)
        yield name, match[1], int(match[2]), int(match[3] or 1)


def serve(args, peer):
    """Does what the arguments ask of `peer`.

    A peer has prompt(ids) and answer(ids, sequences), which start from an empty context and return seconds (of the
    whole prompt; of all tokens of the answer), logits(ids) -> [n, vocab], greedy(ids, n) -> ids, and a dict `info`.
    """
    if args.check:
        logits = np.asarray(peer.logits(CHECK_PROMPT), np.float32)
        np.savez(args.check, logits=logits, greedy=peer.greedy(CHECK_PROMPT, CHECK_TOKENS))
        return
    out = {}
    for name, kind, n, sequences in tests(args.tests):
        ids = prompt(args.vocab, n)
        once = (lambda ids: peer.prompt(ids)) if kind == "pp" else (lambda ids: peer.answer(ids, sequences))
        once(ids if kind == "pp" else ids[:8])  # warms up, not counted
        out[name] = [n * sequences / once(ids) for _ in range(args.reps)]
    json.dump({"tests": out, "info": peer.info}, sys.stdout)


def clock(work):
    """Returns the seconds that work() takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
