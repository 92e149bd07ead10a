"""Data with something to find, a model trained on it, and the program."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bm3_engine import BM3

USERS, ITEMS, TASTES = 60, 40, 4


def settings(**others):
    """Those of all tests, and others."""
    shared = dict(embedding_size=16, layers=2, batch_size=64, learning_rate=5e-3, device="cpu")
    return {**shared, "epochs": 8, **others}


class Data:
    """Users who like the items of their taste, which features tell."""

    def __init__(self) -> None:
        random = np.random.default_rng(5)
        users, items = random.integers(0, USERS, 2400), random.integers(0, ITEMS, 2400)
        kept = (users % TASTES == items % TASTES) & (items < ITEMS - 2)
        pairs = np.unique(np.stack([users[kept], items[kept]], 1), axis=0)
        random.shuffle(pairs)
        self.users, self.items = pairs[:, 0], pairs[:, 1]
        taste = np.arange(ITEMS) % TASTES
        centres = random.normal(size=(TASTES, 12))
        noise = random.normal(scale=0.3, size=(ITEMS, 12))
        self.features = {
            "image": (centres[taste] + noise).astype(np.float32),
            "text": (centres[taste, :8] - noise[:, :8]).astype(np.float32),
        }

    def seen(self, user: int) -> set[int]:
        return set(self.items[self.users == user].tolist())


@pytest.fixture(scope="session")
def data() -> Data:
    return Data()


@pytest.fixture(scope="session")
def model(data: Data) -> BM3:
    """Trained on all interactions; not to be changed."""
    return BM3(**settings()).fit(data.users, data.items, data.features, validation_fraction=0)


@pytest.fixture(scope="session")
def program() -> Callable[..., str]:
    """Runs the program and gives what it prints."""
    path = os.environ.get("BM3_PROGRAM")
    if not path:
        pytest.skip("BM3_PROGRAM names no program; tests/python/run.sh does")

    def run(*arguments: object) -> str:
        command = [path, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def folder(program: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in MMRec's layout."""
    path = tmp_path_factory.mktemp("data") / "tiny"
    program("synth", "--shape", "tiny", "--out", path)
    return path
