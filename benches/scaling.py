#!/usr/bin/env python3
"""How the times of an epoch and an evaluation grow with the data and the settings, one at a time.

    python3 benches/scaling.py [--engine target/release/bm3-engine] [--device cpu] [--repeats 3] [AXIS ...]

Axes: interactions, items, width (D_m of the image features), embedding-size, layers, top-k, batch-size;
all of them by default. Every axis starts from the shape of Amazon Baby with trained features. Its first
row is measured again at the end, to show whether the machine got slower. Prints a Markdown table for
each axis: medians of `bm3-engine bench`, in seconds, and their ratio to the first row. Needs only the
standard library.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

# The flag of `synth` or of `bench` that changes on each axis.
AXES = {
    "interactions": ("synth", "--interactions", [160_000, 320_000, 640_000, 1_280_000]),
    "items": ("synth", "--items", [7_050, 14_100, 28_200, 56_400]),
    "width": ("synth", "--image", [512, 1024, 2048, 4096]),
    "embedding-size": ("bench", "--embedding-size", [32, 64, 128, 256]),
    "layers": ("bench", "--layers", [0, 1, 2, 3, 4]),
    "top-k": ("bench", "--top-k", [10, 20, 50, 100, 200]),
    "batch-size": ("bench", "--batch-size", [512, 1024, 2048, 4096, 8192]),
}


def run(command):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nended with {result.returncode}:\n{result.stderr}")
    return result.stdout


class Bench:
    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, pathlib.Path(folder)

    def data(self, flags):
        """A made-up data set with these flags, made on first use."""
        name = "-".join(["baby", *(str(flag).strip("-") for flag in flags)])
        path = self.folder / name
        if not path.exists():
            run([self.arguments.engine, "synth", "--shape", "baby", *flags, "--out", path])
        return path

    def measure(self, synth, flags):
        command = [self.arguments.engine, "bench", "--data", self.data(synth), "--device", self.arguments.device,
                   "--repeats", self.arguments.repeats, "--json", *flags]
        return json.loads(run(command))["measured"]

    def axis(self, name):
        kind, flag, values = AXES[name]
        # More items need more interactions, or batches would miss most of them.
        always = ["--interactions", 640_000] if name == "items" else []
        print(f"\n| {name} | epoch, s | least | most | to the first | evaluation, s | to the first |")
        print("|---:|---:|---:|---:|---:|---:|---:|")
        first = None
        for value in [*values, values[0]]:
            changed = [flag, value]
            measured = self.measure([*always, *changed] if kind == "synth" else always,
                                    changed if kind == "bench" else [])
            epoch, evaluation = measured["epoch_seconds"], measured["evaluate_seconds"]
            first = first or (epoch["median"], evaluation["median"])
            print(f"| {value:,} | {epoch['median']:.3f} | {epoch['least']:.3f} | {epoch['most']:.3f} "
                  f"| {epoch['median'] / first[0]:.2f} | {evaluation['median']:.3f} "
                  f"| {evaluation['median'] / first[1]:.2f} |", flush=True)
        return measured["device"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="target/release/bm3-engine")
    parser.add_argument("--device", default="cpu", help="cpu, or the number of a GPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("axes", nargs="*", metavar="AXIS")
    arguments = parser.parse_args()
    if unknown := set(arguments.axes) - set(AXES):
        parser.error(f"unknown axis: {', '.join(sorted(unknown))}; expected {', '.join(AXES)}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, folder)
        devices = {bench.axis(name) for name in arguments.axes or AXES}
    print(f"\n{', '.join(devices)}")


if __name__ == "__main__":
    main()
