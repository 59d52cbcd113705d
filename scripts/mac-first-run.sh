#!/usr/bin/env bash
# For the first person with a Mac: builds tbshard, tests its GPU, measures it, and writes one file to send back.
#
#     scripts/mac-first-run.sh [REPORT.txt]
#
# Nothing is installed and nothing is sent. It takes some minutes, most of them for the build. The report has the Mac's model,
# its memory and macOS version, what each kernel computed, and speeds; no names, addresses or paths.
set -uo pipefail
report=${1:-tbshard-mac-report.txt}
case $report in /*) ;; *) report=$PWD/$report ;; esac
cd "$(dirname "$0")/.." || exit 1
[ "$(uname -s)" = Darwin ] || echo "this is no Mac: the report will be about its processor" >&2
type cargo >/dev/null 2>&1 || { echo "cargo is missing: install Rust from https://rustup.rs" >&2; exit 1; }

: >"$report" || exit 1
failed=0
step() { # title, command: its output goes to the report and its last lines to the terminal
  local title=$1 start=$SECONDS out; shift
  echo "== $title" | tee -a "$report"
  out=$("$@" 2>&1)
  local code=$?
  printf '%s\n(exit %s, %s s)\n\n' "${out//$HOME/~}" "$code" "$((SECONDS - start))" >>"$report"
  tail -n 4 <<<"$out"
  [ "$code" = 0 ] || { failed=1; echo "   failed (exit $code): it is in the report, the rest goes on"; }
}
machine() {
  sw_vers 2>/dev/null || uname -sr
  sysctl -n hw.model machdep.cpu.brand_string hw.memsize hw.pagesize iogpu.wired_limit_mb 2>/dev/null
  git rev-parse HEAD 2>/dev/null
  rustc --version
}
kernels() { cargo test --quiet --test kernels apple:: -- --nocapture; }

binary=${CARGO_TARGET_DIR:-target}/release/tbshard
json=$(mktemp)
trap 'rm -f "$json"' EXIT
step machine machine
step build cargo build --release
[ -x "$binary" ] || { echo "there is nothing to run; please send $report"; exit 1; }
step "kernels compile" kernels
step "every kernel against the processor" "$binary" selftest --report "$json"
step "the same in full" cat "$json"
step "the demo on the GPU" "$binary" generate --max-tokens 64
step "the demo on the processor" "$binary" generate --max-tokens 64 --device cpu
for fence in drain event spin; do
  step "two ranks on one GPU by --fence $fence, every bit compared" \
    "$binary" generate --local 2 --tp 2 --max-tokens 32 --verify --fence "$fence"
done
step "speed of the demo" "$binary" bench tokens-per-sec
step "speed of 8 layers of Qwen3.6-27B in bf16" \
  "$binary" bench tokens-per-sec --model qwen3.6-27b --weights random --layers 8
step "speed of 8 layers of Qwen3.6-27B in 4 bits" \
  "$binary" bench tokens-per-sec --model qwen3.6-27b --weights random --layers 8 --quantize 4
echo "done; please send $report"
exit "$failed"
