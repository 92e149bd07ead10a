#!/usr/bin/env bash
# Builds the wheel and the program, installs the wheel in an environment of its own, and runs the
# package's tests there, then the type checkers. Arguments go to pytest.
#
# BM3_WHEEL_PROFILE=release tests what users get; the default shares its build with `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/../.."
profile=${BM3_WHEEL_PROFILE:-dev}
folder=$PWD/target/python
venv=$folder/venv/bin
output=$PWD/target/$([ "$profile" = dev ] && echo debug || echo "$profile")

[ -x "$venv/python" ] || python3 -m venv "$folder/venv"
"$venv/pip" install --quiet --disable-pip-version-check \
  --requirement tests/python/requirements.txt

"$venv/ruff" check --quiet --no-cache python tests/python examples
"$venv/ruff" format --quiet --no-cache --check python tests/python examples

cargo build --quiet --locked --profile "$profile" --bin bm3-engine
rm -rf "$folder/wheels"
"$venv/maturin" build --quiet --locked --profile "$profile" --out "$folder/wheels"
"$venv/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps \
  "$folder"/wheels/*.whl

# From elsewhere, so that the wheel is imported and not the sources.
export BM3_PROGRAM=$output/bm3-engine
root=$PWD
cd "$folder"
"$venv/pytest" -c "$root/pyproject.toml" --rootdir "$root" -o "cache_dir=$folder/pytest" \
  "$root/tests/python" "$@"
"$venv/mypy" --config-file "$root/pyproject.toml" -p bm3_engine
"$venv/stubtest" --mypy-config-file "$root/pyproject.toml" bm3_engine
