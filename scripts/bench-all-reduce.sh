#!/usr/bin/env bash
# Times all_reduce of 4, 20 and 64 KiB between two processes of this machine: tbshard beside Open MPI, in turns.
#
#     scripts/bench-all-reduce.sh [ROUNDS]     Open MPI is installed with apt-get where that is possible
#
# Both sum f32 after a barrier, 2000 times; the figures are the median and the 99th percentile in µs.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3}
tbshard=${CARGO_TARGET_DIR:-target}/release/tbshard
[ -x "$tbshard" ] || cargo build --release
if ! command -v mpicc >/dev/null; then
  { apt-get update -qq && apt-get install -qq -y openmpi-bin libopenmpi-dev; } >/dev/null 2>&1 ||
    { echo "error: there is no mpicc" >&2; echo "hint: install Open MPI (openmpi-bin, libopenmpi-dev)" >&2; exit 1; }
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/reduce.c" <<'C'
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
static int order(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return (x > y) - (x < y); }
int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  int rank, kib[] = {4, 20, 64};
  enum { REPS = 2000, WARM = 200 };
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  for (int s = 0; s < 3; s++) {
    int n = kib[s] * 256;
    float *in = calloc(n, 4), *out = calloc(n, 4);
    double times[REPS];
    for (int i = 0; i < REPS + WARM; i++) {
      MPI_Barrier(MPI_COMM_WORLD);
      double start = MPI_Wtime();
      MPI_Allreduce(in, out, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
      if (i >= WARM) times[i - WARM] = MPI_Wtime() - start;
    }
    qsort(times, REPS, sizeof(double), order);
    if (rank == 0) printf("%2d KiB  median %.1f  p99 %.1f\n", kib[s], times[REPS / 2] * 1e6, times[REPS * 99 / 100] * 1e6);
  }
  MPI_Finalize();
}
C
mpicc -O2 -o "$work/reduce" "$work/reduce.c"
mpi() { mpirun --allow-run-as-root --oversubscribe --bind-to core -np 2 "$@" "$work/reduce" 2>/dev/null; }
for round in $(seq "$rounds"); do
  echo "== round $round"
  echo "Open MPI, shared memory"; mpi --mca btl self,vader
  echo "tbshard, shared memory"; "$tbshard" bench all-reduce --transport shm
  echo "Open MPI, TCP"; mpi --mca btl self,tcp --mca btl_tcp_if_include lo
  echo "tbshard, TCP, encrypted"; "$tbshard" bench all-reduce --transport tcp
  echo "tbshard, TCP, in clear"; "$tbshard" bench all-reduce --plain
done
