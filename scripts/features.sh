#!/usr/bin/env bash
# Checks that every package builds with and without each of its features: about eight minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

check() {
    echo "== $*"
    cargo check --release --locked --quiet "$@"
}

for features in "" openslide hdf5; do
    check -p slide_io --all-targets --no-default-features --features "$features"
done
for features in "" hdf5 flex wgpu cuda wgpu,cuda,fusion; do
    check -p evaluation --no-default-features --features "$features"
done
for features in "" flex flex,openslide flex,hdf5 wgpu cuda flex,wgpu,cuda,fusion; do
    check -p gensis --no-default-features --features "$features"
done
