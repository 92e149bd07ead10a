#!/usr/bin/env bash
# Everything there is to run on a GPU, from the programs that tests/gpu/build.sh collected:
#
#   tests/gpu/run.sh [STAGE ...]      machine tests training sweep serving sanitizers peer [all]
#
#   machine     the GPU, its driver, and what the program says of itself
#   tests       the kernels' tests and the golden cases, on GPU 0
#   training    a run on GPU 0 and one on the CPU agree; two runs on the GPU are the same to the bit
#   sweep       eight runs at once and one after another: the same bits, and how much faster
#   serving     how fast a model answers, on the GPU and on the CPU
#   sanitizers  compute-sanitizer over the tests and a short training
#   peer        time per step beside PyTorch, where python3 has it
#
# Needs bash, coreutils and python3. A failing step does not stop later ones; the exit code is 1 when
# any failed. OUT [target/gpu] receives log.txt and summary.md. BM3_TEST_DATA names a data folder
# for the training [../shared/data/lfm2k, or else a made-up set], BM3_TEST_EPOCHS its length [30],
# BM3_TEST_SHAPE the made-up set for the sweep [baby] and BM3_TEST_SWEEP_EPOCHS its length [100],
# BM3_TEST_SHAPES those for the peer [baby sports electronics], BM3_TEST_SERVING_SHAPE the one for
# serving [electronics].
set -euo pipefail
cd "$(dirname "$0")/../.."

bin=target/gpu/bin
engine=$bin/bm3-engine
out=${OUT:-target/gpu}
[ $# -gt 0 ] || set -- machine tests training sweep serving sanitizers peer
for stage in "$@"; do
  case $stage in
    machine | tests | training | sweep | serving | sanitizers | peer) ;;
    *) echo "unknown stage: $stage" >&2; exit 2 ;;
  esac
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
log=$out/log.txt summary=$out/summary.md
: >"$log"
failures=0 begun=()
export BM3_TEST_GPU=1 BM3_GOLDEN_DIR=tests/golden
[ -x "$engine" ] || { echo "there is no $engine: tests/gpu/build.sh makes it" >&2; exit 2; }

# report STEP RESULT SECONDS: a row of the summary
report() {
  printf '| %s | %s | %s |\n' "$@" | tee -a "$summary"
}

# result NAME CODE SECONDS LIMIT: what a step's exit code means
result() {
  local words=passed
  case $2 in
    0) ;;
    124 | 137) words="FAILED: not done after $4 s" ;;
    *) words="FAILED: exit code $2" ;;
  esac
  [ "$2" -eq 0 ] || failures=$((failures + 1))
  report "$1" "$words" "$3"
}

# step NAME LIMIT COMMAND...: runs a command for LIMIT seconds at most, its output to the log
step() {
  local name=$1 limit=$2 begin=$SECONDS code=0
  shift 2
  printf '\n== %s\n%s\n' "$name" "$*" >>"$log"
  timeout --kill-after=10 "$limit" "$@" >>"$log" 2>&1 || code=$?
  result "$name" "$code" $((SECONDS - begin)) "$limit"
}

# beside NAME LIMIT COMMAND...: begins a step that others do not wait for
beside() {
  local name=$1 limit=$2 number=${#begun[@]}
  shift 2
  begun+=("$name")
  {
    local begin=$SECONDS code=0
    printf '\n== %s\n%s\n' "$name" "$*"
    timeout --kill-after=10 "$limit" "$@" || code=$?
    printf '%s %s %s\n' "$code" $((SECONDS - begin)) "$limit" >"$work/ended-$number"
  } >"$work/log-$number" 2>&1 &
}

# Waits for the steps that were begun.
all_of_them() {
  local number code seconds limit
  wait
  for number in "${!begun[@]}"; do
    read -r code seconds limit <"$work/ended-$number"
    cat "$work/log-$number" >>"$log"
    result "${begun[$number]}" "$code" "$seconds" "$limit"
  done
  begun=()
}

machine() {
  if command -v nvidia-smi >/dev/null; then
    step "nvidia-smi" 60 nvidia-smi
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
  else
    report "nvidia-smi" "skipped: it is not here" 0
  fi
  step "bm3-engine --version" 60 "$engine" --version
}

tests() {
  local program
  for program in "$bin"/test-*; do
    [ "$program" = "$bin/test-streaming" ] || beside "$(basename "$program")" 300 "$program" --nocapture --test-threads=1
  done
  all_of_them
  # It copies beside kernels: not while others compute.
  [ ! -x "$bin/test-streaming" ] || step test-streaming 300 "$bin/test-streaming" --nocapture --test-threads=1
}

# train RUN DEVICE DATA EPOCHS: a step that leaves a run in $work/RUN
train() {
  step "train on $2: $1" 300 "$engine" train --data "$3" --device "$2" --epochs "$4" --out "$work/$1" --quiet
}

training() {
  local data=${BM3_TEST_DATA:-../shared/data/lfm2k} epochs=${BM3_TEST_EPOCHS:-30}
  if [ ! -d "$data" ]; then
    data=$work/training-set
    step "a data set for the training" 60 "$engine" synth --shape tiny --out "$data"
  fi
  train gpu 0 "$data" "$epochs"
  train gpu-again 0 "$data" "$epochs"
  train cpu cpu "$data" "$epochs"
  step "metrics on GPU and CPU agree" 60 python3 tests/gpu/compare_metrics.py "$work/gpu" "$work/cpu"
  sha256sum "$work"/gpu*/model.safetensors >>"$log" || true
  step "two runs have the same bits" 60 cmp "$work/gpu/model.safetensors" "$work/gpu-again/model.safetensors"
}

# milliseconds since some beginning
now() {
  echo $(($(date +%s%N) / 1000000))
}

sweep() {
  local features run begin serial together code
  step "a data set for the sweep" 120 "$engine" synth --shape "${BM3_TEST_SHAPE:-baby}" --out "$work/sweep-set"
  for features in true false; do
    local common=(--data "$work/sweep-set" --device 0 "--freeze-features=$features" --quiet
      --epochs "${BM3_TEST_SWEEP_EPOCHS:-100}" --patience 1000
      --grid "layers=1,2" --grid "dropout=0.3,0.5" --grid "reg-weight=0.1,0.01")
    begin=$(now)
    step "sweep, features frozen: $features, one after another" 300 \
      "$engine" sweep "${common[@]}" --jobs 1 --out "$work/serial-$features"
    serial=$(($(now) - begin)) begin=$(now)
    step "sweep, features frozen: $features, all at once" 300 \
      "$engine" sweep "${common[@]}" --jobs 8 --out "$work/together-$features"
    together=$(($(now) - begin)) code=0
    report "sweep, features frozen: $features" "one after another over all at once, in ms" "$serial / $together"
    for run in "$work/serial-$features"/*/; do
      cmp "$run/model.safetensors" "$work/together-$features/$(basename "$run")/model.safetensors" >>"$log" 2>&1 || code=1
    done
    step "sweep, features frozen: $features: the same bits" 60 [ "$code" -eq 0 ]
  done
}

serving() {
  local device shape=${BM3_TEST_SERVING_SHAPE:-electronics}
  step "a data set for serving" 120 "$engine" synth --shape "$shape" --image 0 --text 0 --out "$work/serving-set"
  step "a model for serving" 300 "$engine" train --data "$work/serving-set" --device 0 --modalities none --epochs 1 \
    --out "$work/serving" --quiet
  for device in 0 cpu; do
    step "how fast it answers on $device" 120 "$engine" bench --model "$work/serving" --device "$device"
    sed -n "/^== how fast it answers on $device/,\$p" "$log" | grep -E 'users, |^on |one user|batch of|caller' >>"$work/figures" || true
  done
}

sanitizers() {
  local tool program
  if ! command -v compute-sanitizer >/dev/null; then
    report "compute-sanitizer" "skipped: it is not here" 0
    return
  fi
  step "a data set for compute-sanitizer" 60 "$engine" synth --shape tiny --out "$work/small"
  local check
  for tool in memcheck racecheck synccheck initcheck; do
    check=(compute-sanitizer --tool "$tool" --error-exitcode 9)
    # The number of a kernel's parameters is found by asking for one too many.
    [ "$tool" != memcheck ] || check+=(--report-api-errors no)
    for program in "$bin"/test-*; do
      # Tests read whole buffers back, unfilled parts too.
      [ "$tool" = initcheck ] || beside "$tool: $(basename "$program")" 300 "${check[@]}" "$program" --test-threads=1
    done
    beside "$tool: training" 300 "${check[@]}" \
      "$engine" train --data "$work/small" --device 0 --epochs 1 --out "$work/$tool" --quiet
  done
  all_of_them
}

peer() {
  if ! python3 -c 'import numpy, torch; assert torch.cuda.is_available()' >>"$log" 2>&1; then
    report "PyTorch" "skipped: python3 has no PyTorch that sees a GPU" 0
    return
  fi
  for shape in ${BM3_TEST_SHAPES:-baby sports electronics}; do
    step "a data set for the peer, $shape" 120 "$engine" synth --shape "$shape" --out "$work/peer"
    step "engine and peer in turn, $shape" 300 python3 benches/compare.py --data "$work/peer" --engine "$engine" \
      --alone "$bin/bench-alone" --device 0 --threads 16 --epochs 10 --steps 40 --operations
    printf '\n%s\n' "$shape" >>"$work/figures"
    sed -n "/^== engine and peer in turn, $shape/,\$p" "$log" | grep '^|' >>"$work/figures" || true
    rm -rf "$work/peer"
  done
}

{
  echo "# Run of $(date -u '+%Y-%m-%d %H:%M') UTC"
  echo
  echo "| step | result | seconds |"
  echo "|---|---|---:|"
} | tee "$summary"
for stage in "$@"; do
  "$stage"
done
if [ -s "$work/figures" ]; then
  { echo; cat "$work/figures"; } | tee -a "$summary"
fi
echo
echo "$failures steps failed; $log has what they said"
[ "$failures" -eq 0 ]
