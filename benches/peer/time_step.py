"""Times training steps of the peer on a data folder and prints one JSON line.

    python time_step.py --data DIR --mode reference|optimised|graph [--freeze-features] [--threads N]

`reference` waits for each step's loss, as the published training loop does to look for NaN. The other
modes wait once per block of steps.
"""

import argparse
import json
import pathlib
import resource
import statistics
import time

import numpy
import torch

from bm3 import Bm3, Settings, normalised_adjacency

# Steps timed together.
BLOCK = 8


def read_rows(directory):
    """User, item and label of every interaction."""
    path = next(iter(sorted(directory.glob("*.inter"))))
    with path.open() as file:
        header = file.readline().rstrip("\n").split("\t")
    columns = [header.index(name) for name in ("userID", "itemID", "x_label")]
    return numpy.loadtxt(path, delimiter="\t", skiprows=1, usecols=columns, dtype=numpy.int64)


class Data:
    """A data folder on a device: rows of interactions, training pairs, features, adjacency."""

    def __init__(self, directory, device):
        self.rows = read_rows(directory)
        self.users, self.items = int(self.rows[:, 0].max()) + 1, int(self.rows[:, 1].max()) + 1
        pairs = torch.from_numpy(self.rows[self.rows[:, 2] == 0])
        self.device = device
        self.features = {}
        for file in sorted(directory.glob("*_feat.npy")):
            table = numpy.load(file)[:self.items].astype(numpy.float32)
            self.features[file.name.removesuffix("_feat.npy")] = torch.from_numpy(table)
        adjacency = normalised_adjacency(self.users, self.items, pairs[:, 0], pairs[:, 1], False, torch.float32)
        self.adjacency = adjacency.to(device)
        self.pairs = pairs.to(device)


def model(data, arguments, mode, freeze_features):
    """A model with fresh parameters on the data's device."""
    d = arguments.embedding_size
    parameters = {
        "user_embedding": torch.nn.init.xavier_uniform_(torch.empty(data.users, d)),
        "item_embedding": torch.nn.init.xavier_uniform_(torch.empty(data.items, d)),
        "predictor.weight": torch.nn.init.xavier_normal_(torch.empty(d, d)),
        "predictor.bias": torch.zeros(d),
    }
    for name, table in data.features.items():
        parameters[f"modality.{name}.weight"] = torch.nn.init.xavier_normal_(torch.empty(d, table.shape[1]))
        parameters[f"modality.{name}.bias"] = torch.zeros(d)
        parameters[f"modality.{name}.features"] = table
    parameters = {name: value.to(data.device) for name, value in parameters.items()}
    settings = Settings(layers=arguments.layers, dropout=arguments.dropout,
                        reg_weight=arguments.reg_weight, freeze_features=freeze_features)
    return Bm3(settings, data.adjacency, parameters, data.features, mode)


def time_steps(data, arguments, mode, freeze_features):
    """Seconds per step of a fresh model, and the memory it needs."""
    torch.manual_seed(arguments.seed)
    on_gpu = data.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    peer = model(data, arguments, mode, freeze_features)
    size = arguments.batch_size
    order = torch.randperm(len(data.pairs), device=data.device)
    count = max(1, len(order) // size)
    batches = []
    for start in range(0, count * size, size):
        batch = data.pairs[order[start:start + size]]
        batches.append((batch[:, 0].contiguous(), batch[:, 1].contiguous()))
    done, loss = 0, 0.0

    def steps(number):
        nonlocal done, loss
        for _ in range(number):
            _, total = peer.step(*batches[done % len(batches)])
            done += 1
        loss = total.item()  # waits for the device

    steps(max(1, arguments.warmup))
    seconds = []
    # If each step is waited for, a block is one step.
    block = BLOCK if on_gpu and mode != "reference" else 1
    for _ in range(max(1, arguments.steps // block)):
        begin = time.perf_counter()
        steps(block)
        seconds.append((time.perf_counter() - begin) / block)
    median = statistics.median(seconds)
    return {
        "mode": mode,
        "freeze_features": freeze_features,
        "seconds_per_step": {"median": median, "min": min(seconds), "max": max(seconds)},
        "steps": block * len(seconds),
        "interactions_per_second": min(size, len(data.pairs)) / median,
        "torch": torch.__version__,
        "device": str(data.device),
        "threads": torch.get_num_threads(),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "loss": loss,
    }


def parser(description):
    """A parser for the arguments of a model and its batches."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--embedding-size", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--reg-weight", type=float, default=0.1)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--seed", type=int, default=999)
    return parser


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--mode", choices=["reference", "optimised", "graph"], default="reference")
    arguments.add_argument("--freeze-features", action="store_true")
    arguments = arguments.parse_args()
    torch.set_num_threads(arguments.threads)
    data = Data(arguments.data, torch.device(arguments.device))
    print(json.dumps(time_steps(data, arguments, arguments.mode, arguments.freeze_features)))


if __name__ == "__main__":
    main()
