#!/usr/bin/env bash
# Times tbshard beside llama.cpp, mlx-lm and transformers: the same weights in the same bits, in alternating rounds.
#
#     scripts/bench-peers.sh -o results.json [OPTIONS]    installs what is missing, measures, prints tables and writes the file
#     scripts/bench-peers.sh --table results.json         the README's tables of a result file; measures nothing
#     scripts/bench-peers.sh --install                    installs and builds the peers, and no more
#
#     --quick              two rounds, fewer formats, no batches, SmolLM2 alone
#     --models A,B         of smollm2, qwen3-1b, qwen3-moe, qwen3.6-8l (all)
#     --engines A,B        of tbshard, llama.cpp, mlx-lm, transformers (all)
#     --bits 16,8,4        which widths of weights
#     --reps N             rounds (5)
#     --inner N            counted repetitions of a test in each turn (1)
#     --no-check           do not compare everyone's logits with transformers' first
#     --wait SECONDS       how long to wait for a quiet machine before each turn (60)
#     --retries N          how often a turn that others disturbed is taken again (2)
#     --timeout SECONDS    the longest turn (400)
#     --tbshard PATH       the binary to time (target/release/tbshard)
#     --work DIR           where the peers and their models are kept ($XDG_CACHE_HOME/tbshard/peers): 2 GB, with all models 40 GB
#     --venv DIR           has torch and transformers (.venv, which python-env.sh makes)
#
# The peers are installed as their users do it, from PyPI: llama-cpp-python is built here with the flags of this processor and
# timed through llama.cpp's C API; llama.cpp's own converter and quantiser make the GGUF files, mlx_lm.convert the MLX ones.
# Everything runs on two threads of two processors. Run again, it only measures.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$scripts")
export PYTHONPATH=$scripts
python=${PYTHON:-python3}

llama_cpp_python=0.3.36
pins="
diskcache==5.6.3
gguf==0.17.1
mlx[cpu]==0.32.4
mlx-lm==0.32.2
numpy==2.4.6"
build_pins="cmake==4.4.5 ninja==1.13.2 scikit-build-core"
cmake_args="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"

tbshard=${CARGO_TARGET_DIR:-$root/target}/release/tbshard
work=${XDG_CACHE_HOME:-$HOME/.cache}/tbshard/peers
torch_venv="" install="" args=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
        --table) exec "$python" -m bench_peers.table "${2:?a result file}" ;;
        --install) install=yes; shift ;;
        --tbshard) tbshard=${2:?a binary}; shift 2 ;;
        --work) work=${2:?a directory}; shift 2 ;;
        --venv) torch_venv=${2:?a directory}; shift 2 ;;
        *) args+=("$1"); shift ;;
    esac
done

say() { echo "bench-peers: $*" >&2; }
die() { echo "error: $1" >&2; echo "hint: $2" >&2; exit 1; }

for tool in gcc g++ "$python"; do
    command -v "$tool" >/dev/null || die "there is no $tool" "install gcc, g++ and Python 3.11 with the system's package manager"
done
if [ -z "$torch_venv" ]; then
    torch_venv=$root/.venv
    "$scripts/python-env.sh" "$torch_venv"
fi
[ -x "$torch_venv/bin/python" ] || die "there is no $torch_venv/bin/python" "scripts/python-env.sh $torch_venv makes it"

# The build is for this very processor, so another one (a cache that moved) means building again.
isa=$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo | cksum)
stamp="$(echo "$llama_cpp_python $pins $cmake_args" | cksum) $isa"
venv=$work/venv
sources=$work/llama-cpp-python-$llama_cpp_python
if [ "$(cat "$work/.stamp" 2>/dev/null)" != "$stamp" ]; then
    mkdir -p "$work"
    rm -rf "$venv" "$sources" "$work/.stamp"
    "$python" -m venv "$venv"
    pip() { "$venv/bin/python" -m pip "$@" --quiet --disable-pip-version-check; }
    say "installing mlx, mlx-lm and what builds llama.cpp"
    # shellcheck disable=SC2086
    pip install $build_pins $pins
    say "building llama-cpp-python $llama_cpp_python with $cmake_args; takes some minutes"
    # Without isolation, or pip would build a CMake first where there is no wheel of it.
    pip download --no-deps --no-binary :all: --no-build-isolation --dest "$sources" "llama-cpp-python==$llama_cpp_python"
    CMAKE_ARGS=$cmake_args CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) pip install --no-deps --no-build-isolation "$sources"/*.tar.gz
    tar -xzf "$sources"/*.tar.gz --strip-components 1 -C "$sources"
    echo "$stamp" >"$work/.stamp"
fi
if [ -n "$install" ]; then exit 0; fi
[ -x "$tbshard" ] || { say "building tbshard"; (cd "$root" && cargo build --release --locked); }

exec "$venv/bin/python" -m bench_peers.run "${args[@]}" --tbshard "$tbshard" --work "$work" \
    --torch-python "$torch_venv/bin/python" --llama-cpp "$sources/vendor/llama.cpp"
