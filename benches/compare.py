#!/usr/bin/env python3
"""Runs the engine and the PyTorch peer in turn on the same data and prints medians and ratios.

    python3 benches/compare.py --data DIR --python PEER_VENV/bin/python [--threads 2] [--rounds 3] [--device 0]

The engine's figure is what `bm3-engine train --json` says an epoch took, over its steps; the first
epoch of each process is warm-up. With --operations, three kernels alone are measured as well, beside
what PyTorch has in their place (`bm3-engine bench`, peer/time_operations.py). Needs nothing but the standard library here; the peer needs
benches/peer/requirements.txt.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent


def run(command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nended with {result.returncode}:\n{result.stderr}")
    return [json.loads(line) for line in result.stdout.splitlines()]


def engine(arguments, frozen):
    """Seconds per step of each epoch but the first."""
    with tempfile.TemporaryDirectory() as directory:
        command = [arguments.engine, "train", "--data", arguments.data, "--out", f"{directory}/run",
                   "--epochs", str(arguments.epochs), "--threads", str(arguments.threads),
                   "--device", arguments.device, "--json", f"--freeze-features={'true' if frozen else 'false'}"]
        epochs = [event for event in run(command) if event["event"] == "epoch"]
    steps = epochs[0]["step"]
    return [epoch["train_seconds"] / steps for epoch in epochs[1:]]


def peer(arguments, mode, frozen):
    """The median seconds per step of one process."""
    command = [arguments.python, "-W", "ignore", HERE / "peer" / "time_step.py", "--data", arguments.data,
               "--device", "cpu" if arguments.device == "cpu" else f"cuda:{arguments.device}",
               "--mode", mode, "--threads", str(arguments.threads), "--steps", str(arguments.steps)]
    if frozen:
        command.append("--freeze-features")
    return [run(command)[-1]["seconds_per_step"]["median"]]


def engine_operations(arguments):
    """Seconds of a call of each operation; `project` of all modalities."""
    command = [arguments.engine, "bench", "--data", arguments.data, "--device", arguments.device,
               "--threads", str(arguments.threads), "--freeze-features", "--repeats", "1", "--json"]
    measured = run(command)[-1]["measured"]
    seconds = {operation["name"]: operation["seconds"] / operation["calls"] for operation in measured["operations"]}
    seconds["project"] *= len(measured["modalities"])
    return seconds


def peer_operations(arguments):
    command = [arguments.python, "-W", "ignore", HERE / "peer" / "time_operations.py", "--data", arguments.data,
               "--device", "cpu" if arguments.device == "cpu" else f"cuda:{arguments.device}",
               "--threads", str(arguments.threads)]
    return {name: figures["median"] for name, figures in run(command)[-1]["operations"].items()}


def compare_operations(arguments):
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        ours.append(engine_operations(arguments))
        theirs.append(peer_operations(arguments))
    print("\n| operation alone, ms | engine | PyTorch | PyTorch's time over the engine's |\n|---|---:|---:|---:|")
    for name, what in [("spmm", "torch.sparse CSR"), ("project", "gather + linear"), ("top_k", "matmul + topk")]:
        own, other = (statistics.median(figures[name] for figures in rounds) for rounds in (ours, theirs))
        print(f"| {name} beside {what} | {1e3 * own:.4g} | {1e3 * other:.4g} | {other / own:.1f}× |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--engine", default="target/release/bm3-engine")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--device", default="cpu", help="cpu, or the number of a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--operations", action="store_true", help="three kernels alone as well")
    arguments = parser.parse_args()
    contestants = {
        "engine, features trained": lambda: engine(arguments, False),
        "engine, features frozen": lambda: engine(arguments, True),
        "reference, features trained": lambda: peer(arguments, "reference", False),
        "reference, features frozen": lambda: peer(arguments, "reference", True),
        "optimised, features frozen": lambda: peer(arguments, "optimised", True),
    }
    if arguments.device != "cpu":
        contestants["optimised, CUDA graph, features frozen"] = lambda: peer(arguments, "graph", True)
    seconds = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, measure in contestants.items():
            seconds[name] += measure()
    device = "CPU" if arguments.device == "cpu" else f"GPU {arguments.device}"
    print(f"Milliseconds per step, {device}, {arguments.threads} threads, {arguments.rounds} rounds in turn\n")
    print("| | median | least | most |\n|---|---:|---:|---:|")
    for name, values in seconds.items():
        figures = " | ".join(f"{1e3 * f(values):.4g}" for f in (statistics.median, min, max))
        print(f"| {name} | {figures} |")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print("\n| engine | peer | peer's time over the engine's |\n|---|---|---:|")
    pairs = [
        ("engine, features trained", "reference, features trained"),
        ("engine, features frozen", "reference, features trained"),
        ("engine, features frozen", "reference, features frozen"),
        ("engine, features frozen", "optimised, features frozen"),
        ("engine, features frozen", "optimised, CUDA graph, features frozen"),
    ]
    for ours, theirs in pairs:
        if theirs in medians:
            print(f"| {ours} | {theirs} | {medians[theirs] / medians[ours]:.1f}× |")
    if arguments.operations:
        compare_operations(arguments)


if __name__ == "__main__":
    main()
