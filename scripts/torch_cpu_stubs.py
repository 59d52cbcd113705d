#!/usr/bin/env python3
"""Make the CUDA wheel of torch importable on a machine without CUDA, for CPU use only.

PyPI carries one torch wheel for Linux, and it links against about 2.5 GB of NVIDIA libraries that
only a GPU needs. This script reads which of them, and which symbols of them, torch's own libraries
ask for, and compiles an empty stand-in of each into torch's `lib` directory. Afterwards torch
imports, `torch.cuda.is_available()` is False and every CPU operation works.

    torch_cpu_stubs.py SITE_PACKAGES/torch/lib

Needs gcc and readelf (binutils), no Python packages.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

# Libraries that torch ships itself or that every Linux has.
PROVIDED = ("libtorch", "libc10", "libcaffe2", "libshm", "libgomp", "libgfortran", "libpthread",
            "libm.", "libdl", "librt", "libc.", "libstdc++", "libgcc", "ld-linux")

# Symbol prefixes of libraries that do not version their symbols; longer names come first, because
# the prefix of cublas also fits cublasLt.
PREFIXES = (
    ("libcublasLt", ("cublasLt",)), ("libcublas", ("cublas",)),
    ("libcusparseLt", ("cusparseLt",)), ("libcusparse", ("cusparse",)),
    ("libcusolver", ("cusolver",)), ("libcufft", ("cufft",)), ("libcufile", ("cuFile",)),
    ("libcudnn", ("cudnn",)), ("libnccl", ("nccl", "pnccl")), ("libnvrtc", ("nvrtc",)),
    ("libcupti", ("cupti",)), ("libcudart", ("cuda", "__cuda")), ("libnvshmem_host", ("nvshmem",)),
)

CUDA_ERROR_NO_DEVICE = 100


def readelf(flag, path):
    """Returns the lines that `readelf FLAG` prints about a library."""
    out = subprocess.run(["readelf", "-W", flag, str(path)], capture_output=True, text=True, check=True)
    return out.stdout.splitlines()


def scan(lib):
    """Returns the foreign libraries torch needs, which of them defines each symbol version, and
    every undefined symbol with its version ('' when unversioned)."""
    needed, owner, undefined = set(), {}, {}
    for path in sorted(lib.glob("lib*.so")):
        if not re.match(r"lib(torch|c10|caffe2|shm)", path.name):
            continue
        for line in readelf("-d", path):
            found = re.search(r"\(NEEDED\).*\[(.*)\]", line)
            if found and not found[1].startswith(PROVIDED):
                needed.add(found[1])
        current = None
        for line in readelf("-V", path):
            if found := re.search(r"File: (\S+)", line):
                current = found[1]
            elif current and (found := re.search(r"Name: (\S+)\s+Flags", line)):
                owner.setdefault(found[1], current)
        for line in readelf("--dyn-syms", path):
            column = line.split()
            if len(column) >= 8 and column[6] == "UND" and column[4] != "WEAK":
                symbol, _, version = column[7].partition("@")
                undefined[symbol] = version.lstrip("@") or undefined.get(symbol, "")
    return needed, owner, undefined


def assign(needed, owner, undefined):
    """Returns {library: {symbol: version}} for the libraries to imitate."""
    stubs = {name: {} for name in sorted(needed)}
    by_stem = {name.split(".so")[0]: name for name in needed}
    for symbol, version in undefined.items():
        if version:
            if owner.get(version) in stubs:
                stubs[owner[version]][symbol] = version
            continue
        for stem, prefixes in PREFIXES:
            if stem in by_stem and (symbol.startswith(prefixes) or (stem == "libnvshmem_host" and "nvshmem" in symbol)):
                stubs[by_stem[stem]][symbol] = ""
                break
    return stubs


def c_function(symbol):
    """Returns a C definition that answers `no device` where torch asks at import, else an error."""
    if symbol == "__cudaRegisterFatBinary":
        return f"static unsigned long handle[8]; void *{symbol}(void *p) {{ return handle; }}"
    if symbol.startswith("__cuda"):
        return f"unsigned long {symbol}(void) {{ return 0; }}"
    if symbol.endswith(("GetErrorString", "GetErrorName")):
        return f'const char *{symbol}(int e) {{ return "no CUDA here"; }}'
    if symbol == "cudaGetDeviceCount":
        return f"int {symbol}(int *n) {{ if (n) *n = 0; return {CUDA_ERROR_NO_DEVICE}; }}"
    if symbol in ("cudaRuntimeGetVersion", "cudaDriverGetVersion"):
        return f"int {symbol}(int *v) {{ if (v) *v = 0; return 0; }}"
    if symbol in ("cudaGetLastError", "cudaPeekAtLastError"):
        return f"int {symbol}(void) {{ return 0; }}"
    return f"int {symbol}(void) {{ return {CUDA_ERROR_NO_DEVICE if symbol.startswith('cuda') else 1}; }}"


def build(lib, name, symbols):
    """Compiles the stand-in for one library next to torch's own."""
    versions = defaultdict(list)
    for symbol, version in symbols.items():
        if version:
            versions[version].append(symbol)
    with tempfile.TemporaryDirectory() as tmp:
        source, script = Path(tmp, "stub.c"), Path(tmp, "versions.map")
        source.write_text("\n".join(c_function(s) for s in sorted(symbols)) + "\ntypedef int not_empty;\n")
        command = ["gcc", "-shared", "-nostdlib", "-fPIC", "-w", "-fno-builtin", "-o", str(lib / name), f"-Wl,-soname,{name}", str(source)]
        if versions:
            script.write_text("".join(f"{v} {{ global: {' '.join(s + ';' for s in sorted(names))} }};\n" for v, names in sorted(versions.items())))
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)


def main():
    if len(sys.argv) != 2 or not Path(sys.argv[1], "libtorch_cpu.so").is_file():
        sys.exit("usage: torch_cpu_stubs.py SITE_PACKAGES/torch/lib")
    lib = Path(sys.argv[1])
    stubs = assign(*scan(lib))
    for name, symbols in stubs.items():
        build(lib, name, symbols)
    print(f"{len(stubs)} stand-ins with {sum(map(len, stubs.values()))} symbols written", file=sys.stderr)


if __name__ == "__main__":
    main()
