"""Times training steps of the peer on a data folder and prints one JSON line.

    python time_step.py --data DIR --mode reference|optimised|graph [--freeze-features] [--threads N]
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


def read_rows(directory):
    """User, item and label of every interaction."""
    path = next(iter(sorted(directory.glob("*.inter"))))
    with path.open() as file:
        header = file.readline().rstrip("\n").split("\t")
    columns = [header.index(name) for name in ("userID", "itemID", "x_label")]
    return numpy.loadtxt(path, delimiter="\t", skiprows=1, usecols=columns, dtype=numpy.int64)


def read(directory):
    """Training pairs, the numbers of users and items, and the features by modality."""
    rows = read_rows(directory)
    users, items = int(rows[:, 0].max()) + 1, int(rows[:, 1].max()) + 1
    train = torch.from_numpy(rows[rows[:, 2] == 0])
    features = {}
    for file in sorted(directory.glob("*_feat.npy")):
        table = numpy.load(file)[:items].astype(numpy.float32)
        features[file.name.removesuffix("_feat.npy")] = torch.from_numpy(table)
    return train, users, items, features


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--mode", choices=["reference", "optimised", "graph"], default="reference")
    parser.add_argument("--freeze-features", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--embedding-size", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--reg-weight", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=999)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    train, users, items, features = read(arguments.data)
    d = arguments.embedding_size
    parameters = {
        "user_embedding": torch.nn.init.xavier_uniform_(torch.empty(users, d)),
        "item_embedding": torch.nn.init.xavier_uniform_(torch.empty(items, d)),
        "predictor.weight": torch.nn.init.xavier_normal_(torch.empty(d, d)),
        "predictor.bias": torch.zeros(d),
    }
    for name, table in features.items():
        parameters[f"modality.{name}.weight"] = torch.nn.init.xavier_normal_(torch.empty(d, table.shape[1]))
        parameters[f"modality.{name}.bias"] = torch.zeros(d)
        parameters[f"modality.{name}.features"] = table
    device = torch.device(arguments.device)
    adjacency = normalised_adjacency(users, items, train[:, 0], train[:, 1], False, torch.float32)
    parameters = {name: value.to(device) for name, value in parameters.items()}
    settings = Settings(layers=arguments.layers, dropout=arguments.dropout,
                        reg_weight=arguments.reg_weight, freeze_features=arguments.freeze_features)
    model = Bm3(settings, adjacency.to(device), parameters, features, arguments.mode)
    train = train.to(device)
    order = torch.randperm(len(train), device=device)
    seconds = []
    loss = 0.0
    for step in range(arguments.warmup + arguments.steps):
        start = (step * arguments.batch_size) % max(1, len(train) - arguments.batch_size)
        batch = train[order[start:start + arguments.batch_size]]
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        _, total = model.step(batch[:, 0], batch[:, 1])
        loss = total.item()  # also waits for the device
        if step >= arguments.warmup:
            seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    print(json.dumps({
        "seconds_per_step": {"median": median, "min": min(seconds), "max": max(seconds)},
        "steps": len(seconds),
        "interactions_per_second": min(arguments.batch_size, len(train)) / median,
        "torch": torch.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "loss": loss,
    }))


if __name__ == "__main__":
    main()
