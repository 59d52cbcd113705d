#!/usr/bin/env python3
"""Train the embedded demo model: a qwen3_5_text of about 3.6 million parameters that tells little stories.

    train_demo.py [--out models/demo] [--steps N] [--threads 2]     about an hour on two CPU cores
    train_demo.py --from DIR --steps 500                            go on from DIR, at a third of the rate, on documents not seen
    train_demo.py --evaluate [--out models/demo]                    grade what is there; writes nothing
    train_demo.py --fixture tests/fixtures/demo [--out models/demo] what tests compare with: logits, held-out stories

The committed weights are one run of the defaults (perplexity 1.4332 on 200 held-out stories, the grammar's own 1.4302).

The text is made by demo_text.py while training goes on, a document per number of a seeded sequence; nothing is
repeated. The same versions, threads and instruction set give the same weights. Needs the environment of python-env.sh.
The multi-token-prediction head (hub names `mtp.*`, DeepSeek-V3 §2.2, arXiv 2412.19437) is trained along: from the
normed last hidden state of position t and the embedding of token t+1 it predicts token t+2 through the same lm_head.
"""

import argparse
import functools
import json
import math
import os
import random
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional as F
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm

import demo_text
import fixture_tokenizer
from fixture_tokenizer import END_OF_TEXT, IM_END, IM_START

VOCAB, ROW, ROWS = 1024, 320, 16  # tokens known, tokens of a training row, rows of a step
STEPS, WARMUP, PEAK, PEAK_MUON = 3300, 100, 4e-3, 1e-2
MTP_WEIGHT = 0.15
CONTINUED = 10**8  # the first document of training that goes on
HELD_OUT = 10**9  # documents from this number on are never trained on
TEMPLATE = ("{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}"
            "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}")

CONFIG = {
    "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "attention_bias": False, "attention_dropout": 0.0,
    "attn_output_gate": True, "dtype": "bfloat16", "full_attention_interval": 4, "head_dim": 32, "hidden_act": "silu", "hidden_size": 160,
    "initializer_range": 0.04, "intermediate_size": 512, "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_value_head_dim": 32,
    "mamba_ssm_dtype": "float32", "max_position_embeddings": 2048, "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False,
    "num_attention_heads": 6, "num_hidden_layers": 8, "num_key_value_heads": 2, "output_gate_type": "swish", "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-6, "rope_parameters": {"mrope_interleaved": True, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25, "rope_theta": 10000, "rope_type": "default"},
    "tie_word_embeddings": False, "use_cache": True, "vocab_size": VOCAB,
}


def document(number):
    return demo_text.document(random.Random(f"demo {number}"))


def make_tokenizer():
    """Returns a byte-level BPE of VOCAB tokens with Qwen3.5's splitting rule."""
    special = [END_OF_TEXT, IM_START, IM_END]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(fixture_tokenizer.PATTERNS["qwen3_5"]), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    text = (text for number in range(6000) for _, text in document(HELD_OUT // 2 + number))
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=VOCAB - len(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=2))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    assert tokenizer.get_vocab_size() == VOCAB, tokenizer.get_vocab_size()
    return tokenizer


def encode(tokenizer, turns):
    """Returns (ids, taught) of a document: only answers and raw stories are taught."""
    ids, taught = [], []

    def add(text, teach):
        more = tokenizer.encode(text, add_special_tokens=False).ids
        ids.extend(more)
        taught.extend([teach] * len(more))

    for role, text in turns:
        if role == "raw":
            add(text, True)
        else:
            add(f"{IM_START}{role}\n", False)
            add(text if role == "user" else text + IM_END, role == "assistant")
            add(f"{IM_END}\n" if role == "user" else "\n", False)
    add(END_OF_TEXT, True)
    return ids, taught


def rows(tokenizer, first):
    """Yields (ids, taught) of ROW + 2 tokens: whole documents from number `first` on, the last one cut."""
    number = first
    while True:
        ids, taught = [], []
        while len(ids) < ROW + 2:
            more, teach = encode(tokenizer, document(number))
            ids, taught, number = ids + more, taught + teach, number + 1
        yield ids[:ROW + 2], taught[:ROW + 2]


class Mtp(nn.Module):
    """The multi-token-prediction head, named as on the hub."""

    def __init__(self, config):
        super().__init__()
        layer = transformers.AutoConfig.for_model(**{**config.to_dict(), "num_hidden_layers": 1, "layer_types": ["full_attention"]})
        layer._attn_implementation = "sdpa"
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList([Qwen3_5DecoderLayer(layer, 0)])
        self.norm, self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = (Qwen3_5RMSNorm(config.hidden_size, eps=config.rms_norm_eps) for _ in range(3))

    def forward(self, embedded, hidden, rope):
        x = self.fc(torch.cat([self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(hidden)], -1))
        return self.norm(self.layers[0](x, position_embeddings=rope, attention_mask=None))


def initialise(module, config, layers):
    for name, p in module.named_parameters():
        if p.ndim == 2:
            scale = config.initializer_range / (math.sqrt(2 * layers) if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight")) else 1)
            nn.init.normal_(p, std=scale)


def learn(model, mtp, batch, taught):
    """Returns (loss, loss of the head) on `[rows, ROW + 2]` ids."""
    hidden = model.model(input_ids=batch[:, :ROW], use_cache=False).last_hidden_state
    positions = torch.arange(ROW).view(1, 1, -1).expand(3, 1, -1)
    deeper = mtp(model.model.embed_tokens(batch[:, 1:ROW + 1]), hidden, model.model.rotary_emb(hidden, positions))
    loss = lambda x, ahead: F.cross_entropy(model.lm_head(x[taught[:, ahead:ROW + ahead]]).float(), batch[:, ahead:ROW + ahead][taught[:, ahead:ROW + ahead]])
    return loss(hidden, 1), loss(deeper, 2)


def train(args):
    torch.manual_seed(0)
    scale, first = (0.3, CONTINUED) if args.start else (1.0, 0)
    # the same sums in shorter chunks, which are faster on a CPU
    modeling_qwen3_5.torch_chunk_gated_delta_rule = functools.partial(modeling_qwen3_5.torch_chunk_gated_delta_rule, chunk_size=32)
    tokenizer = Tokenizer.from_file(str(args.start / "tokenizer.json")) if args.start else make_tokenizer()
    config = transformers.AutoConfig.for_model(**CONFIG)
    model = transformers.Qwen3_5ForCausalLM._from_config(config, attn_implementation="sdpa").float()
    mtp = Mtp(config).float()
    for module in (model, mtp):
        initialise(module, config, config.num_hidden_layers)
    named = dict(model.named_parameters()) | {f"mtp.{n}": p for n, p in mtp.named_parameters()}
    if args.start:
        stored = load_file(args.start / "model.safetensors")
        for name, parameter in named.items():
            parameter.data.copy_(stored[name])
    print(f"{sum(p.numel() for p in named.values()):,} parameters, {args.steps} steps of {ROWS * ROW:,} tokens", flush=True)
    matrices = [p for n, p in named.items() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    others = [p for n, p in named.items() if not (p.ndim == 2 and "embed" not in n and "lm_head" not in n)]
    optimisers = [(torch.optim.Muon(matrices, lr=PEAK_MUON, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"), PEAK_MUON),
                  (torch.optim.AdamW(others, lr=PEAK, betas=(0.9, 0.95), weight_decay=0.0), PEAK)]
    source, start = rows(tokenizer, first), time.time()
    for step in range(args.steps):
        batch, taught = (torch.tensor(part) for part in zip(*(next(source) for _ in range(ROWS))))
        rate = min(1.0, (step + 1) / WARMUP) * (1 - step / args.steps)
        for optimiser, peak in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = scale * peak * rate
        with torch.autocast("cpu", dtype=torch.bfloat16):
            main, ahead = learn(model, mtp, batch, taught)
            (main + MTP_WEIGHT * ahead).backward()
        nn.utils.clip_grad_norm_(named.values(), 1.0)
        for optimiser, _ in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if step % 50 == 49 or step < 5:
            print(f"step {step + 1}  loss {main:.4f}  mtp {ahead:.4f}  {time.time() - start:.0f} s", flush=True)
        if step % 500 == 499:
            save(args.out, tokenizer, named)
            print(f"perplexity {grade_perplexity(model.eval(), tokenizer, 50)}", flush=True)
            model.train()
    save(args.out, tokenizer, named)
    evaluate(args)


def save(out, tokenizer, named):
    """Writes the checkpoint as the hub would hold it, in bf16."""
    out.mkdir(parents=True, exist_ok=True)
    ids = {t: tokenizer.token_to_id(t) for t in (END_OF_TEXT, IM_START, IM_END)}
    dump = lambda name, value: (out / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    dump("config.json", CONFIG | {"eos_token_id": ids[IM_END]})
    dump("generation_config.json", {"do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.98, "eos_token_id": [ids[IM_END], ids[END_OF_TEXT]], "pad_token_id": ids[END_OF_TEXT]})
    (out / "chat_template.jinja").write_text(TEMPLATE + "\n")
    dump("tokenizer_config.json", {"bos_token": None, "clean_up_tokenization_spaces": False, "eos_token": IM_END, "model_max_length": 2048,
                                   "pad_token": END_OF_TEXT, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None})
    (out / "tokenizer.json").write_text(fixture_tokenizer.compact(tokenizer) + "\n")
    save_file({n: p.detach().to(torch.bfloat16).contiguous() for n, p in named.items()}, out / "model.safetensors", metadata={"format": "pt"})


def load(out):
    """Returns (model, tokenizer) as transformers reads the directory."""
    model = transformers.Qwen3_5ForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
    return model, Tokenizer.from_file(str(out / "tokenizer.json"))


def held_out(tokenizer, count):
    """Yields (prompt ids, story ids with their end token, nats of the story given the prompt, prompt, story)."""
    for number in range(count):
        ask, text, nats, _ = demo_text.story(random.Random(f"demo {HELD_OUT + number}"))
        prompt = f"{IM_START}user\n{ask}{IM_END}\n{IM_START}assistant\n"
        yield *(tokenizer.encode(part, add_special_tokens=False).ids for part in (prompt, text + IM_END)), nats, ask, text


@torch.no_grad()
def grade_perplexity(model, tokenizer, count):
    """Returns {perplexity, bound, ratio} over held-out stories; the bound is exp of the grammar's own entropy per token."""
    nll = nats = tokens = 0.0
    for prompt, story, cost, _, _ in held_out(tokenizer, count):
        logits = model(input_ids=torch.tensor([prompt + story]), use_cache=False).logits[0, len(prompt) - 1:-1].double()
        nll += float(F.cross_entropy(logits, torch.tensor(story), reduction="sum"))
        nats, tokens = nats + cost, tokens + len(story)
    perplexity, bound = math.exp(nll / tokens), math.exp(nats / tokens)
    return {"stories": count, "tokens": int(tokens), "perplexity": round(perplexity, 4), "bound": round(bound, 4), "ratio": round(perplexity / bound, 4)}


@torch.no_grad()
def grade_mtp(model, out, tokenizer, count):
    """Returns how often the head's best guess of the token after next is the one that came."""
    config = model.config
    mtp = Mtp(config).float().eval()
    mtp.load_state_dict({n.removeprefix("mtp."): t.float() for n, t in load_file(out / "model.safetensors").items() if n.startswith("mtp.")})
    hits = total = 0
    for prompt, story, *_ in held_out(tokenizer, count):
        ids = torch.tensor([prompt + story])
        hidden, n = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-2], ids.shape[1] - 2
        rope = model.model.rotary_emb(hidden, torch.arange(n).view(1, 1, -1).expand(3, 1, -1))
        guess = model.lm_head(mtp(model.model.embed_tokens(ids[:, 1:-1]), hidden, rope)).argmax(-1)[0, len(prompt) - 2:]
        hits, total = hits + int((guess == ids[0, len(prompt):]).sum()), total + len(story)
    return round(hits / total, 4)


def evaluate(args):
    model, tokenizer = load(args.out)
    print(json.dumps(grade_perplexity(model, tokenizer, 200) | {"mtp_accuracy": grade_mtp(model, args.out, tokenizer, 50)}), flush=True)


def fixture(args):
    """Writes held-out stories with their price, and reference logits of transformers in fp32."""
    model, tokenizer = load(args.out)
    args.fixture.mkdir(parents=True, exist_ok=True)
    stories = [{"ask": ask, "prompt": prompt, "story": story, "nats": nats, "text": text} for prompt, story, nats, ask, text in held_out(tokenizer, 50)]
    with torch.no_grad():
        ids = torch.tensor([stories[0]["prompt"] + stories[0]["story"][:40]])
        logits = model(input_ids=ids, use_cache=False).logits[0, :24].contiguous()
    (args.fixture / "stories.json").write_text(json.dumps({"stories": stories}, separators=(",", ":")) + "\n")
    save_file({"s0.logits": logits}, args.fixture / "logits.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "models/demo")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--from", dest="start", type=Path, metavar="DIR")
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--fixture", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    (fixture if args.fixture else evaluate if args.evaluate else train)(args)


if __name__ == "__main__":
    main()
