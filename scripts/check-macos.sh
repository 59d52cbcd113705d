#!/usr/bin/env bash
# Checks the macOS build: clippy on everything, and the program linked against the system symbols in macos/symbols.txt.
#
#     scripts/check-macos.sh [--std rustup|source|debian]
#
# On Linux this needs std for Apple silicon, and a C compiler for it because ring has C. std is rustup's if that can be had;
# else it is built from Debian's source package of the same rustc; else Debian's own rustc does it all, but for the linking
# (--std tries only one of these). The C compiler is zig's, from PyPI. What had to be made is kept in
# ${XDG_CACHE_HOME:-~/.cache}/tbshard/macos-*, and the next run begins where this one was. Nothing is installed but rustup's std.
# Where there is no way, it says `skipped: …` and that is no failure. Nothing that is built here runs here.
set -euo pipefail
export LC_ALL=C
scripts=$(cd "$(dirname "$0")" && pwd)
cd "$scripts/.."

usage() { echo "usage: check-macos.sh [--std rustup|source|debian]" >&2; exit 2; }
ways="rustup source debian"
case "${1:-}" in
  "") ;;
  --std) case " $ways " in *" ${2:-} "*) ways=$2 ;; *) usage ;; esac ;;
  *) usage ;;
esac

triple=aarch64-apple-darwin
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tbshard
say() { echo "check-macos: $*" >&2; }
skip() { echo "skipped: $*"; exit 0; }

if [ "$(uname -s)" = Darwin ]; then
  cargo clippy --all-targets -- -D warnings
  exec cargo build
fi
[ "$(uname -s)" = Linux ] || skip "the macOS build is checked on macOS and Linux"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# has_std RUSTC
has_std() { ls "$("$1" --print target-libdir --target $triple)"/libstd-*.rlib >/dev/null 2>&1; }

# debian DIR "SUITE..." APT-GET-ARGUMENT...: unpacks packages of the system's own Debian mirror into DIR, without installing them
debian() {
  local dir=$1 suites=$2 suite kind mirror package key=/usr/share/keyrings/debian-archive-keyring.gpg state=$work/apt
  shift 2
  type apt-get dpkg-deb >/dev/null && [ -e $key ] || return 1
  rm -rf "$state"
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$dir"
  for suite in $suites; do
    kind=debian
    [[ $suite != *-security ]] || kind=debian-security
    mirror=$(grep -rhoE "https?://[^ ]+/$kind/?( |$)" /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null |
      tr -d ' ' | grep -v snapshot | sed -n 1p || true)
    [ -n "$mirror" ] || return 1
    echo "deb [signed-by=$key] $mirror $suite main" >>"$state/sources"
  done
  local options=(-qq -o Dir::State="$state" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$state/cache"
    -o Dir::Etc::sourcelist="$state/sources" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null
    -o APT::Sandbox::User=root -o Debug::NoLocking=1)
  apt-get "${options[@]}" update && (cd "$state/cache/archives" && apt-get "${options[@]}" "$@" >&2) || return 1
  for package in "$state"/cache/archives/*.deb; do dpkg-deb -x "$package" "$dir" || return 1; done
  rm -rf "$state"
}

# build_std TOOLCHAIN: compiles std for macOS from the source in it, and puts it beside the std for this machine
build_std() {
  local toolchain=$1 empty=$work/empty lib=$1/lib/rustlib/$triple/lib
  say "building std for $triple"
  rm -rf "$lib"
  mkdir -p "$empty/src" "$lib"
  : >"$empty/src/lib.rs"
  printf '[package]\nname = "empty"\nedition = "2024"\n[workspace]\n' >"$empty/Cargo.toml"
  (cd "$empty" && PATH="$toolchain/bin:$PATH" RUSTC="$toolchain/bin/rustc" RUSTC_BOOTSTRAP=1 "$toolchain/bin/cargo" build \
    --quiet --release -Zbuild-std=std,panic_abort,panic_unwind,proc_macro,test --target $triple --target-dir "$empty/target") || return 1
  cp "$empty/target/$triple"/release/deps/lib*.{rlib,rmeta} "$lib/"
  rm -rf "$lib"/libempty-* "$empty"
}

std_rustup() {
  type rustc cargo cargo-clippy >/dev/null || return 1
  has_std rustc && return 0
  command -v rustup >/dev/null && rustup target add $triple >&2 && has_std rustc
}

std_source() {
  type rustc cargo cargo-clippy >/dev/null || return 1
  local version made
  version=$(rustc --version | cut -d' ' -f2)
  made=$cache/macos-rust-$version
  if [ ! -e "$made/complete" ]; then
    say "looking for Debian's source of rustc $version"
    rm -rf "$made"
    debian "$made/source" "trixie-backports sid" download "rust-src=$version*" || return 1
    cp -al "$(rustc --print sysroot)" "$made/toolchain" 2>/dev/null || cp -a "$(rustc --print sysroot)" "$made/toolchain"
    rm -rf "$made/toolchain/lib/rustlib/src"
    mkdir -p "$made/toolchain/lib/rustlib/src"
    ln -s "$made/source/usr/src/rustc-$version" "$made/toolchain/lib/rustlib/src/rust"
    build_std "$made/toolchain" || return 1
    rm -rf "$made/source"
    touch "$made/complete"
  fi
  use "$made/toolchain"
}

# use TOOLCHAIN: cargo and rustc from here on, without rustup's proxies
use() {
  unset RUSTUP_TOOLCHAIN
  export PATH="$1/bin:$PATH" RUSTC="$1/bin/rustc"
  has_std "$RUSTC"
}

std_debian() {
  local made=$cache/macos-debian source
  export LD_LIBRARY_PATH=$made/lib/$(uname -m)-linux-gnu
  if [ ! -e "$made/complete" ]; then
    say "looking for Debian's own rustc, cargo and clippy with their source"
    rm -rf "$made"
    debian "$made" "bookworm bookworm-security" install --yes --download-only --no-install-recommends \
      rustc-web cargo-web rust-web-clippy rust-web-src || return 1
    mv "$made/usr"/* "$made/"
    source=$(dirname "$(ls -d "$made"/src/*/library)")
    mkdir -p "$made/lib/rustlib/src"
    ln -sfn "$source" "$made/lib/rustlib/src/rust"
    build_std "$made" || return 1
    rm -rf "$made/src" "$made/usr"
    touch "$made/complete"
  fi
  use "$made"
}

way=""
for one in $ways; do
  if "std_$one"; then way=$one; break; fi
done
[ -n "$way" ] || skip "std for $triple can be had neither from rustup nor from Debian"
say "std is that of $way"
# cargo does not see that one std is not the other
target=${CARGO_TARGET_DIR:-target}/macos-$way

# C for macOS: zig brings the headers, but takes no flags that cc gives to Apple's compiler
zig=0.17.1
made=$cache/macos-zig-$zig
if [ ! -e "$made/complete" ]; then
  say "downloading zig $zig (101 MB)"
  rm -rf "$made"
  for python in python3 .venv/bin/python; do
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$made" "ziglang==$zig" >&2 && break
  done
  [ -x "$made/ziglang/zig" ] || skip "there is no zig $zig from PyPI, which compiles C for $triple"
  touch "$made/complete"
fi
cat >"$made/cc" <<'CC'
#!/usr/bin/env bash
keep=()
while [ $# -gt 0 ]; do
  case $1 in
    -arch | -isysroot) shift ;;
    --target=* | -mmacosx-version-min=*) ;;
    *) keep+=("$1") ;;
  esac
  shift
done
exec "${0%/*}/ziglang/zig" cc -target aarch64-macos.11.0 -fno-sanitize=undefined "${keep[@]}"
CC
printf '#!/bin/sh\nexec "${0%%/*}/ziglang/zig" ar "$@"\n' >"$made/ar"
chmod +x "$made/cc" "$made/ar"
export CC_aarch64_apple_darwin="$made/cc" AR_aarch64_apple_darwin="$made/ar"

# nothing of it is run: no time is spent on making it fast
export CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=0
say "clippy"
cargo clippy --target $triple --target-dir "$target" --all-targets -- -D warnings

linker=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/rust-lld
[ -x "$linker" ] || linker=$(command -v ld64.lld) || skip "clippy has passed, but for linking there is neither rust-lld nor ld64.lld"

# The SDK that it is linked against: for each library what it is called on a Mac, and the symbols that may come from it
sdk=$(realpath "$target")/sdk
symbols=$scripts/macos/symbols.txt
stub() { # file in the SDK, what it is called on a Mac, what symbols.txt calls it
  mkdir -p "$sdk/${1%/*}"
  {
    printf -- "--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\ninstall-name: '%s'\n" "$2"
    awk -v library="$3" '$2 == library { printf "%s", (n++ ? ", " : "exports:\n  - targets: [ arm64-macos ]\n    symbols: [ ") $1 }
      END { if (n) print " ]" }' "$symbols"
    echo "..."
  } >"$sdk/$1"
}
# zig has Apple's own list of what libSystem has
unknown=$(awk '$2 == "libSystem" { print $1 }' "$symbols" | sort -u |
  comm -23 - <(tr -s " ,[]'" '\n' <"$made/ziglang/lib/libc/darwin/libSystem.tbd" | sort -u))
[ -z "$unknown" ] || { echo "error: libSystem has no" $unknown "(scripts/macos/symbols.txt)" >&2; exit 1; }
rm -rf "$sdk"
for name in System c m; do stub usr/lib/lib$name.tbd /usr/lib/libSystem.B.dylib libSystem; done
stub usr/lib/libobjc.tbd /usr/lib/libobjc.A.dylib libobjc
stub usr/lib/libiconv.tbd /usr/lib/libiconv.2.dylib libiconv
for name in CoreFoundation CoreGraphics Foundation Metal; do
  stub System/Library/Frameworks/$name.framework/$name.tbd \
    /System/Library/Frameworks/$name.framework/Versions/A/$name $name
done

say "linking the program and its tests"
if ! SDKROOT=$sdk CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER=$linker \
  CARGO_TARGET_AARCH64_APPLE_DARWIN_RUSTFLAGS="-Clinker-flavor=ld64.lld -Clink-arg=--error-limit=0" \
  cargo build --target $triple --target-dir "$target" --bin tbshard --test '*' --keep-going 2>"$work/linking"; then
  grep -E '^error|rust-lld: error' "$work/linking" | grep -v 'undefined symbol:' | tail -n 30 >&2
  missing=$(sed -n 's/.*undefined symbol: //p' "$work/linking" | sort -u)
  if [ -n "$missing" ]; then
    printf 'error: these symbols are not in scripts/macos/symbols.txt:\n%s\n' "$missing" >&2
    echo "hint: list those that macOS has, with the library that has them" >&2
  fi
  exit 1
fi
program=$target/$triple/debug/tbshard
[ "$(od -An -tx4 -N8 "$program" | tr -d ' ')" = feedfacf0100000c ] || { echo "error: $program is no program for Apple silicon" >&2; exit 1; }
say "linked $program, $(wc -c <"$program") bytes"
