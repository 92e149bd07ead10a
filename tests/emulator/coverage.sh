#!/usr/bin/env bash
# Prints a table of the lines of kernels/ that run in tests; fails below 100 %.
#
#   tests/emulator/coverage.sh [TARGET ...]      test targets [kernels golden]
#
# Inline functions that nothing calls are compiled too, so that they count as lines that never run.
# Needs GCC's C++ compiler and its gcov (GCOV names another).
set -euo pipefail
cd "$(dirname "$0")/../.."

programs=$(python3 tests/emulator/test_binaries.py "$@")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# All threads and processes add to the same counters: atomically, and in files of one folder.
export BM3_EMULATOR_FOLDER=$folder
export BM3_EMULATOR_FLAGS="-O0 --coverage -fprofile-update=atomic -fprofile-filter-files=.*/kernels/.* -fkeep-inline-functions"
# Only the cases that every checkout has.
export BM3_GOLDEN_DIR=tests/golden
export GCOV_PREFIX=$folder/counters GCOV_PREFIX_STRIP=99
for program in $programs; do
  echo "== $(basename "$program")"
  "$program"
done
cp "$folder"/emulator-*/*.gcno "$folder/counters"
python3 tests/emulator/coverage.py kernels "$folder"/counters/*.gcda
