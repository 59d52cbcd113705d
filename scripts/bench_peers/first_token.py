"""From the start of a process to the first bytes of its answer, weights in the page cache: tbshard beside llama.cpp's own example."""

import os
import subprocess
import time

from . import turn

PROMPT = "The capital of France is"


def llama_simple(settings):
    """Compiles llama.cpp's examples/simple against the libraries that pip built, and returns its path."""
    out = settings.work / "llama-simple"
    source, lib = settings.llama_cpp, settings.llama_lib
    subprocess.run(["g++", "-O2", "-std=c++17", source / "examples/simple/simple.cpp", "-I", source / "include", "-I", source / "ggml/include",
                    "-L", lib, "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{lib}", f"-Wl,-rpath-link,{lib}", "-o", out], check=True)
    return out


def seconds(command, settings):
    """Returns the seconds until the first bytes on stdout; llama-simple flushes its prompt with the first token only."""
    env = turn.environment() | {"OMP_NUM_THREADS": str(settings.threads), "OMP_THREAD_LIMIT": str(settings.threads)}
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
    first = os.read(process.stdout.fileno(), 1)
    took = time.perf_counter() - start
    process.stdout.read()
    if process.wait() or not first:
        raise RuntimeError(f"ended with {process.returncode}")
    return took


def measure(model, everyone, settings):
    """Returns [{who, seconds}] of alternating starts of everyone whose binary can be started alone."""
    simple, rows = llama_simple(settings), []
    for c in everyone:
        if c.engine == "llama.cpp":
            rows.append((c, [simple, "-m", c.path, "-n", "1", PROMPT]))
        elif c.engine == "tbshard":
            flag = ["--arithmetic", c.arithmetic] if "--arithmetic" in map(str, c.commands[0]) else []
            rows.append((c, [settings.tbshard, "generate", "--model", c.path, "--prompt", PROMPT, "--raw", "-n", "1", "--temp", "0",
                             "-q", "--threads", settings.threads, *flag]))
    out = [{"engine": c.engine, "format": c.format, "bits": c.bits, "arithmetic": c.arithmetic, "seconds": []} for c, _ in rows]
    for _ in range(max(5, settings.rounds)):
        turn.wait_for_quiet(settings.wait)
        for row, (_, command) in zip(out, rows):
            if "error" not in row:
                try:
                    row["seconds"].append(round(seconds(command, settings), 4))
                except RuntimeError as error:
                    row["error"] = str(error)
    return out
