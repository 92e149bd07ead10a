#!/usr/bin/env python3
"""Runs the engine and the PyTorch peer in turn on the same data and prints medians and ratios.

    python3 benches/compare.py --data DIR --python PEER_VENV/bin/python [--threads 2] [--rounds 3] [--device 0]

The engine's figure is the time of an epoch in `bm3-engine bench`, over its steps, after an epoch to
warm up. The peer is one process (peer/worker.py) that does nothing while the engine is measured. With
--operations, `cargo bench --bench alone` or the program --alone also measures three kernels alone,
beside PyTorch's counterparts. This script needs only the standard library; the peer needs
benches/peer/requirements.txt.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def run(command):
    """Runs a command and parses the JSON line that it prints."""
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nended with {result.returncode}:\n{result.stderr}")
    return json.loads(result.stdout)


def engine(arguments, frozen):
    """Seconds per step of some epochs, seconds of an evaluation, and the most memory in use."""
    measured = run([arguments.engine, "bench", "--data", arguments.data, "--device", arguments.device,
                    "--threads", arguments.threads, "--repeats", arguments.epochs, "--json",
                    f"--freeze-features={'true' if frozen else 'false'}"])["measured"]
    spread = measured["epoch_seconds"]
    seconds = [spread[name] / measured["steps_per_epoch"] for name in ("least", "median", "most")]
    return {"seconds": seconds, "memory": measured["peak_memory"], "evaluation": measured["evaluate_seconds"]["median"]}


def engine_operations(arguments):
    command = arguments.alone or ["cargo", "bench", "--quiet", "--bench", "alone", "--"]
    return run([*command, "--data", arguments.data, "--device", arguments.device,
                "--threads", arguments.threads])["operations"]


class Peer:
    """The PyTorch process."""

    def __init__(self, arguments):
        device = "cpu" if arguments.device == "cpu" else f"cuda:{arguments.device}"
        command = [arguments.python, "-W", "ignore", HERE / "peer" / "worker.py", "--data", arguments.data,
                   "--device", device, "--threads", arguments.threads, "--steps", arguments.steps]
        self.process = subprocess.Popen([str(word) for word in command], text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"the peer ended with {self.process.wait()} when asked for {request}")
        return json.loads(answer)

    def step(self, mode, frozen):
        answer = self.ask(mode=mode, freeze_features=frozen)
        spread = answer["seconds_per_step"]
        # On the CPU the process's memory also holds earlier models, so it says nothing about this one.
        return {"seconds": [spread[name] for name in ("min", "median", "max")], "memory": answer["peak_device_bytes"]}


def compare_steps(arguments, peer):
    contestants = {
        "engine, features trained": lambda: engine(arguments, False),
        "engine, features frozen": lambda: engine(arguments, True),
        "reference, features trained": lambda: peer.step("reference", False),
        "reference, features frozen": lambda: peer.step("reference", True),
        "optimised, features frozen": lambda: peer.step("optimised", True),
    }
    if arguments.device != "cpu":
        contestants["optimised, CUDA graph, features frozen"] = lambda: peer.step("graph", True)
    rounds = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, measure in contestants.items():
            rounds[name].append(measure())
    device = "CPU" if arguments.device == "cpu" else f"GPU {arguments.device}"
    print(f"Milliseconds per step, {device}, {arguments.threads} threads, {arguments.rounds} rounds in turn\n")
    print("| | median | least | most | memory, MB |\n|---|---:|---:|---:|---:|")
    medians = {}
    for name, measured in rounds.items():
        medians[name] = statistics.median(one["seconds"][1] for one in measured)
        least, most = min(one["seconds"][0] for one in measured), max(one["seconds"][2] for one in measured)
        memory = max((one["memory"] or 0) for one in measured)
        figures = " | ".join(f"{1e3 * value:.4g}" for value in (medians[name], least, most))
        print(f"| {name} | {figures} | {f'{memory / 1e6:,.0f}' if memory else ''} |")
    evaluation = statistics.median(one["evaluation"] for one in rounds["engine, features frozen"])
    print(f"\nThe engine's evaluation of both splits takes {1e3 * evaluation:.4g} ms.")
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


def compare_operations(arguments, peer):
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        ours.append(engine_operations(arguments))
        theirs.append(peer.ask(operations=True)["operations"])
    print("\n| operation alone, ms | engine | PyTorch | PyTorch's time over the engine's |\n|---|---:|---:|---:|")
    for name, what in [("spmm", "torch.sparse CSR"), ("project", "gather + linear"), ("top_k", "matmul + topk")]:
        own, other = (statistics.median(one[name]["median"] for one in rounds) for rounds in (ours, theirs))
        print(f"| {name} beside {what} | {1e3 * own:.4g} | {1e3 * other:.4g} | {other / own:.1f}× |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--engine", default="target/release/bm3-engine")
    parser.add_argument("--alone", nargs="+", metavar="COMMAND", help="what runs benches/alone.rs [cargo bench]")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--device", default="cpu", help="cpu, or the number of a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="the engine's of a round")
    parser.add_argument("--steps", type=int, default=8, help="the peer's of a round")
    parser.add_argument("--operations", action="store_true", help="three kernels alone as well")
    arguments = parser.parse_args()
    peer = Peer(arguments)
    compare_steps(arguments, peer)
    if arguments.operations:
        compare_operations(arguments, peer)


if __name__ == "__main__":
    main()
