"""tbshard beside llama.cpp, mlx-lm and transformers; started by scripts/bench-peers.sh.

    models.py       the checkpoints: one set of weights in every format
    worker.py       what the three peers' processes have in common
    *_peer.py       a peer: loads a model, computes logits or times prompts and answers
    contestants.py  who runs what, as which command
    check.py        do the conversions compute the same function?
    memory.py       the bandwidth of this machine
    first_token.py  from the start of a process to its first token
    run.py          the rounds; writes the result file
    table.py        prints the result file
"""
