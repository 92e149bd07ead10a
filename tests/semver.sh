#!/usr/bin/env bash
# Holds the library's public functions and types to those of the last release: a change that breaks
# who embeds it needs a new version.
#
#   tests/semver.sh [REVISION]      to be compared with [the newest tag v*]
set -euo pipefail
cd "$(dirname "$0")/.."
revision=${1:-$(git tag --list 'v*' --sort=-version:refname | head -n 1)}
if [ -z "$revision" ]; then
  echo "skipped: nothing was released yet, so there is nothing to hold the library to"
  exit 0
fi
if ! command -v cargo-semver-checks >/dev/null; then
  cargo install --locked --quiet cargo-semver-checks
fi
cargo semver-checks --baseline-rev "$revision" --only-explicit-features --features ndarray
