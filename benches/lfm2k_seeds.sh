#!/usr/bin/env bash
# Trains on a data folder with the default settings (layers 1, dropout 0.5, reg_weight 0.1) for ten
# seeds and prints each one's test figures at the best validation epoch, their mean and deviation.
#
#   benches/lfm2k_seeds.sh FOLDER [SEEDS]
#
# The reference implementation's figures on lfm2k, text and audio: Recall@20 0.3295 (standard
# deviation over five seeds 0.0077), NDCG@20 0.2253 (0.0056).
set -euo pipefail
data=${1:?"give the data folder"}
seeds=${2:-10}
engine=$(dirname "$0")/../target/release/bm3-engine
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "seed  best epoch  Recall@20  NDCG@20"
for seed in $(seq "$seeds"); do
  "$engine" train --data "$data" --out "$work/$seed" --seed "$seed" --quiet >"$work/$seed.table"
  awk -v seed="$seed" '
    /"best_epoch"/ { gsub(/[^0-9]/, ""); epoch = $0 }
    /"test": *{/ { test = 1 }
    test && /"recall@20"/ { sub(/.*: /, ""); sub(/,/, ""); recall = $0 }
    test && /"ndcg@20"/ { sub(/.*: /, ""); sub(/,/, ""); ndcg = $0 }
    END { printf "%4d  %10d  %9.4f  %7.4f\n", seed, epoch, recall, ndcg }
  ' "$work/$seed/summary.json" | tee -a "$work/all"
done
awk '{ n++; r += $3; rr += $3 * $3; d += $4; dd += $4 * $4 }
  END {
    mr = r / n; md = d / n; unbiased = n > 1 ? n / (n - 1) : 0
    printf "mean              %9.4f  %7.4f\n", mr, md
    printf "deviation         %9.4f  %7.4f\n", sqrt((rr / n - mr * mr) * unbiased), sqrt((dd / n - md * md) * unbiased)
  }' "$work/all"
