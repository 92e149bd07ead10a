"""Times what PyTorch has in place of three of the engine's kernels, and prints one JSON line.

    python time_operations.py --data DIR [--device cpu|cuda:0] [--threads N]

- spmm: one product of the adjacency (CSR) with N x d;
- project: all modalities' rows of a batch's distinct items, gathered, and the linear layer on them;
- top_k: the K best items of every user with held-out items, a batch of users at a time: scores by
  matmul, training items masked, torch.topk.
"""

import argparse
import json
import pathlib
import statistics
import time

import torch

from bm3 import normalised_adjacency
from time_step import read, read_rows


def timed(device, repeats, work):
    """Median, least and most seconds of a call, after two to warm up."""
    seconds = []
    for number in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            seconds.append(time.perf_counter() - begin)
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}


def top_k(predicted, users, items, ids, masked, k, batch):
    item_rows = predicted[users:]
    for start in range(0, len(ids), batch):
        chosen = ids[start:start + batch]
        scores = predicted[chosen] @ item_rows.T
        rows, columns = masked[start]
        scores[rows, columns] = -torch.inf
        torch.topk(scores, min(k, items))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--embedding-size", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=50)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(999)
    device, d = torch.device(arguments.device), arguments.embedding_size
    train, users, items, features = read(arguments.data)
    adjacency = normalised_adjacency(users, items, train[:, 0], train[:, 1], False, torch.float32).to(device)
    nodes = torch.randn(users + items, d, device=device)
    batch = train[torch.randperm(len(train))[:arguments.batch_size]]
    batch_items = batch[:, 1].unique().to(device)
    tables = [table.to(device) for table in features.values()]
    layers = [(torch.randn(d, table.shape[1], device=device), torch.zeros(d, device=device)) for table in tables]

    rows = read_rows(arguments.data)
    held_out = torch.from_numpy(rows[rows[:, 2] > 0][:, 0]).unique()
    held_out = held_out[torch.isin(held_out, train[:, 0])]
    # What a user trained on, as places in the scores of each batch of users.
    own = [[] for _ in range(users)]
    for user, item in train[:, :2].tolist():
        own[user].append(item)
    masked = {}
    for start in range(0, len(held_out), arguments.batch_size):
        places = [(row, item) for row, user in enumerate(held_out[start:start + arguments.batch_size].tolist())
                  for item in own[user]]
        masked[start] = tuple(torch.tensor(part, device=device) for part in zip(*places))
    held_out = held_out.to(device)

    def project():
        for table, (weight, bias) in zip(tables, layers):
            torch.nn.functional.linear(table[batch_items], weight, bias)

    with torch.inference_mode():
        operations = {
            "spmm": timed(device, arguments.repeats, lambda: adjacency @ nodes),
            "project": timed(device, arguments.repeats, project),
            "top_k": timed(device, max(3, arguments.repeats // 3), lambda: top_k(
                nodes, users, items, held_out, masked, arguments.top_k, arguments.batch_size)),
        }
    print(json.dumps({"operations": operations, "distinct_items": len(batch_items), "users": len(held_out),
                      "torch": torch.__version__, "device": str(device)}))


if __name__ == "__main__":
    main()
