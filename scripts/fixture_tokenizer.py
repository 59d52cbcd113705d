"""Byte-level BPE tokenizers of about 300 tokens in the layouts of the Llama 3, Qwen 2/3 and Qwen 3.5
families, trained on text made up here. Used by make_fixtures.py."""

import json
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCAB_SIZE = 300  # rows of the embedding
PADDING_ROWS = 3  # of them, rows that no token uses, as in the Qwen checkpoints
LLAMA_BOS = "<|begin_of_text|>"
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
THINK = ("<think>", "</think>")

# The pre-tokenizer patterns of the three families; a fixture must be split exactly as its model's text is.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PATTERNS = {
    "llama": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen3_5": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}

CHAT_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def training_text():
    """Returns sentences put together from a few words of our own, the same on every run."""
    rng = random.Random(20)
    who = ["the keeper", "a user", "the assistant", "her brother", "the ship", "an engineer"]
    does = ["lights", "asks for", "answers", "turns", "mends", "watches", "finishes"]
    what = ["the lamp", "another lens", "the question", "three hours of rain", "the system", "a letter"]
    when = ["at dusk", "in winter", "before morning", "when the fog comes in", "again and again"]
    for _ in range(400):
        yield f"{rng.choice(who)} {rng.choice(does)} {rng.choice(what)} {rng.choice(when)}.\n"


def build(family):
    """Returns (tokenizer, ids of the special tokens) for one of PATTERNS."""
    special = [END_OF_TEXT, IM_START, IM_END, *([LLAMA_BOS] if family == "llama" else VISION)]
    plain = list(THINK)
    tokenizer = Tokenizer(models.BPE(ignore_merges=family == "llama"))
    if family != "llama":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERNS[family]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - PADDING_ROWS - len(special) - len(plain),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
    ids = {t: tokenizer.token_to_id(t) for t in special + plain}
    byte_level = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    if family == "llama":
        bos = processors.TemplateProcessing(single=f"{LLAMA_BOS} $A", pair=f"{LLAMA_BOS} $A {LLAMA_BOS} $B",
                                            special_tokens=[(LLAMA_BOS, ids[LLAMA_BOS])])
        tokenizer.post_processor = processors.Sequence([byte_level, bos])
    else:
        tokenizer.post_processor = byte_level
    return tokenizer, ids


def config(family, ids):
    """Returns tokenizer_config.json."""
    decoder = {str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                        "special": t not in THINK} for t, i in ids.items()}
    return {
        "add_bos_token": family == "llama",
        "added_tokens_decoder": decoder,
        "bos_token": LLAMA_BOS if family == "llama" else None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "model_max_length": 4096,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast" if family == "llama" else "Qwen2Tokenizer",
        "unk_token": None,
    }


def compact(tokenizer):
    """Returns tokenizer.json without indentation."""
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
