"""One turn of a contestant: waits for a quiet machine, runs the command, and tells how much others took meanwhile."""

import os
import resource
import subprocess
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def busy():
    """Returns the seconds that all processors were busy, or taken by the host, since the machine started."""
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + soft + steal) / TICKS


def own():
    """Returns the processor seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def wait_for_quiet(limit, share=0.15):
    """Waits, `limit` seconds at most, until others use less than `share` of one processor."""
    end = time.monotonic() + limit
    while limit > 0:
        before, start = busy() - own(), time.monotonic()
        time.sleep(0.5)
        if busy() - own() - before < share * (time.monotonic() - start) or time.monotonic() > end:
            return


def environment():
    """Returns the environment of the peers: two threads, and no pinned choice of BLAS kernels, which would slow them."""
    env = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    return env | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(command, settings, **more):
    """Returns (stdout, share of the machine that others used). Raises RuntimeError with the last line of stderr."""
    wait_for_quiet(settings.wait)
    before, used, start = busy(), own(), time.monotonic()
    command = [str(part) for part in command]
    env = environment() | {"OMP_NUM_THREADS": str(settings.threads)} | more.pop("env", {})
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=settings.timeout, env=env, **more)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took longer than {settings.timeout} s") from None
    foreign = (busy() - before - (own() - used)) / max(time.monotonic() - start, 1e-9) / settings.cpus
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        lines = [line for line in lines if line.startswith("error")] or lines[-1:]
        raise RuntimeError(lines[0] if lines else f"ended with {done.returncode}")
    return done.stdout.decode(), round(max(foreign, 0.0), 3)
