#!/usr/bin/env bash
# One stripped binary for GPU machines: CUDA (NVRTC) and wgpu (Vulkan), without OpenSlide and HDF5, so that it starts
# on a machine that has neither. The drivers are loaded at run time. FUSION=off leaves kernel fusion out.
set -euo pipefail
cd "$(dirname "$0")/.."

out=target/gpu-bin
features=flex,cuda,wgpu
[ "${FUSION:-on}" = off ] || features+=,fusion
echo "== building the GPU binary with $features"
# Identical functions are folded, and no relocation tables are kept: a third of the size. Sequences of instructions that
# occur often become functions: 1.5 MB, for half as much host time again (BENCHMARKS.md).
cargo rustc --profile gpu --locked --no-default-features --features "$features" --bin gensis --target-dir target/gpu -- \
  -C relocation-model=static -C link-arg=-Wl,--icf=all -C llvm-args=-enable-machine-outliner
mkdir -p "$out"
strip -o "$out/gensis" target/gpu/gpu/gensis
size=$(stat -c %s "$out/gensis")
echo "$out/gensis: $((size / 1000000)) MB"
[ "$size" -lt 55000000 ] || { echo "error: over 55 MB" >&2; exit 1; }
if ldd "$out/gensis" | grep -E 'openslide|hdf5|cuda|nvrtc|vulkan'; then
  echo "error: the binary must not need these at start" >&2
  exit 1
fi
"$out/gensis" --version
