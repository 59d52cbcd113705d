"""Makes tests/fixtures/tiktoken: a small vocabulary in Kimi's files, and the ids that tiktoken gives for texts.

    .venv/bin/python scripts/tiktoken_fixture.py

The ranks are trained on text made up here; the pattern, the special tokens and the cuts of long texts are Kimi's."""

import base64
import json
import random
from itertools import groupby
from pathlib import Path

import tiktoken
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from fixture_tokenizer import training_text

OUT = Path(__file__).parent.parent / "tests/fixtures/tiktoken"
RANKS, SPECIALS = 420, 256
ENDING = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
PATTERN = "|".join([
    r"[\p{Han}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDING}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDING}",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
])
# offset from the number of ranks, as in Kimi K2
NAMED = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>", 9: "[EOT]", 10: "<|im_system|>",
         11: "<|tool_calls_section_begin|>", 12: "<|tool_calls_section_end|>", 13: "<|tool_call_begin|>",
         14: "<|tool_call_argument_begin|>", 15: "<|tool_call_end|>", 17: "<|im_middle|>", 22: "<think>", 23: "</think>",
         254: "[UNK]", 255: "[PAD]"}
PLAIN = {11, 12, 13, 14, 15, 22, 23}
SLICE, RUN = 400_000, 25_000
EXTRA = "Don't we'll HERSELF'S iPhone LaTeX 1234567 12 漢字の交じり文 漢字漢字 한국어 naïve e\u0301\u0327 ... !!! ((x))\n\n\n    if x:\n\t\treturn\r\n"


def train():
    """Returns the ranks: bytes to rank."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    runs = ["a" * 64, " " * 64 + "x", "7" * 9, "漢" * 16]
    tokenizer.train_from_iterator([*training_text(), *[EXTRA] * 20, *runs * 20], trainers.BpeTrainer(
        vocab_size=RANKS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte = {chr(b): b for b in printable}
    byte |= {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in printable)}
    return {bytes(byte[c] for c in token): rank for token, rank in tokenizer.get_vocab().items()}


def slices(text):
    """Yields what Kimi's tokenizer hands to tiktoken at a time."""
    for start in range(0, len(text), SLICE):
        part = text[start:start + SLICE]
        cut = 0
        for white, run in groupby(range(len(part)), lambda at: part[at].isspace()):
            run = list(run)
            for at in run[RUN::RUN]:
                yield part[cut:at]
                cut = at
        yield part[cut:]


def texts():
    """Yields texts as lists of [piece, count]."""
    rng = random.Random(20)
    sentences = list(training_text())
    pools = ["ab cd\n", "aAbB'sSt ", "   \n\r\t\u00a0\u3000\x1c\x85x", "0123٣४ ", "漢字かな交じ한글 ", "e\u0301\u0327É ", "!?.,-_ \n", "नमस्ते สวัสดี ",
             "👩‍🏃🏽𠮷﷽"]
    yield [[EXTRA, 1]]
    yield [["<|im_user|>user<|im_middle|>the lamp<|im_end|><|im_assistant|>assistant<|im_middle|><think>why</think>so[EOS]", 1]]
    yield [["<|reserved_token_425|>x<|reserved_token_424|><|im_end|", 1]]
    for pool in pools:
        for _ in range(8):
            yield [["".join(rng.choice(pool) for _ in range(rng.randrange(1, 24))), 1]]
    for _ in range(12):
        yield [["".join(rng.sample(sentences, 2)).title() if rng.random() < .5 else rng.choice(sentences), 1]]
    for piece in ["a", "A", " ", "\n", "7", "漢", "\x1c", "a "]:
        for count in (RUN, RUN + 1, 2 * RUN + 1):
            yield [[piece, count], ["x", 1]]
    yield [["a ", SLICE // 2 + 1]]
    yield [["the", 1], [" lamp", SLICE // 5]]
    yield [["a", RUN - 3], ["<|im_end|>", 1], ["a", RUN - 3]]


def main():
    ranks = train()
    count = len(ranks)
    named = {count + at: name for at, name in NAMED.items()}
    special = {named.get(id, f"<|reserved_token_{id}|>"): id for id in range(count, count + SPECIALS)}
    encoding = tiktoken.Encoding("fixture", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
    cases = []
    for pieces in texts():
        text = "".join(piece * times for piece, times in pieces)
        parts, ids = [text], []
        for name in special:  # special tokens come first, then the cuts
            parts = [half for part in parts for half in
                     ([part] if part in special else sum(([p, name] for p in part.split(name)), [])[:-1])]
        for part in filter(None, parts):
            if part in special:
                ids.append(special[part])
            else:
                for piece in slices(part):
                    ids += encoding.encode(piece, disallowed_special=())
        cases.append({"text": pieces, "ids": [[id, len(list(run))] for id, run in groupby(ids)]})
    OUT.mkdir(exist_ok=True)
    with open(OUT / "tiktoken.model", "wb") as file:
        for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
            file.write(base64.b64encode(token) + b" %d\n" % rank)
    decoder = {str(id): {"content": name, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                         "special": id - count not in PLAIN} for id, name in named.items()}
    config = {"added_tokens_decoder": decoder, "bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]", "unk_token": "[UNK]",
              "tokenizer_class": "TikTokenTokenizer"}
    (OUT / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
    (OUT / "ids.json").write_text(f"[\n{lines}\n]\n")


main()
