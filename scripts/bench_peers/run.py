"""The rounds: everyone in turn, again and again, so that the machine's moods hit all alike; writes the result file."""

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from . import check, contestants, first_token, memory, models, table, turn


def parse():
    parser = argparse.ArgumentParser(prog="bench-peers.sh", description="Times tbshard beside llama.cpp, mlx-lm and transformers.")
    commas = lambda allowed: lambda text: [x for x in text.split(",") if x in allowed or parser.error(f"`{x}` is none of {', '.join(allowed)}")]
    parser.add_argument("-o", "--output", type=Path, required=True, help="the result file")
    parser.add_argument("--models", type=commas(list(models.MODELS)), help=f"of {','.join(models.MODELS)} (default: all; --quick: smollm2)")
    parser.add_argument("--engines", type=commas(contestants.ENGINES), default=contestants.ENGINES, help=f"of {','.join(contestants.ENGINES)}")
    parser.add_argument("--bits", type=commas(["16", "8", "4"]), default=["16", "8", "4"], help="of 16,8,4")
    parser.add_argument("--quick", action="store_true", help="two rounds, fewer formats, no batches")
    parser.add_argument("--reps", type=int, help="rounds (default 5)")
    parser.add_argument("--inner", type=int, default=1, help="counted repetitions in each turn (default 1)")
    parser.add_argument("--no-check", action="store_true", help="do not compare logits first")
    parser.add_argument("--wait", type=float, default=60, help="seconds to wait for a quiet machine before each turn (default 60)")
    parser.add_argument("--retries", type=int, default=2, help="how often a disturbed turn is taken again (default 2)")
    parser.add_argument("--timeout", type=float, default=400, help="seconds a turn may take (default 400)")
    for hidden in ("--tbshard", "--work", "--torch-python", "--llama-cpp"):
        parser.add_argument(hidden, type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.models = args.models or (["smollm2"] if args.quick else list(models.MODELS))
    args.bits, args.rounds, args.batches = [int(b) for b in args.bits], args.reps or (2 if args.quick else 5), [] if args.quick else [4, 16]
    args.scripts = Path(__file__).resolve().parent.parent
    # Two threads on two processors, whatever the machine has: everyone inherits this.
    cpus = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cpus)
    args.threads, args.cpus = len(cpus), os.cpu_count()
    import llama_cpp

    args.llama_lib = Path(llama_cpp.__file__).parent / "lib"
    return args


def machine():
    """Returns what the figures depend on."""
    info = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line)
    info = {k.strip(): v.strip() for k, v in info.items()}
    isa = [f for f in info.get("flags", "").split() if f.startswith(("avx", "amx", "fma"))]
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {"cpu": info.get("model name", platform.machine()), "family": info.get("cpu family"), "model": info.get("model"),
            "isa": " ".join(isa), "cores": os.cpu_count(), "memory_gib": round(memory_kib / (1 << 20)), "kernel": platform.release()}


def versions(args):
    """Returns the versions of everyone."""
    out = {name: importlib.metadata.version(name) for name in ("llama-cpp-python", "mlx", "mlx-lm", "numpy")}
    code = "import torch, transformers; print(torch.__version__, transformers.__version__)"
    says = lambda *command: subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    out["torch"], out["transformers"] = says(args.torch_python, "-c", code).split()
    out["tbshard"] = says(args.tbshard, "--version").split()[-1]
    out["tbshard_sha256"] = hashlib.sha256(args.tbshard.read_bytes()).hexdigest()
    out["compiler"] = says("gcc", "--version").split("\n")[0]
    return out


def one_turn(contestant, args):
    """Runs a contestant's commands and returns ({test: rates}, share of the machine that others used)."""
    tests, foreign = {}, 0.0
    for command in contestant.commands:
        stdout, share = turn.run(command, args)
        tests |= contestant.take(stdout)
        foreign = max(foreign, share)
    return {name: rates for name, rates in tests.items() if name not in ("pp1", *(f"pp1@{n}" for n in args.batches))}, foreign


def take_turn(contestant, number, args):
    """Keeps the least disturbed of a few tries; a contestant that fails has no further turns."""
    best = None
    for _ in range(1 + args.retries):
        try:
            tests, foreign = one_turn(contestant, args)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            contestant.error = str(error)
            models.say(f"{contestant.title}: {contestant.error}")
            return
        if best is None or foreign < best[1]:
            best = tests, foreign
        if foreign <= table.QUIET:
            break
    tests, foreign = best
    contestant.samples.append({"round": number, "foreign": foreign, "tests": tests})
    rates = "  ".join(f"{name} {max(rate):.1f}" for name, rate in tests.items())
    models.say(f"round {number}, {contestant.title}: {rates}" + (f"  (others: {foreign:.0%})" if foreign > 0.02 else ""))


def main():
    args = parse()
    reader = memory.program(args.work)
    result = {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "machine": machine(), "versions": versions(args),
              "threads": args.threads, "rounds": args.rounds, "bandwidth_gb_s": [], "titles": {}, "checks": {}, "rows": [], "first_token": []}
    for name in args.models:
        model = models.prepare(name, args)
        everyone = contestants.contestants(model, args)
        result["titles"][name] = model.title
        rows = result["rows"]
        result["checks"][name] = {} if args.no_check else check.check(model, everyone, args)
        for number in range(1, args.rounds + 1):
            turn.wait_for_quiet(args.wait)
            result["bandwidth_gb_s"].append(memory.bandwidth(reader, args.threads))
            for contestant in everyone:
                if not contestant.error and number <= contestant.rounds:
                    take_turn(contestant, number, args)
            done = [{k: v for k, v in vars(c).items() if k not in ("commands", "rounds")} for c in everyone]
            result["rows"] = rows + done
            args.output.write_text(json.dumps(result, indent=1) + "\n")
        if name == "smollm2":
            result["first_token"] = first_token.measure(model, everyone, args)
            args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table.report(result))


if __name__ == "__main__":
    sys.exit(main())
