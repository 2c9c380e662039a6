#!/usr/bin/env bash
# Builds and runs every test of the workspace, and closes with one line of totals.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "== building and running the tests (the first time takes about fifteen minutes on two cores)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
cargo test --release --workspace --locked --no-fail-fast -- --show-output 2>&1 | tee "$log" || status=$?

grep -h '^skipped:' "$log" | sort -u || true
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored }' "$log"
exit "$status"
