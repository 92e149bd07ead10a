"""What `bm3-engine export` writes is loaded by the programs it is for, as the README says."""

import csv
import json

import faiss
import numpy as np
import pytest
from safetensors.numpy import load_file

from bm3_engine import BM3


@pytest.fixture(scope="module")
def trained(program, folder, tmp_path_factory):
    """A run, and its model."""
    run = tmp_path_factory.mktemp("runs") / "run"
    program("train", "--data", folder, "--out", run, "--epochs", 4, "--embedding-size", 16, "--device", "cpu")
    return run, BM3.load(run, device="cpu")


def export(program, run, folder, form):
    printed = program("export", "--model", run, "--out", folder, "--form", form)
    return printed.splitlines()


def test_every_form_has_the_rows(program, trained, tmp_path):
    run, model = trained
    rows = {"user": model.user_embeddings, "item": model.item_embeddings}
    npy = export(program, run, tmp_path, "npy")
    for kind, path in zip(rows, npy, strict=True):
        loaded = np.load(path)
        assert loaded.dtype == np.float32 and loaded.flags.c_contiguous
        np.testing.assert_array_equal(loaded, rows[kind])
    (path,) = export(program, run, tmp_path, "safetensors")
    for name, loaded in load_file(path).items():
        np.testing.assert_array_equal(loaded, rows[name.removesuffix("_embeddings")])
    for kind, path in zip(rows, export(program, run, tmp_path, "csv"), strict=True):
        with open(path, newline="") as file:
            table = list(csv.DictReader(file))
        assert [row["id"] for row in table] == [str(number) for number in range(len(rows[kind]))]
        # As pgvector reads it: numbers in brackets, in single precision.
        loaded = np.array([json.loads(row["embedding"]) for row in table], np.float32)
        np.testing.assert_array_equal(loaded, rows[kind])


def test_faiss_finds_the_lists(program, trained, tmp_path):
    run, model = trained
    export(program, run, tmp_path, "vectors")
    vectors, ids = np.load(tmp_path / "items/vector.npy"), np.load(tmp_path / "items/id.npy")
    assert ids.dtype == np.int64 and ids.shape == (len(vectors),)
    index = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
    index.add_with_ids(vectors, ids)
    scores, found = index.search(np.load(tmp_path / "users/vector.npy"), 20)
    expected, expected_scores = model.recommend(np.arange(model.n_users_), 20, with_seen=True)
    # faiss sums in another order: scores agree to rounding, items but where scores are as near.
    tolerance = 16 * np.finfo(np.float32).eps * np.abs(scores).max()
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=tolerance)
    differ = found != expected
    gaps = np.abs(np.diff(np.pad(expected_scores, ((0, 0), (1, 1)), constant_values=np.inf), axis=1))
    near = np.minimum(gaps[:, :-1], gaps[:, 1:]) <= 2 * tolerance
    assert not (differ & ~near).any()
