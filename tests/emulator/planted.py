#!/usr/bin/env python3
"""Plants bugs in copies of the kernels, one at a time, and demands that some test fails for each.

    python3 tests/emulator/planted.py [--target NAME ...] [--jobs N] [WORD ...]

Words select the bugs whose file, kernel, kind and description contain each of them. The bugs of a
source are in planted/SOURCE.toml:

    tests = ["adam"]              # names of tests to try first
    [[bug]]
    kernel = "adam"               # or, in a header, what its functions are for
    kind = "off by one"
    bug = "a thread past the end works"
    old = 'if (index >= elements)'    # occurs once in the source, so that no entry goes stale
    new = 'if (index > elements)'
    tests = ["dense"]             # optional: as above, for this bug
    orders = [1]                  # optional: values of BM3_EMULATOR_ORDER that may show it [0, 1, 2]
    sanitize = true               # optional: only sanitizers can see it

    [[harmless]]                  # a barrier whose absence no test can show
    text = '...'
    why = "..."

Before any bug is planted, the list itself is checked: every kernel has a bug, every source three,
and every barrier is either removed by a bug of kind `missing barrier` or listed as harmless. A bug
is caught by a failing test, a crash or a hang. A copy that does not compile has a wrong entry.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib

import test_binaries

HERE = pathlib.Path(__file__).resolve().parent
KERNELS = test_binaries.ROOT / "kernels"
BARRIER = re.compile(r"__sync(?:threads|warp)\(\);")
ORDERS = [0, 1, 2]


@dataclasses.dataclass
class Bug:
    file: str
    kernel: str
    kind: str
    bug: str
    old: str
    new: str
    tests: list
    orders: list = dataclasses.field(default_factory=lambda: ORDERS)
    sanitize: bool = False

    def describe(self):
        return f"{self.file:18} {self.kernel:20} {self.kind:16} {self.bug}"


def barriers(text, part):
    """The offsets in a source of the barriers in `part`, which must occur exactly once in it."""
    if text.count(part) != 1:
        raise ValueError(f"found {text.count(part)} times in the source, not once: {part!r}")
    return {text.index(part) + match.start() for match in BARRIER.finditer(part)}


def read_bugs():
    """Returns all bugs, and the problems of the list."""
    bugs, problems = [], []
    for path in sorted(KERNELS.glob("*.cu*")):
        text = path.read_text()
        entries = HERE / "planted" / f"{path.name}.toml"
        entries = tomllib.loads(entries.read_text()) if entries.exists() else {}
        tests = entries.get("tests", [])
        own = [Bug(**{"file": path.name, "tests": tests} | entry) for entry in entries.get("bug", [])]
        missing = {match.start() for match in BARRIER.finditer(text)}
        for bug in own:
            try:
                removed = barriers(text, bug.old)
                if len(removed) - len(BARRIER.findall(bug.new)) != (bug.kind == "missing barrier"):
                    problems.append(f"{bug.describe()}: its kind and the barriers removed disagree")
                elif bug.kind == "missing barrier":
                    missing -= removed
            except ValueError as error:
                problems.append(f"{bug.describe()}: {error}")
        for entry in entries.get("harmless", []):
            try:
                missing -= barriers(text, entry["text"])
            except ValueError as error:
                problems.append(f"{path.name}, harmless: {error}")
        lines = [text[:place].count("\n") + 1 for place in sorted(missing)]
        problems += [f"{path.name}:{line}: no entry removes this barrier" for line in lines]
        if len(own) < 3:
            problems.append(f"{path.name}: {len(own)} bugs, fewer than three")
        bugs += own
    names = (test_binaries.ROOT / "src/cuda/kernels.rs").read_text().split("NAMES: &[&str] = &[")[1]
    for name in re.findall(r'"(\w+)"', names.split("];")[0]):
        if all(bug.kernel != name for bug in bugs):
            problems.append(f"kernel {name}: no bug")
    return bugs, problems


def kill(process):
    # The whole group: the processes that it started must end, too.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run(command, environment, seconds):
    """Runs a test program; returns what caught the bug, or None if all tests pass.

    The first test that fails ends the run."""
    process = subprocess.Popen(command, cwd=test_binaries.ROOT, env=os.environ | environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    hung = threading.Event()
    timer = threading.Timer(seconds, lambda: (hung.set(), kill(process)))
    timer.start()
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if failed := re.match(r"test (\S+) .*FAILED$", line):
                return failed[1]
        process.wait()
    finally:
        timer.cancel()
        kill(process)
        process.wait()
        process.stdout.close()
    if hung.is_set():
        return f"hang ({seconds:.0f} s)"
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return f"crash ({signal.Signals(-process.returncode).name})"
    if report := re.search(r"SUMMARY: (\w+): (\S+)|runtime error: (.*)", "".join(said)):
        return " ".join(part for part in report.groups() if part)
    return f"exit code {process.returncode}"


class Harness:
    def __init__(self, targets):
        self.programs = test_binaries.build(targets)
        self.limits = {}

    def attempt(self, target, order, filters, sanitize, environment, seconds):
        environment = environment | {"BM3_EMULATOR_ORDER": str(order), "BM3_EMULATOR_FLAGS": "-O1 -g0 -w",
                                     "BM3_GOLDEN_DIR": "tests/golden"}
        command = [HERE / "sanitize.sh", target, "--"] if sanitize else [self.programs[target]]
        return run([*command, *filters], environment, seconds)

    def measure(self, bugs):
        """Runs every target without a bug: all tests must pass, and their times set the limits.

        Sources compiled here are not compiled again for bugs that leave them alone."""
        for target in self.programs:
            for order in ORDERS:
                begin = time.monotonic()
                caught = self.attempt(target, order, [], False, {}, 600)
                if caught:
                    sys.exit(f"{target} fails without a bug, in order {order}: {caught}")
                seconds = time.monotonic() - begin
                self.limits[target] = max(self.limits.get(target, 60), 10 * seconds)
            print(f"{target}: {seconds:.1f} s without a bug", flush=True)
        if names := sorted({name for bug in bugs if bug.sanitize for name in bug.tests}):
            for target in self.programs:
                if caught := self.attempt(target, 0, names, True, {}, 600):
                    sys.exit(f"{target} fails without a bug, under sanitizers: {caught}")
        self.programs = dict(sorted(self.programs.items(), key=lambda entry: self.limits[entry[0]]))

    def hunt(self, bug):
        """Plants a bug and runs tests until one of them catches it."""
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            kernels = pathlib.Path(folder) / "kernels"
            shutil.copytree(KERNELS, kernels)
            source = kernels / bug.file
            source.write_text(source.read_text().replace(bug.old, bug.new))
            environment = {"BM3_KERNELS": str(kernels), "BM3_EMULATOR_FOLDER": folder}
            caught = None
            # This kernel's tests first; a target without tests of these names costs nothing.
            for target, names, order in ((target, names, order) for names in (bug.tests, [])
                                         for order in bug.orders for target in self.programs):
                caught = self.attempt(target, order, names, bug.sanitize, environment, self.limits[target])
                if caught:
                    caught = f"{target}, order {order}: {caught}"
                    break
            if not list(pathlib.Path(folder).glob("emulator-*/libcuda.so")):
                caught = None
                verdict = "DOES NOT COMPILE"
            else:
                verdict = caught or "NOT CAUGHT"
        return bug, caught is not None, verdict, time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", help=f"a test target {test_binaries.TARGETS}")
    parser.add_argument("--jobs", type=int, default=2, help="bugs at a time [2]")
    parser.add_argument("words", nargs="*", metavar="WORD")
    arguments = parser.parse_args()
    bugs, problems = read_bugs()
    if problems:
        sys.exit("\n".join(problems))
    bugs = [bug for bug in bugs if all(word in bug.describe() for word in arguments.words)]
    if not bugs:
        sys.exit(f"no bug is described by {' '.join(arguments.words)}")
    harness = Harness(arguments.target or test_binaries.TARGETS)
    harness.measure(bugs)
    missed = 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for bug, caught, verdict, seconds in pool.map(harness.hunt, bugs):
            missed += not caught
            print(f"{bug.describe():100} {seconds:5.1f} s  {verdict}", flush=True)
    print(f"{len(bugs) - missed} of {len(bugs)} bugs caught")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
