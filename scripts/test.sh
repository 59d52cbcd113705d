#!/usr/bin/env bash
# Runs the tests and prints what each suite took against its budget.
#
#     scripts/test.sh           what a change must pass: build and tests (under ten minutes on two cores)
#     scripts/test.sh --full    what CI runs: also lints, docs, licences, a real model against transformers, longer fuzzing
#
# TBSHARD_ORACLE names the large oracle set; without it the tests that need it say that they were skipped.
# Missing tools are installed (cargo-nextest, cargo-deny, a Python environment in .venv; by root with apt also sshd, shells,
# what runs the NEON kernels on an emulated processor, emulated machines with RDMA, and clang 19 for Metal's kernels). What
# checks the macOS build goes to the user's cache, and so does the kernel of emulated machines.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

full=""
case "${1:-}" in
  "") ;;
  --full) full=yes ;;
  *) echo "usage: scripts/test.sh [--full]" >&2; exit 2 ;;
esac

target=${CARGO_TARGET_DIR:-target}

# suite: budget in seconds (it is ended there), then the command
names=() results=() times=() budgets=()
failed=0
suite() {
  local name=$1 budget=$2; shift 2
  echo; echo "== $name (at most $budget s): $*"
  local start=$SECONDS
  if timeout --kill-after=10 "$budget" "$@"; then results+=("ok"); else results+=("FAILED"); failed=1; fi
  names+=("$name"); budgets+=("$budget"); times+=($((SECONDS - start)))
}

table() {
  echo; printf '%-12s %8s %8s  %s\n' suite seconds budget result
  for i in "${!names[@]}"; do printf '%-12s %8s %8s  %s\n' "${names[$i]}" "${times[$i]}" "${budgets[$i]}" "${results[$i]}"; done
}

need() { # command, crate, version
  command -v "$1" >/dev/null || cargo install "$2@$3" --locked
}
hosts() { # real sshd's, the shells that people log in with, and the header of verbs; without root and apt the tests on them are skipped
  command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || return 0
  local missing=() package
  for package in openssh-server openssh-client iproute2 util-linux zsh fish tcsh libibverbs-dev; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] || { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } ||
    echo "could not install ${missing[*]}: tests on hosts will be skipped" >&2
}
arm() { # std, a linker and an emulator for aarch64; where they cannot be had NEON is not tested
  local triple=aarch64-unknown-linux-gnu missing=() package
  if [ "$(uname -sm)" = "Linux x86_64" ] && type rustup apt-get dpkg-query >/dev/null; then
    rustup target list --installed | grep -qx "$triple" || rustup target add "$triple"
    for package in gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user; do
      dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] || { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; }
  fi
  rustup target list --installed | grep -qx "$triple" && type aarch64-linux-gnu-gcc qemu-aarch64 >/dev/null
}
neon() { # the kernels on an emulated processor, without the tests that candle makes slow there
  arm || { echo "skipped: std, a linker or an emulator for aarch64 is missing"; return 0; }
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
  cargo nextest run --target aarch64-unknown-linux-gnu --lib --test kernels \
    -E 'test(/^backend::/) | test(/^kernels::(packed|embed|rowwise|routing|edges|delta)::/) | test(/^kernels::.*::(adds?_in|adds_rounded|odd_activations)/)'
}
# `-p tbshard` with the others: alone they would ask for fewer features of what all depend on, and all that would be built again
metal() { # Metal's kernels on this processor, where clang 19 can be had
  if ! type clang++-19 >/dev/null 2>&1 && type apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    apt-get update && apt-get install -y --no-install-recommends clang-19
  fi
  type clang++-19 >/dev/null 2>&1 || { echo "skipped: clang++-19 is missing"; return 0; }
  cargo fmt -p metal-on-cpu --check && cargo clippy -p tbshard -p metal-on-cpu --all-targets -- -D warnings &&
    cargo nextest run -p tbshard -p metal-on-cpu -E 'package(metal-on-cpu)'
}
verbs() { # the fake verbs library
  cargo fmt -p fake-verbs --check && cargo clippy -p tbshard -p fake-verbs --all-targets -- -D warnings &&
    cargo nextest run -p tbshard -p fake-verbs -E 'package(fake-verbs)'
}
rdma() { # real verbs between emulated machines, where they can be had
  local missing=() package
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    for package in qemu-system-x86 busybox-static cpio kmod xz-utils iproute2 openssh-server libibverbs1 ibverbs-providers \
      ibverbs-utils; do
      dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    # lists are also needed to download a kernel
    if [ ${#missing[@]} != 0 ] || ! apt-cache show linux-image-amd64 >/dev/null 2>&1; then apt-get update; fi
    [ ${#missing[@]} = 0 ] || apt-get install -y --no-install-recommends "${missing[@]}"
  fi
  # says what is missing, if anything is; tests are skipped then
  tests/rdma-lab/lab.sh setup
  cargo nextest run -E 'test(/^rdma_lab::/)'
}
browser() { # Chromium for the built-in page; where it cannot be had the page is not tested
  type chromium chromium-browser google-chrome >/dev/null 2>&1 && return 0
  if type apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    apt-get update && apt-get install -y --no-install-recommends chromium
  fi
  type chromium >/dev/null 2>&1 || echo "skipped: there is no Chromium"
}
export -f need hosts arm neon metal verbs rdma browser
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
# sources do not change between the suites
export CARGO_INCREMENTAL=0

suite tools 900 bash -c 'need cargo-nextest cargo-nextest 0.9.143; hosts'
suite build 900 cargo nextest run --no-run
suite unit 200 cargo nextest run -E 'not test(/^(slow|batch|bits|kernels|errors|damage|fuzz|ranks|shares|control|transport|rdma|demo|cluster|lab|quantise|ssh|rdma_lab|scheduler|serve)::/)'
suite kernels 300 cargo nextest run -E 'test(/^(bits|kernels)::/)'
suite demo 120 cargo nextest run -E 'test(/^demo::/)'
suite scheduler 200 cargo nextest run -E 'test(/^scheduler::/)'
suite batch 120 cargo nextest run -E 'test(/^batch::/)'
suite quantise 120 cargo nextest run -E 'test(/^quantise::/)'
suite ranks 600 cargo nextest run -E 'test(/^ranks::(layouts|collectives)/)'
suite shares 120 cargo nextest run -E 'test(/^shares::/)'
suite fabrics 150 cargo nextest run -E 'test(/^(transport|control|rdma)::/)'
suite deaths 300 cargo nextest run -E 'test(/^ranks::(processes|deaths|chat|steps|threads)::/)'
suite hosts 250 cargo nextest run -E 'test(/^(lab|ssh)::/)'
suite cluster 250 cargo nextest run -E 'test(/^cluster::/)'
suite serve 120 cargo nextest run -E 'test(/^serve::/)'
suite faults 120 cargo nextest run -E 'test(/^(errors|damage)::/)'
suite fuzz 120 cargo nextest run -E 'test(/^fuzz::/)'

if [ -n "$full" ]; then
  export RUSTDOCFLAGS="-D warnings"
  suite fmt 60 cargo fmt --check
  suite clippy 200 cargo clippy --all-targets -- -D warnings
  suite example 120 bash -c 'cargo run --quiet --example all_reduce | tee >(cat >&2) | grep -c reduced | grep -q 4'
  suite doc 120 cargo doc --no-deps --quiet
  suite rdma 1800 bash -c rdma
  suite neon 900 bash -c neon
  suite metal 600 bash -c metal
  suite verbs 120 bash -c verbs
  suite macos 600 scripts/check-macos.sh
  suite deny-tool 1200 bash -c 'need cargo-deny cargo-deny 0.20.2'
  suite deny 120 cargo deny --config .deny.toml check licenses bans sources
  suite python 600 scripts/python-env.sh
  suite model 300 bash -c "scripts/get-smollm2.sh > '$target/smollm2.path'"
  TBSHARD_SMOLLM2=$(tail -n 1 "$target/smollm2.path")
  export TBSHARD_SMOLLM2 TBSHARD_PYTHON="$PWD/.venv/bin/python"
  suite browser 600 bash -c browser
  suite release 900 cargo build --release
  # as its users built it, and several times as fast as what is built with the tests
  TBSHARD_BINARY=$(realpath "$target/release/tbshard") suite slow 450 cargo nextest run -E 'test(/^slow::/)'
  TBSHARD_FUZZ_SECONDS=60 suite fuzz-long 150 cargo nextest run -E 'test(/^fuzz::/)'
  suite readme-demo 60 bash -c "'$target/release/tbshard' generate | tee >(cat >&2) | grep -q 'The end'"
  suite readme 120 bash -c "'$target/release/tbshard' generate --model '$TBSHARD_SMOLLM2' --prompt 'What is the capital of France?' | tee >(cat >&2) | grep -q Paris"
fi

table
exit $failed
