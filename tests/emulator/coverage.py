#!/usr/bin/env python3
"""Prints which lines of a folder of kernels ran, from gcov's counters; fails below 100 %.

    python3 tests/emulator/coverage.py KERNELS COUNTERS.gcda ...

A line of a template or a macro counts as run when any of its instances ran. Code that was never
compiled has no counter, so every function must be compiled: an unused template is an error, too.
Lines under `#ifndef BM3_EMULATOR` are for the GPU alone and do not count.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys


def gcov(counters):
    """Yields the entries `files` of gcov's JSON for each counter file."""
    command = [os.environ.get("GCOV", "gcov"), "--json-format", "--stdout"]
    for path in counters:
        result = subprocess.run([*command, path.name], cwd=path.parent, capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"{command[0]} {path}: {result.stderr}")
        for line in result.stdout.splitlines():
            yield from json.loads(line)["files"]


def emulated_lines(text):
    """Yields the numbered source lines that the emulator compiles, except macro definitions."""
    hidden = continued = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#ifndef BM3_EMULATOR"):
            hidden = True
        macro = continued or line.startswith("#")
        continued = macro and line.endswith("\\")
        if not hidden and not macro:
            yield number, line.split("//")[0]
        if line.startswith("#endif"):
            hidden = False


def functions(text):
    """Yields the first and the last line of each function's head, up to the body."""
    start = None
    for number, line in emulated_lines(text):
        if start is None and re.search(r"\b__(device|global)__\b", line):
            start = number
        if start is not None and "{" in line:
            yield start, number
            start = None


def ranges(numbers):
    """Turns 3, 4, 5, 9 into `3-5, 9`."""
    parts = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", type=pathlib.Path)
    parser.add_argument("counters", type=pathlib.Path, nargs="+")
    arguments = parser.parse_args()
    kernels = arguments.kernels.resolve()
    runs = collections.defaultdict(collections.Counter)
    compiled = collections.defaultdict(set)
    for file in gcov(path.resolve() for path in arguments.counters):
        path = pathlib.Path(file["file"]).resolve()
        if path.parent == kernels:
            for line in file["lines"]:
                runs[path.name][line["line_number"]] += line["count"]
            compiled[path.name] |= {function["start_line"] for function in file["functions"]}

    print(f"{'file':20} {'lines':>5} {'run':>5} {'share':>7}  never run")
    lines = run = 0
    dead = []
    for path in sorted(kernels.glob("*.cu*")):
        counts = runs[path.name]
        missed = [number for number, count in counts.items() if count == 0]
        covered = len(counts) - len(missed)
        print(f"{path.name:20} {len(counts):5} {covered:5} {covered / max(1, len(counts)):7.1%}  {ranges(missed)}")
        lines, run = lines + len(counts), run + covered
        dead += [f"{path.name}:{first}" for first, last in functions(path.read_text())
                 if not any(first <= start <= last for start in compiled[path.name])]
    print(f"{'all':20} {lines:5} {run:5} {run / max(1, lines):7.1%}")
    if dead:
        print(f"functions that nothing instantiates: {', '.join(dead)}")
    if dead or lines == 0 or run < lines:
        sys.exit("some lines of the kernels run in no test")


if __name__ == "__main__":
    main()
