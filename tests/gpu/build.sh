#!/usr/bin/env bash
# Builds what tests/gpu/run.sh runs on a machine that has a GPU and no cargo: the program, the tests of
# the kernels and the bench of three operations alone, stripped, into target/gpu/bin.
#
#   tests/gpu/build.sh [TARGET ...]      test targets [kernels golden training streaming recommender]
set -euo pipefail
cd "$(dirname "$0")/../.."
export BM3_REQUIRE_CUDA=1
most=$((64 * 1024)) # KiB that may have to travel

bin=target/gpu/bin
rm -rf "$bin"
mkdir -p "$bin"
cargo build --release --locked --bin bm3-engine
cp target/release/bm3-engine "$bin"
[ $# -gt 0 ] || set -- kernels golden training streaming recommender
programs=$(python3 tests/emulator/test_binaries.py --release "$@")
for program in $programs; do
  name=$(basename "$program")
  cp "$program" "$bin/test-${name%-*}" # without cargo's hash
done
executable='import json, sys
messages = map(json.loads, sys.stdin)
print(*(line["executable"] for line in messages if line.get("executable") and "bench" in line["target"]["kind"]))'
cp "$(cargo bench --locked --no-run --bench alone --message-format=json-render-diagnostics | python3 -c "$executable")" \
  "$bin/bench-alone"
strip "$bin"/*
du -k "$bin"/*
size=$(du -sk "$bin" | cut -f1)
if [ "$size" -gt "$most" ]; then
  echo "$bin holds $size KiB, more than $most" >&2
  exit 1
fi
