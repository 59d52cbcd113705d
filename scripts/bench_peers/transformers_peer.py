"""transformers on torch's CPU kernels, in the checkpoint's bf16."""

import logging
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

from . import worker

F32_UP_TO = 4 << 30  # bytes of bf16 weights


class Peer:
    def __init__(self, args):
        logging.disable(logging.WARNING)
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(args.threads)
        # As a reference it computes in f32, where that fits.
        size = sum(file.stat().st_size for file in Path(args.model).glob("*.safetensors"))
        dtype = torch.float32 if args.check and size < F32_UP_TO else torch.bfloat16
        self.model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
        self.info = {"torch": torch.__version__, "mkldnn_bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported()}

    @torch.inference_mode()
    def forward(self, ids, cache=None, keep=1):
        """Returns (logits [rows, vocab], cache)."""
        out = self.model(input_ids=torch.tensor(ids), past_key_values=cache, use_cache=True, logits_to_keep=keep)
        return out.logits, out.past_key_values

    def prompt(self, ids):
        return worker.clock(lambda: self.forward([ids]))

    def answer(self, ids, sequences):
        def work():
            cache = None
            for token in ids:
                _, cache = self.forward([[token]] * sequences, cache)

        return worker.clock(work)

    def logits(self, ids):
        return self.forward([ids], keep=0)[0][0].float().numpy()

    def greedy(self, ids, n):
        out, cache = [], None
        while len(out) < n:
            logits, cache = self.forward([[out[-1]] if out else ids], cache)
            out.append(int(logits[0, -1].float().argmax()))
        return out


if __name__ == "__main__":
    arguments = worker.parse()
    worker.serve(arguments, Peer(arguments))
