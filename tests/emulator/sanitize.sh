#!/usr/bin/env bash
# Runs test targets with AddressSanitizer and UndefinedBehaviorSanitizer in the emulator and the
# kernels: they catch accesses outside of a buffer, use after free and undefined arithmetic.
#
#   tests/emulator/sanitize.sh [TARGET ...] [-- ARGUMENT ...]
#
# The default targets compare the kernels with other implementations. Arguments go to the test
# programs: names of tests. The test programs themselves are not instrumented, so the sanitizers'
# libraries are loaded before them. BM3_KERNELS names other kernels, as always.
set -euo pipefail
cd "$(dirname "$0")/../.."

targets=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  targets+=("$1")
  shift
done
[ $# -eq 0 ] || shift
programs=$(python3 tests/emulator/test_binaries.py "${targets[@]}")
compiler=${CXX:-c++}
address=$("$compiler" -print-file-name=libasan.so)
undefined=$("$compiler" -print-file-name=libubsan.so)

sanitizers="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
export BM3_EMULATOR_FLAGS="-O1 $sanitizers ${BM3_EMULATOR_FLAGS:-}"
# The driver's state lives as long as its process, which is no leak. Tests also start the compiler
# under these settings, and it may leak.
export ASAN_OPTIONS=detect_leaks=0:exitcode=99
export UBSAN_OPTIONS=print_stacktrace=1:exitcode=99
for program in $programs; do
  echo "== $(basename "$program")"
  LD_PRELOAD="$address $undefined" "$program" "$@"
done
