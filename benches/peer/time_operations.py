"""Times PyTorch's counterparts of three of the engine's kernels and prints one JSON line.

    python time_operations.py --data DIR [--device cpu|cuda:0] [--threads N]

- spmm: one product of the adjacency (CSR) with N x d;
- project: all modalities' rows of a batch's distinct items, gathered, and the linear layer on them;
- top_k: the K best items of every user with held-out items, a batch of users at a time: scores by
  matmul, training items masked, torch.topk.
"""

import json
import statistics
import time

import numpy
import torch

from time_step import Data, parser


def timed(device, calls, work, repeats=7):
    """Median, least and most seconds per call, over `calls` calls in a row, after as many to warm up."""
    seconds = []
    for number in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 1:
            seconds.append((time.perf_counter() - begin) / calls)
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}


def masks(data, held_out, batch):
    """The users' training items, as (rows, columns) in the scores of each batch of users."""
    train = data.rows[data.rows[:, 2] == 0]
    train = train[numpy.argsort(train[:, 0], kind="stable")]
    begins = numpy.searchsorted(train[:, 0], held_out)
    ends = numpy.searchsorted(train[:, 0], held_out, side="right")
    masked = {}
    for start in range(0, len(held_out), batch):
        lengths = (ends - begins)[start:start + batch]
        rows = numpy.repeat(numpy.arange(len(lengths)), lengths)
        within = numpy.arange(lengths.sum()) - numpy.repeat(numpy.cumsum(lengths) - lengths, lengths)
        columns = train[numpy.repeat(begins[start:start + batch], lengths) + within, 1]
        masked[start] = tuple(torch.from_numpy(part).to(data.device) for part in (rows, columns))
    return masked


def time_operations(data, arguments):
    """Seconds per call of each operation."""
    torch.manual_seed(arguments.seed)
    device, d = data.device, arguments.embedding_size
    nodes = torch.randn(data.users + data.items, d, device=device)
    batch = data.pairs[torch.randperm(len(data.pairs), device=device)[:arguments.batch_size]]
    batch_items = batch[:, 1].unique()
    tables = [table.to(device) for table in data.features.values()]
    layers = [(torch.randn(d, table.shape[1], device=device), torch.zeros(d, device=device)) for table in tables]
    held_out = numpy.intersect1d(data.rows[data.rows[:, 2] > 0][:, 0], data.rows[data.rows[:, 2] == 0][:, 0])
    masked = masks(data, held_out, arguments.batch_size)
    users = torch.from_numpy(held_out).to(device)

    def project():
        for table, (weight, bias) in zip(tables, layers):
            torch.nn.functional.linear(table[batch_items], weight, bias)

    def top_k():
        item_rows = nodes[data.users:]
        for start in range(0, len(users), arguments.batch_size):
            scores = nodes[users[start:start + arguments.batch_size]] @ item_rows.T
            rows, columns = masked[start]
            scores[rows, columns] = -torch.inf
            torch.topk(scores, min(arguments.top_k, data.items))

    calls = 20 if device.type == "cuda" else 1
    with torch.inference_mode():
        operations = {
            "spmm": timed(device, calls, lambda: data.adjacency @ nodes),
            "project": timed(device, calls, project),
            "top_k": timed(device, 1, top_k, repeats=3),
        }
    return {"operations": operations, "distinct_items": len(batch_items), "users": len(held_out),
            "torch": torch.__version__, "device": str(device)}


def main():
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(time_operations(Data(arguments.data, torch.device(arguments.device)), arguments)))


if __name__ == "__main__":
    main()
