#!/usr/bin/env bash
# Times `tbshard batch`: answers at once, a beginning that prompts share, stages that work side by side.
#
#     scripts/bench-batch.sh [MODEL DIR]     SmolLM2 (scripts/get-smollm2.sh) by default
#
# Every case runs in each of ROUNDS (3) rounds, one after the other; the table has medians of tokens a second, and the last
# column is the ratio to the case it is compared with. The raw numbers follow. TBSHARD is the binary (target/release/tbshard).
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
tbshard=${TBSHARD:-$scripts/../target/release/tbshard}
model=${1:-$("$scripts/get-smollm2.sh" | tail -n 1)}
rounds=${ROUNDS:-3}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

python3 - "$dir" <<'PYTHON'
import json, sys
subjects = "rivers bread clocks maps rain bees glass salt wool ink stars bridges tea moss paper drums".split()
rules = " ".join(f"Rule {i}: keep sentence {i} short, plain and about the subject at hand." for i in range(1, 60))
def write(name, system, tokens):
    with open(f"{sys.argv[1]}/{name}.jsonl", "w") as out:
        for subject in subjects:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Write a long story about {subject}."}]
            # the end tokens are banned: all answers have as many tokens
            body = {"messages": messages, "max_tokens": tokens, "temperature": 0, "logit_bias": {"0": -100, "2": -100}}
            out.write(json.dumps({"custom_id": subject, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n")
write("short", "You tell stories.", 128)
write("shared", rules, 8)
PYTHON

run() { # NAME FILE FLAGS…
  local name=$1 file=$2; shift 2
  "$tbshard" batch "$dir/$file.jsonl" -o "$dir/out" --overwrite --quiet --ctx 2048 --model "$model" --json="$dir/summary" "$@"
  printf '%s %s\n' "$name" "$(cat "$dir/summary")" >>"$dir/results"
}
for _ in $(seq "$rounds"); do
  for n in 1 4 16; do run "at-once-$n" short --max-concurrency $n; done
  run whole shared --max-concurrency 16 --no-prefix-cache
  run shared shared --max-concurrency 16
  for n in 1 4 8; do run "two-stages-$n" short --local 2 --pp 2 --threads 1 --max-concurrency $n; done
done

python3 - "$dir/results" <<'PYTHON'
import json, statistics, sys
results = {}
for line in open(sys.argv[1]):
    name, text = line.split(" ", 1)
    results.setdefault(name, []).append(json.loads(text))
rate = {name: statistics.median(run["generated_tokens"] / run["seconds"] for run in runs) for name, runs in results.items()}
base = {"at-once-4": "at-once-1", "at-once-16": "at-once-1", "shared": "whole", "two-stages-4": "two-stages-1", "two-stages-8": "two-stages-1"}
print(f"{'case':14} {'tok/s':>8} {'prompt':>7} {'shared':>7}  ratio")
for name, runs in results.items():
    ratio = f"{rate[name] / rate[base[name]]:.2f} of {base[name]}" if name in base else ""
    print(f"{name:14} {rate[name]:8.1f} {runs[0]['prompt_tokens']:7} {runs[0]['shared_tokens']:7}  {ratio}")
for name, runs in results.items():
    print(name, " ".join(f"{run['generated_tokens'] / run['seconds']:.1f}" for run in runs))
PYTHON
