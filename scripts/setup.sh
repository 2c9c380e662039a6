#!/usr/bin/env bash
# Installs what the build needs and is missing. Safe to repeat; does nothing when everything is there.
set -euo pipefail

missing=()
command -v cc >/dev/null && command -v make >/dev/null || missing+=(build-essential)
command -v cmake >/dev/null || missing+=(cmake)
command -v nasm >/dev/null || missing+=(nasm)
command -v pkg-config >/dev/null || missing+=(pkg-config)
if command -v pkg-config >/dev/null; then
  pkg-config --exists openslide || missing+=(libopenslide-dev)
  pkg-config --exists hdf5 || pkg-config --exists hdf5-serial || missing+=(libhdf5-dev)
else
  missing+=(libopenslide-dev libhdf5-dev)
fi
# openslide-sys makes its bindings at build time, with libclang (libclang.so or libclang-14.so.1; libclang-cpp.so.14, which
# comes with many packages, does not do).
compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null || compgen -G '/usr/lib/*/libclang-[0-9]*.so*' >/dev/null \
  || missing+=(libclang-dev)

sudo=""
[ "$(id -u)" -eq 0 ] || sudo="sudo"
if [ ${#missing[@]} -gt 0 ]; then
  echo "== installing system packages: ${missing[*]}"
  command -v apt-get >/dev/null || {
    echo "error: this is not Debian or Ubuntu; install the equivalents of: ${missing[*]}" >&2
    exit 1
  }
  $sudo apt-get update -qq
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
  echo "== installing Rust with rustup (https://rustup.rs), for this user only"
  command -v curl >/dev/null || { $sudo apt-get update -qq && $sudo apt-get install -y -qq curl ca-certificates >/dev/null; }
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy
fi

PATH="$PATH:$HOME/.cargo/bin"
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
found=$(rustc --version | cut -d' ' -f2)
if ! printf '%s\n' "$wanted" "$found" | sort --version-sort --check=silent; then
  if command -v rustup >/dev/null; then
    echo "== Rust $found is older than $wanted: updating it"
    rustup update stable
  else
    echo "error: Rust $found is older than $wanted, and not rustup's: install Rust from https://rustup.rs" >&2
    exit 1
  fi
fi
