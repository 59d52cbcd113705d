"""llama.cpp through its C API, timed as llama-bench times it: its defaults for flash attention, batch and KV type."""

import ctypes
import sys

import llama_cpp as llama
import numpy as np

from . import worker

LOG = []


@llama.llama_log_callback
def _log(level, text, user_data):
    LOG.append(text.decode(errors="replace"))


def listen():
    """Sends llama.cpp's messages to LOG instead of stderr."""
    llama.llama_log_set(_log, None)


class Peer:
    def __init__(self, args):
        listen()
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama.llama_model_load_from_file(args.model.encode(), params)
        if not self.model:
            sys.exit(f"error: llama.cpp does not load {args.model}\n" + "".join(LOG[-5:]))
        self.vocab, self.threads, self.ctx, self.size = args.vocab, args.threads, None, None
        self.context(512, 1)
        self.info = {
            "system_info": llama.llama_print_system_info().decode().strip(),
            "log": [line.strip() for line in LOG if "buffer size" in line or "lash" in line or "ftype" in line]}

    def context(self, tokens, sequences):
        """Returns the context, made anew if its size differs, with nothing in it."""
        if self.size != (tokens, sequences):
            if self.ctx:
                llama.llama_free(self.ctx)
            params = llama.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = tokens * sequences, 2048, 512, sequences
            params.n_threads = params.n_threads_batch = self.threads
            params.kv_unified = False
            self.ctx = llama.llama_init_from_model(self.model, params)
            if not self.ctx:
                sys.exit("error: llama.cpp makes no context\n" + "".join(LOG[-5:]))
            self.size = (tokens, sequences)
        llama.llama_memory_clear(llama.llama_get_memory(self.ctx), True)
        return self.ctx

    def decode(self, ctx, batch):
        code = llama.llama_decode(ctx, batch)
        if code:
            sys.exit(f"error: llama_decode returned {code}\n" + "".join(LOG[-5:]))

    def batch(self, rows):
        """Returns a batch of (token, position, sequence, wants logits)."""
        batch = llama.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, pos, seq, logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, pos, logits
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, seq
        return batch

    def prompt(self, ids):
        ctx = self.context(max(len(ids), 512), 1)
        tokens = (llama.llama_token * len(ids))(*ids)

        def work():
            self.decode(ctx, llama.llama_batch_get_one(tokens, len(ids)))
            llama.llama_synchronize(ctx)

        return worker.clock(work)

    def answer(self, ids, sequences):
        ctx = self.context(256 if sequences > 1 else 512, sequences)
        batch = self.batch([(0, 0, seq, True) for seq in range(sequences)])

        def work():
            for pos, token in enumerate(ids):
                for seq in range(sequences):
                    batch.token[seq], batch.pos[seq] = token, pos
                self.decode(ctx, batch)
                llama.llama_synchronize(ctx)

        seconds = worker.clock(work)
        llama.llama_batch_free(batch)
        return seconds

    def row(self, i):
        return np.ctypeslib.as_array(ctypes.cast(llama.llama_get_logits_ith(self.ctx, i), ctypes.POINTER(ctypes.c_float)), (self.vocab,)).copy()

    def logits(self, ids):
        self.decode(self.context(512, 1), self.batch([(token, pos, 0, True) for pos, token in enumerate(ids)]))
        return np.stack([self.row(i) for i in range(len(ids))])

    def greedy(self, ids, n):
        out = [int(self.logits(ids)[-1].argmax())]
        while len(out) < n:
            self.decode(self.ctx, self.batch([(out[-1], len(ids) + len(out) - 1, 0, True)]))
            out.append(int(self.row(0).argmax()))
        return out


if __name__ == "__main__":
    arguments = worker.parse()
    worker.serve(arguments, Peer(arguments))
