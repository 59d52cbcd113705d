#!/usr/bin/env bash
# Makes the Python environment of the fixtures and slow tests: torch and MLX on the CPU, transformers, gguf, OpenAI's client, playwright, all pinned.
#
#     scripts/python-env.sh [--light] [DIR]        DIR is .venv in the repository by default
#
# --light leaves torch and transformers out (what smollm2_convert.py needs). Run again, it does nothing
# unless the pins have changed. PYTHON names the interpreter to use (3.11 or newer; default python3).
# On Linux the torch of PyPI is a CUDA build: it is installed without its 2.5 GB of NVIDIA libraries,
# and torch_cpu_stubs.py puts stand-ins in their place.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)

light=""
if [ "${1:-}" = "--light" ]; then light=yes; shift; fi
case "${1:-}" in -*) echo "usage: python-env.sh [--light] [DIR]" >&2; exit 2 ;; esac
dir=${1:-$(dirname "$scripts")/.venv}
python=${PYTHON:-python3}

# The whole closure is listed, because everything is installed with --no-deps.
light_pins="
gguf==0.17.1
numpy==2.4.6
PyYAML==6.0.3
tokenizers==0.23.3
tqdm==4.70.1"
full_pins="
annotated-doc==0.0.7
annotated-types==0.8.0
anyio==4.16.0
click==8.5.1
filelock==4.2.11
fsspec==2026.9.0
greenlet==3.5.6
h11==0.16.0
hf-xet==1.8.0
httpcore2==2.16.2
httpx2==2.16.2
huggingface_hub==2.4.0
idna==3.20
Jinja2==3.1.6
jiter==0.19.0
markdown-it-py==4.3.0
MarkupSafe==3.0.4
mdurl==0.1.2
mlx-cpu==0.32.4; sys_platform == 'linux'
mlx-lm==0.32.2
mlx==0.32.4
mpmath==1.3.0
networkx==3.6.1
openai==3.57.0
packaging==26.3
playwright==1.65.2
protobuf==7.36.2
pydantic==2.14.4
pydantic_core==2.50.5
Pygments==2.21.0
regex==2026.11.15
rich==15.0.0
safetensors==0.8.0
sentencepiece==0.2.3
shellingham==1.5.4
sniffio==1.3.1
sympy==1.14.0
tiktoken==0.12.0
torch==2.15.0
transformers==5.23.0
truststore==0.10.5
typer==0.29.2
typing-inspection==0.4.5
typing_extensions==4.16.0"
pins=$light_pins
if [ -z "$light" ]; then pins="$light_pins$full_pins"; fi

say() { echo "python-env: $*" >&2; }
die() { echo "error: $1" >&2; echo "hint: $2" >&2; exit 1; }

# apt_get PACKAGE... installs Debian packages, or tells the user to.
apt_get() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing $* with apt-get"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"; } >/dev/null
    else
        die "missing on this machine: $*" "install them with the system's package manager"
    fi
}

command -v "$python" >/dev/null || apt_get python3 python3-venv
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "\`$python\` is $("$python" --version 2>&1), 3.11 or newer is needed" "set PYTHON to a newer interpreter"

stamp=$("$python" - "$pins" "$scripts/torch_cpu_stubs.py" <<'PY'
import hashlib, sys
pins, stubs = sys.argv[1], open(sys.argv[2], "rb").read()
print(hashlib.sha256(pins.encode() + (stubs if "torch==" in pins else b"")).hexdigest())
PY
)
if [ -x "$dir/bin/python" ] && [ "$(cat "$dir/.tbshard-pins" 2>/dev/null)" = "$stamp" ]; then
    say "$dir is up to date"
    exit 0
fi
if [ -e "$dir" ] && [ ! -e "$dir/pyvenv.cfg" ] && [ -n "$(ls -A "$dir")" ]; then
    die "$dir exists and is not a Python environment" "name another directory, or remove it"
fi

rm -f "$dir/.tbshard-pins"
if [ ! -x "$dir/bin/python" ] || ! "$dir/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_get python3-venv
    say "creating $dir"
    "$python" -m venv "$dir"
fi
note=""
if [ -z "$light" ]; then note=", torch alone is a download of 540 MB"; fi
say "installing $(echo "$pins" | grep -c ==) packages$note"
requirements=$(mktemp)
trap 'rm -f "$requirements"' EXIT
echo "$pins" >"$requirements"
"$dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: -r "$requirements"

if [ -z "$light" ]; then
    if [ "$(uname -s)" = Linux ] && ! "$dir/bin/python" -c 'import torch' 2>/dev/null; then
        command -v gcc >/dev/null && command -v readelf >/dev/null || apt_get gcc binutils
        "$dir/bin/python" "$scripts/torch_cpu_stubs.py" "$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/torch/lib"
    fi
    "$dir/bin/python" -c 'import mlx_lm, torch, transformers; torch.ones(2) @ torch.ones(2)' ||
        die "torch or MLX does not import from $dir" "remove $dir and run this again"
fi
echo "$stamp" >"$dir/.tbshard-pins"
say "$dir is ready"
