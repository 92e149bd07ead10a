#!/usr/bin/env python3
"""Compares the test metrics of two runs; fails where one of them differs by more than 0.002.

    python3 tests/gpu/compare_metrics.py RUN RUN
"""

import json
import pathlib
import sys

ALLOWED = 0.002


def main():
    first, second = (json.loads((pathlib.Path(run) / "summary.json").read_text())["test"] for run in sys.argv[1:])
    if first.keys() != second.keys():
        sys.exit(f"metrics of one run alone: {sorted(first.keys() ^ second.keys())}")
    differences = {name: abs(first[name] - second[name]) for name in first}
    for name, difference in differences.items():
        print(f"{name:14} {first[name]:.5f} {second[name]:.5f}  {difference:.5f}")
    if max(differences.values()) > ALLOWED:
        sys.exit(f"the runs differ by more than {ALLOWED}")


if __name__ == "__main__":
    main()
