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


class Alarm(Exception):
    pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no timer that sends signals")
def test_signals_end_lists_and_metrics_of_many_users():
    random = np.random.default_rng(0)
    users = np.arange(100_000)
    items = random.integers(0, 10_000, len(users))
    model = BM3(**settings(epochs=1, batch_size=10_000)).fit(users, items, validation_fraction=0)

    def alarmed(number, frame):
        raise Alarm

    before = signal.signal(signal.SIGALRM, alarmed)
    try:
        for ask in (lambda: model.recommend(users, k=50), lambda: model.evaluate(users, items)):
            begun = time.monotonic()
            ask()
            whole = time.monotonic() - begun
            begun = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, whole / 10)
            with pytest.raises(Alarm):
                ask()
            assert time.monotonic() - begun < 0.7 * whole
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def longest_pause(work):
    """For which share of its time a thread that works keeps this one from running at a stretch.

    `work` takes how much it does: so much that it takes a second, beside which what the system does
    with threads is little.
    """
    spent, size = [0.0], 1

    def timed():
        begun = time.monotonic()
        work(size)
        spent.append(time.monotonic() - begun)

    while spent[-1] <= 1:
        assert size < 2**12, "so much work takes longer"
        thread = threading.Thread(target=timed)
        longest, last = 0.0, time.monotonic()
        thread.start()
        while thread.is_alive():
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        thread.join()
        size *= 2
    return longest / spent[-1]


def test_other_threads_run_while_training():
    random = np.random.default_rng(0)

    def fit(size):
        # One epoch, so that no callback lets others run in between.
        users, items = random.integers(0, 2000, (2, 5000 * size))
        BM3(**settings(epochs=1, threads=1)).fit(users, items, validation_fraction=0)

    assert longest_pause(fit) < 0.5


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


def test_other_threads_run_while_lists_are_made(data):
    # Many items, so that it is lists that take the time and not what goes in and out.
    model = BM3(**settings(epochs=1)).fit(data.users, data.items, items=10_000)
    assert longest_pause(lambda size: model.recommend(np.arange(10_000 * size) % 60, k=5)) < 0.5


FORKS = """
    import multiprocessing, pickle, sys
    import numpy as np
    from bm3_engine import BM3

    # So many that they are sorted in parallel.
    random = np.random.default_rng(0)
    users, items = random.integers(0, 300, 20000), random.integers(0, 200, 20000)
    assert len(np.unique(users * 200 + items)) > 5000

    def train():
        return BM3(embedding_size=8, epochs=2, device="cpu").fit(users, items)

    model = train()
    model.save(sys.argv[1])
    pickled = pickle.dumps(model)

    def ask(_):
        # Our parent's model first: it has answered, but not made what similar items are found by.
        many, few, similar = model.recommend(range(50))[0], model.recommend(3)[0], model.similar_items(3)[0]
        for twin in (train(), BM3.load(sys.argv[1], device="cpu"), pickle.loads(pickled)):
            if not (
                (twin.similar_items(3)[0] == similar).all()
                and (twin.recommend(3)[0] == few).all()
                and (twin.recommend(range(50))[0] == many).all()
                and (twin.recommend_new([3, 4])[0] == model.recommend_new([3, 4])[0]).all()
                and (twin.rank(3, few)[0] == few).all()
                and (twin.predict(3, few) == model.predict(3, few)).all()
                and twin.evaluate(users, items) == model.evaluate(users, items)
            ):
                return False
        return True

    model.recommend(range(50))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(pool.map_async(ask, range(4)).get(60))
    print("done")
"""


def run(script, tmp_path):
    """Prints of a script, which is given a file's name."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(tmp_path / "m.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_forked_processes_train_and_ask(tmp_path):
    """A child has none of its parent's threads, and must not wait for them."""
    printed, problem = run(FORKS, tmp_path)
    assert printed == "done\n", problem


ONE_THREAD = """
    import os, pickle, sys
    from bm3_engine import BM3

    def threads():
        return len(os.listdir("/proc/self/task"))

    before = threads()
    model = BM3.load(sys.argv[1], device="cpu", threads=1)
    model.similar_items(3), model.recommend(3), model.recommend(range(50))
    print(threads() - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted as on Linux")
def test_one_thread_is_one_thread(tmp_path):
    random = np.random.default_rng(0)
    users, items = random.integers(0, 300, 20000), random.integers(0, 200, 20000)
    BM3(**settings(epochs=1)).fit(users, items).save(tmp_path / "m.safetensors")
    printed, problem = run(ONE_THREAD, tmp_path)
    assert printed == "1\n", problem
