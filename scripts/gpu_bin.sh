#!/usr/bin/env bash
# One stripped binary for GPU machines: CUDA (NVRTC) and wgpu (Vulkan), without OpenSlide and HDF5, so that it starts
# on a machine that has neither. The drivers are loaded at run time. FUSION=off leaves kernel fusion out:
# `gensis doctor --selftest --beside ./gensis-without-fusion` puts both into one table.
set -euo pipefail
cd "$(dirname "$0")/.."

out=target/gpu-bin
features=flex,cuda,wgpu
binary=$out/gensis-without-fusion
[ "${FUSION:-on}" = off ] || { features+=,fusion; binary=$out/gensis; }
echo "== building the GPU binary with $features"
# Identical functions are folded, and no relocation tables are kept: a third of the size. Sequences of instructions that
# occur often become functions: 1.5 MB, for half as much host time again (BENCHMARKS.md).
cargo rustc --profile gpu --locked --no-default-features --features "$features" --bin gensis --target-dir target/gpu -- \
  -C relocation-model=static -C link-arg=-Wl,--icf=all -C llvm-args=-enable-machine-outliner
mkdir -p "$out"
strip -o "$binary" target/gpu/gpu/gensis
size=$(stat -c %s "$binary")
echo "$binary: $((size / 1000000)) MB"
[ "$size" -lt 55000000 ] || { echo "error: over 55 MB" >&2; exit 1; }
if ldd "$binary" | grep -E 'openslide|hdf5|cuda|nvrtc|vulkan'; then
  echo "error: the binary must not need these at start" >&2
  exit 1
fi
"$binary" --version

echo "== a device that is missing is refused in one line"
devices=$("$binary" doctor)
refused() {
  local device=$1 code=0 said
  if ! grep -q -- "--device $device .*no device found" <<<"$devices"; then
    echo "skipped: gensis doctor lists a device for $device here"
    return
  fi
  if [ "$device" = cuda ] && command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    echo "skipped: nvidia-smi lists a GPU here"
    return
  fi
  said=$("$binary" doctor --selftest --steps 0 --device "$device" 2>&1) || code=$?
  if [ "$code" -ne 1 ] || [ "$(wc -l <<<"$said")" -ne 1 ] || [[ "$said" != "error: --device $device"* ]]; then
    echo "error: --device $device ended with exit code $code instead of 1 and one line of error:" >&2
    echo "$said" >&2
    exit 1
  fi
  echo "refused: ${said#error: }"
}
refused cuda
refused wgpu
