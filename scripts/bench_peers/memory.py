"""The bandwidth of this machine: every thread reads a gibibyte of its own, with the widest loads the compiler has."""

import subprocess

SOURCE = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
enum { BYTES = 1 << 30, PASSES = 6 };
static pthread_barrier_t barrier;
static volatile long keep; /* or the compiler drops the reading */
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static void *reader(void *unused) {
  long *data = aligned_alloc(64, BYTES), sum = 0;
  memset(data, 1, BYTES);
  keep = (long)data; /* now the barrier might write there, so every pass must read again */
  for (int pass = 0; pass < PASSES; pass++) {
    pthread_barrier_wait(&barrier);
    for (long i = 0; i < BYTES / 8; i++) sum += data[i];
    pthread_barrier_wait(&barrier);
  }
  keep = sum;
  return unused;
}
int main(int argc, char **argv) {
  int threads = atoi(argv[1]);
  pthread_t ids[threads];
  double best = 1e9;
  pthread_barrier_init(&barrier, 0, threads + 1);
  for (int i = 0; i < threads; i++) pthread_create(&ids[i], 0, reader, 0);
  for (int pass = 0; pass < PASSES; pass++) {
    pthread_barrier_wait(&barrier);
    double start = now();
    pthread_barrier_wait(&barrier);
    double took = now() - start;
    if (took < best) best = took;
  }
  for (int i = 0; i < threads; i++) pthread_join(ids[i], 0);
  printf("%.3f\n", (double)threads * BYTES / best / 1e9);
}
"""


def program(work):
    """Compiles the reader and returns its path."""
    out = work / "read-memory"
    subprocess.run(["gcc", "-O3", "-march=native", "-pthread", "-x", "c", "-", "-o", out], input=SOURCE, text=True, check=True)
    return out


def bandwidth(binary, threads):
    """Returns the best of six passes in GB/s."""
    return float(subprocess.run([binary, str(threads)], stdout=subprocess.PIPE, text=True, check=True).stdout)
