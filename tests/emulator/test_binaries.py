#!/usr/bin/env python3
"""Builds test targets and prints the paths of their programs, one a line.

    python3 tests/emulator/test_binaries.py [--release] [TARGET ...]

The default targets compare the kernels with other implementations. The programs can then run
without cargo, to which their environment would apply, too.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGETS = ["kernels", "golden"]


def build(targets, release=False):
    """Builds test targets; returns their programs by target name."""
    command = ["cargo", "test", "--locked", "--no-run", "--message-format=json-render-diagnostics"]
    command += ["--release"] if release else []
    command += [argument for target in targets for argument in ("--test", target)]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {result.returncode}")
    messages = (json.loads(line) for line in result.stdout.splitlines())
    programs = {message["target"]["name"]: message["executable"] for message in messages
                if message["reason"] == "compiler-artifact" and "test" in message["target"]["kind"]}
    return {target: programs[target] for target in targets}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", action="store_true")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    arguments = parser.parse_args()
    for program in build(arguments.targets or TARGETS, arguments.release).values():
        print(program)


if __name__ == "__main__":
    main()
