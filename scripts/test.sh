#!/usr/bin/env bash
# Builds and runs every test of the workspace, and closes with one line of totals.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "== building and running the tests (the first time takes about fifteen minutes on two cores)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
cargo test --release --workspace --locked --no-fail-fast -- --show-output 2>&1 | tee "$log" || status=$?

# Tests that end early with a reason have run nothing: they count as skipped.
reasons=$(grep -h '^skipped:' "$log" | sort -u || true)
echo "$reasons"
awk -v reasons="$(grep -c . <<<"$reasons" || true)" '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "%d passed, %d failed, %d skipped\n", passed - reasons, failed, ignored + reasons }' "$log"
exit "$status"
