#!/usr/bin/env python3
"""Times lists of the K best items beside implicit and faiss on the same embeddings, in one run.

    python3 benches/serving.py --shape electronics --python VENV/bin/python [--device cpu] [--threads 2] [--rounds 3]

Trains one epoch on a made-up data set (or takes --run RUNDIR with --data FOLDER) and exports the rows whose
products are the scores. Then it measures in turn, `--rounds` times: the engine from Rust (`bm3-engine bench
--model`) and, in the Python of --python (pip install numpy scipy implicit faiss-cpu), implicit's `recommend`,
faiss's exact inner product, and the engine's own wheel if it is installed there.

All leave out the items a user already has, except faiss, which cannot do that for many users at once: it searches
for as many more items as a user can have, at most K + 50 in all, and its lists are not filtered. Prints a Markdown
table with the medians of the rounds.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
BATCHES = (256, 4096)


def run(command):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nended with {result.returncode}:\n{result.stderr}")
    return result.stdout


def engine(arguments, model):
    """The figures of `bm3-engine bench --model`, under this script's names."""
    measured = json.loads(run([arguments.engine, "bench", "--model", model, "--device", arguments.device, "--threads",
                               arguments.threads, "--top-k", arguments.top_k, "--json"]))["measured"]
    figures = {"p50": measured["single"]["p50"], "p99": measured["single"]["p99"]}
    for rate in measured["batches"]:
        if rate["users"] in BATCHES:
            figures[f"batch {rate['users']}"] = rate["users_per_second"]
    return figures


def windows(single, batch, users):
    """Latencies and rates of two callables, over about two seconds each."""
    times, end, place = [], time.perf_counter() + 2, 0
    single(0)
    while time.perf_counter() < end:
        user = place * 0x9E3779B9 % users
        start = time.perf_counter()
        single(user)
        times.append(time.perf_counter() - start)
        place += 1
    times.sort()
    figures = {"p50": times[len(times) // 2], "p99": times[(len(times) - 1) * 99 // 100]}
    for size in BATCHES:
        chosen = [place * 0x9E3779B9 % users for place in range(size)]
        batch(chosen)
        times, end = [], time.perf_counter() + 2
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            batch(chosen)
            times.append(time.perf_counter() - start)
        figures[f"batch {size}"] = size / statistics.median(times)
    return figures


def peers(arguments):
    """Measures what is installed here; prints one JSON object a line."""
    import faiss
    import numpy
    import scipy.sparse
    from implicit.cpu.als import AlternatingLeastSquares

    rows = {kind: numpy.load(f"{arguments.peers}/{kind}_embeddings.npy") for kind in ("user", "item")}
    users, items = len(rows["user"]), len(rows["item"])
    inter = next(pathlib.Path(arguments.data).glob("*.inter"))
    with open(inter) as file:
        names = file.readline().rstrip("\n").split("\t")
        columns = [names.index(name) for name in ("userID", "itemID", "x_label")]
        pairs = numpy.loadtxt(file, delimiter="\t", usecols=columns, dtype=float).astype(numpy.int64)
    pairs = pairs[pairs[:, 2] == 0]
    seen = scipy.sparse.csr_matrix((numpy.ones(len(pairs), numpy.float32), (pairs[:, 0], pairs[:, 1])), (users, items))
    k, threads = arguments.top_k, arguments.threads

    model = AlternatingLeastSquares(factors=rows["user"].shape[1], num_threads=threads)
    model.user_factors, model.item_factors = rows["user"], rows["item"]
    implicit = windows(lambda user: model.recommend(user, seen[user], N=k),
                       lambda chosen: model.recommend(numpy.array(chosen), seen[chosen], N=k), users)
    print(json.dumps({"name": "implicit 0.7 recommend", **implicit}))

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(rows["item"].shape[1])
    index.add(rows["item"])
    longest = min(k + 50, k + int(seen.getnnz(1).max()))
    flat = windows(lambda user: index.search(rows["user"][user:user + 1], longest),
                   lambda chosen: index.search(rows["user"][chosen], longest), users)
    print(json.dumps({"name": f"faiss-cpu {faiss.__version__} IndexFlatIP, unfiltered", **flat}))

    try:
        import bm3_engine
    except ImportError:
        return
    own = bm3_engine.BM3.load(arguments.model, device=arguments.device, threads=threads)
    figures = windows(lambda user: own.recommend(user, k),
                      lambda chosen: own.recommend(numpy.array(chosen), k), users)
    print(json.dumps({"name": "bm3-engine from Python", **figures}))


def table(found):
    print(f"| | one user, p50 | p99 | {' | '.join(f'users/s, batches of {size}' for size in BATCHES)} |")
    print("|---|---:|---:|" + "---:|" * len(BATCHES))
    for name, rounds in found.items():
        median = {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}
        rates = " | ".join(f"{median[f'batch {size}']:,.0f}" for size in BATCHES)
        print(f"| {name} | {1e6 * median['p50']:,.0f} µs | {1e6 * median['p99']:,.0f} µs | {rates} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=HERE.parent / "target" / "release" / "bm3-engine")
    parser.add_argument("--shape", default="electronics")
    parser.add_argument("--run", help="a trained run, instead of one epoch on a made-up data set")
    parser.add_argument("--data", help="the folder that --run was trained on")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peers:
        return peers(arguments)
    with tempfile.TemporaryDirectory() as folder:
        data, model = arguments.data, arguments.run
        if not model:
            data, model = f"{folder}/data", f"{folder}/run"
            run([arguments.engine, "synth", "--shape", arguments.shape, "--out", data, "--image", 0, "--text", 0])
            run([arguments.engine, "train", "--data", data, "--out", model, "--epochs", 1, "--modalities", "none",
                 "--quiet", "--device", arguments.device])
        exported = f"{folder}/embeddings"
        run([arguments.engine, "export", "--model", model, "--out", exported])
        found = {}
        for _ in range(arguments.rounds):
            found.setdefault("bm3-engine from Rust", []).append(engine(arguments, model))
            lines = run([arguments.python, __file__, "--peers", exported, "--model", model, "--data", data, "--device",
                         arguments.device, "--threads", arguments.threads, "--top-k", arguments.top_k])
            for line in lines.splitlines():
                figures = json.loads(line)
                found.setdefault(figures.pop("name"), []).append(figures)
        table(found)


if __name__ == "__main__":
    main()
