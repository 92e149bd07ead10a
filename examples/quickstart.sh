#!/usr/bin/env bash
# Builds the program, makes a small data set, trains on it, measures the model and asks it for
# recommendations. It writes everything to one temporary folder, whose name it prints.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked --bin bm3-engine
engine=target/release/bm3-engine
work=$(mktemp -d)
"$engine" synth --shape tiny --out "$work/tiny"
"$engine" train --data "$work/tiny" --out "$work/run" --device cpu
echo
echo "Recall@20 and more on the test split, once again from the saved model:"
"$engine" evaluate --model "$work/run"
echo
echo "Five items for each of three users:"
"$engine" recommend --model "$work/run" --users 0,1,2 --top-k 5 --scores
echo
echo "everything is in $work"
