"""What scikit-learn expects of an estimator, and files and pickles of models."""

import copy
import doctest
import inspect
import pickle
import re

import numpy as np
import pytest
import sklearn.base
import sklearn.exceptions
from sklearn.utils.validation import check_is_fitted

import bm3_engine
from bm3_engine import BM3
from bm3_engine._parameters import PLACES, SETTINGS


def equal(left: BM3, right: BM3) -> bool:
    found = [model.recommend(range(60), k=9) for model in (left, right)]
    return all((a == b).all() for a, b in zip(*found))


def test_parameters_are_kept_as_they_are_given():
    names = [*SETTINGS, *PLACES]
    assert sorted(inspect.signature(BM3).parameters) == sorted(names)
    assert all(f"{name}" in BM3.__doc__ for name in names)
    lengths = [3, 20]
    model = BM3(layers=2, top_k=lengths)
    assert model.get_params()["top_k"] is lengths and sorted(model.get_params()) == sorted(names)
    assert repr(model) == "BM3(layers=2, top_k=[3, 20])" and repr(BM3()) == "BM3()"
    assert repr(BM3(top_k=[5, 10, 20, 50])) == "BM3()"
    assert model.set_params(dropout=0.25, device="cpu") is model
    assert (model.dropout, model.device, model.layers) == (0.25, "cpu", 2)
    with pytest.raises(ValueError, match="lairs: there is no such parameter; there are emb"):
        model.set_params(lairs=2)
    with pytest.raises(ValueError, match="dropout: 2 found"):
        model.set_params(layers=3, dropout=2)
    for name, value in {"device": "gpu", "threads": 0, "feature_storage": "x"}.items():
        with pytest.raises(ValueError, match=f"{name}: .* found"):
            model.set_params(layers=3, **{name: value})
    assert (model.dropout, model.layers, model.device) == (0.25, 2, "cpu")
    with pytest.raises(TypeError):
        BM3(64)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("embedding_size", 66, "embedding_size: 66 found, a multiple of 4 from 4 to 512 expected"),
        ("layers", 5, "layers: 5 found, 0 to 4 expected"),
        ("layers", 1.5, "layers: 1.5 found, a whole number from 0 expected"),
        ("dropout", float("nan"), "dropout: NaN found, at least 0 and less than 1 expected"),
        ("dropout", "half", "dropout: 'half' found, a number expected"),
        ("learning_rate", 0, "learning_rate: 0 found, a number greater than 0 expected"),
        ("batch_size", -1, "batch_size: -1 found, a whole number from 0 expected"),
        ("propagation", "GCN", "propagation: 'GCN' found, 'light' or 'gcn' expected"),
        ("order", None, "order: None found, 'random' or 'file' expected"),
        ("top_k", [0], "top_k: 0 found, 1 to 1024 expected"),
        ("device", "gpu", "device: `gpu` found, `cpu`, `auto` or a GPU's number expected"),
        ("threads", 0, "threads: 0 found, a whole number from 1, or None, expected"),
        ("threads", -1, "threads: -1 found"),
        ("threads", 4097, "threads: 4097 found, at most 4096 expected"),
        ("threads", 1.5, "threads: 1.5 found"),
        ("device_memory", "8G", "device_memory: '8G' found, bytes from 1, a size as in '8GB', '1.5GB' or"),
        ("device_memory", 0, "device_memory: 0 found"),
        ("feature_storage", "x", "feature_storage: 'x' found, 'auto' or 'resident' or 'stream' expected"),
        ("feature_type", "f16", "feature_type: f16 found, auto or f32 for features that are trained"),
    ],
)
def test_wrong_values_are_refused(name, value, problem):
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}"):
        BM3(**{name: value})


def test_memory_is_a_number_of_bytes_or_a_text():
    for memory in (None, 1, 8_000_000_000, np.int64(5), "8GB", "1.5 GiB"):
        assert BM3(device_memory=memory).device_memory is memory


def test_numbers_of_numpy_are_numbers():
    model = BM3(layers=np.int64(2), dropout=np.float32(0.5), self_loops=np.bool_(True), top_k=np.array([5]))
    assert model.layers == 2


def test_scikit_learn_clones(data, model):
    twin = sklearn.base.clone(model)
    assert twin is not model and twin.get_params() == model.get_params()
    with pytest.raises(sklearn.exceptions.NotFittedError):
        check_is_fitted(twin)
    check_is_fitted(model)
    assert equal(twin.fit(data.users, data.items, data.features, validation_fraction=0), model)


def test_models_come_back_from_their_files(data, model, tmp_path):
    path = tmp_path / "m.safetensors"
    model.save(path)
    back = BM3.load(path, device="cpu", threads=1)
    assert equal(back, model) and back.history_ == []
    assert (back.n_users_, back.n_items_, back.modalities_) == (60, 40, {"image": 12, "text": 8})
    assert {**back.get_params(), "threads": None, "top_k": tuple(back.top_k)} == model.get_params()
    assert (back.user_embeddings == model.user_embeddings).all()
    again = tmp_path / "again.safetensors"
    back.save(str(again))
    assert path.read_bytes() == again.read_bytes()
    with pytest.raises(OSError):
        model.save(tmp_path / "no" / "folder" / "m.safetensors")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="m.safetensors"):
        BM3.load(path)


def test_models_are_pickled(data, model):
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert equal(copied, model) and copied.history_ == model.history_
        assert copied.get_params() == model.get_params()
        features = {name: array[:1] for name, array in data.features.items()}
        # Trained features, which cold items are scored by, come along.
        assert copied.add_items(features).tolist() == [40]
        # Those that are added would not.
        for lose in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(ValueError, match="this BM3 has 1 items of add_items"):
                lose(copied)
        copied.add_items(features)
        with pytest.raises(ValueError, match="this BM3 has 2 items of add_items"):
            pickle.dumps(copied)
    fresh = pickle.loads(pickle.dumps(BM3(layers=3)))
    assert fresh.layers == 3
    with pytest.raises(bm3_engine.NotFittedError):
        fresh.recommend(0)


def test_the_examples_of_the_docstrings_run():
    failed, attempted = doctest.testmod(bm3_engine)
    assert failed == 0 and attempted > 5


def test_the_face_of_the_package():
    assert re.fullmatch(r"\d+\.\d+\.\d+", bm3_engine.__version__)
    assert issubclass(bm3_engine.Error, RuntimeError)
    first, *gpus = bm3_engine.devices()
    assert first["device"] == "cpu" and first["problem"] is None
    assert [gpu["device"] for gpu in gpus] == list(range(len(gpus)))
    for name in dir(BM3):
        if not name.startswith("_"):
            assert inspect.getdoc(getattr(BM3, name)), name
