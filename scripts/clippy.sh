#!/usr/bin/env bash
# Clippy, whose warnings are errors with the Rust that the code was written with: a later one may know more of them, and
# what is new to it must not keep anybody from testing.
set -euo pipefail
cd "$(dirname "$0")/.."

written_with=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
case $(rustc --version) in
  "rustc $written_with."*)
    echo "== clippy"
    strict=(-- -D warnings)
    ;;
  *)
    echo "== clippy (warnings are errors with Rust $written_with alone)"
    strict=()
    ;;
esac
cargo clippy --release --workspace --all-targets --locked --quiet "${strict[@]}"
