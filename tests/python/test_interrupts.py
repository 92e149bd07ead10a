"""Ctrl-C, and other threads while the engine computes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from bm3_engine import BM3
from conftest import settings

ENDLESS = """
    import sys, time
    import numpy as np
    from bm3_engine import BM3

    random = np.random.default_rng(0)
    users, items = random.integers(0, 300, 20000), random.integers(0, 200, 20000)
    endless = dict(epochs=10**6, patience=10**6)
    model = BM3(embedding_size=16, batch_size=128, device="cpu", threads=THREADS, **endless)

    def callback(record):
        if record["epoch"] == 2:
            print("trains", flush=True)

    begun = None
    try:
        model.fit(users, items, callback=callback, directory=sys.argv[1] if len(sys.argv) > 1 else None)
    except KeyboardInterrupt:
        best = max(model.history_, key=lambda record: record["valid"]["recall@20"])
        assert model.best_epoch_ == best["epoch"]
        print("interrupted", len(model.history_) >= 2, model.recommend(0, k=3)[0].shape, flush=True)
    else:
        print("went on")
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on unix")
@pytest.mark.parametrize("threads", ["None", "1"])
def test_ctrl_c_ends_training_and_leaves_a_model(tmp_path, threads):
    script = textwrap.dedent(ENDLESS).replace("THREADS", threads)
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "trains\n"
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        assert process.stdout.readline() == "interrupted True (3,)\n"
        assert time.monotonic() - sent < 5
        assert process.wait() == 0
    kept = BM3.load(tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "state.safetensors").exists() and kept.n_users_ == 300


def test_other_threads_run_while_training(data):
    """A thread that counts gets on about as fast as without training beside it."""
    counts, done = [], threading.Event()

    def fit():
        model = BM3(**settings(epochs=10**6, threads=1))
        begun = time.monotonic()
        model.fit(
            data.users, data.items, callback=lambda _: time.monotonic() - begun > 1, validation_fraction=0
        )
        done.set()

    thread = threading.Thread(target=fit)
    thread.start()
    longest, last = 0.0, time.monotonic()
    while not done.is_set():
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        counts.append(None)
    thread.join()
    # Were the interpreter held, the loop would stand still for the second.
    assert len(counts) > 10_000 and longest < 0.5


def test_threads_may_ask_at_the_same_time(model):
    expected = model.recommend(np.arange(60), k=5)
    wrong = []

    def ask(first):
        for round in range(30):
            users = (np.arange(7) * first + round) % 60
            ids, scores = model.recommend(users, k=5)
            if not ((ids == expected[0][users]).all() and (scores == expected[1][users]).all()):
                wrong.append(users)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_threads_run_while_lists_are_made(model):
    done = threading.Event()
    spent = []

    def ask():
        begun = time.monotonic()
        model.recommend(np.arange(2_000_000) % 60, k=5)
        spent.append(time.monotonic() - begun)
        done.set()

    thread = threading.Thread(target=ask)
    thread.start()
    longest, last = 0.0, time.monotonic()
    while not done.is_set():
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    thread.join()
    assert longest < max(0.3 * spent[0], 0.2)


FORKS = """
    import multiprocessing
    import numpy as np
    from bm3_engine import BM3

    random = np.random.default_rng(0)
    users, items = random.integers(0, 50, 900), random.integers(0, 40, 900)

    def train():
        return BM3(embedding_size=8, epochs=2, device="cpu").fit(users, items)

    model = train()

    def ask(_):
        return (model.recommend(range(50))[0] == train().recommend(range(50))[0]).all()

    model.recommend(range(50))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(pool.map_async(ask, range(4)).get(60))
    print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_forked_processes_train_and_ask():
    """A child has none of its parent's threads, and must not wait for them."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr
