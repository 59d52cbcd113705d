#!/usr/bin/env bash
# Times all_reduce of 4, 20 and 64 KiB between two processes of this machine over RDMA, beside messages of the same size sent
# to and fro by rdma-core's ibv_rc_pingpong over the same device, and beside encrypted TCP, in turns.
#
#     scripts/bench-rdma.sh [ROUNDS]                   over the imitated library: its wire is shared memory, so the figures
#                                                      are of the programs alone
#     RDMA_DEVICE=rxe0 scripts/bench-rdma.sh [ROUNDS]  over a device of this machine that reaches itself (RDMA_GID: its place
#                                                      in the table, 1)
#
# A sum of two ranks sends a vector each way at once, so its least is one way of the ping-pong, which checks and adds nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3}
target=${CARGO_TARGET_DIR:-target}/release
command -v ibv_rc_pingpong >/dev/null ||
  { echo "error: there is no ibv_rc_pingpong" >&2; echo "hint: install it (Debian: apt install ibverbs-utils)" >&2; exit 1; }
[ -x "$target/tbshard" ] || cargo build --release
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${RDMA_DEVICE:-}" ]; then
  [ -x "$target/examples/fabric" ] || cargo build --release -p fake-verbs --example fabric
  "$target/examples/fabric" rxe 1 "$work/fabric" >"$work/env"
  set -a; . "$work/env"; set +a
fi
device=${RDMA_DEVICE:-rxe0}
gid=${RDMA_GID:-1}
port=$((20000 + RANDOM % 20000))
one_way() { # BYTES; half of a mean round trip in µs
  port=$((port + 1))
  ibv_rc_pingpong -d "$device" -g "$gid" -s "$1" -n 2000 -p "$port" >/dev/null 2>&1 &
  sleep 0.3
  ibv_rc_pingpong -d "$device" -g "$gid" -s "$1" -n 2000 -p "$port" 127.0.0.1 2>/dev/null |
    sed -n 's|.* \([0-9.]*\) usec/iter|\1|p' | awk '{ print $1 / 2 }'
  wait
}
reduce() { # BYTES FLAGS; the median in µs
  local kib=$(($1 / 1024)); shift
  "$target/tbshard" bench all-reduce --sizes "$kib" -o json "$@" 2>/dev/null | sed -n 's|.*"time_us": *\([0-9.]*\).*|\1|p'
}
for round in $(seq "$rounds"); do
  for size in 4096 20480 65536; do
    raw=$(one_way $size)
    rdma=$(reduce $size --transport rdma --rdma-device "$device")
    tcp=$(reduce $size --transport tcp)
    echo "$round $size $raw $rdma $tcp" | tee -a "$work/raw" >&2
  done
done
middle() { # SIZE EXPRESSION of a round's figures
  awk -v size="$1" "\$2 == size { print $2 }" "$work/raw" | sort -g | sed -n "$(((rounds + 1) / 2))p"
}
echo "medians of $rounds rounds, µs; × is by the ping-pong of the same round:"
printf '%8s %10s %12s %6s %10s %6s\n' bytes ping-pong all_reduce × tcp ×
for size in 4096 20480 65536; do
  printf '%8d %10.1f %12.1f %6.2f %10.1f %6.2f\n' $size \
    "$(middle $size '$3')" "$(middle $size '$4')" "$(middle $size '$4 / $3')" "$(middle $size '$5')" "$(middle $size '$5 / $3')"
done
