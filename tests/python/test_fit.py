"""What training takes and leaves."""

import json
import os
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import safetensors.numpy
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import bm3_engine
from bm3_engine import BM3, _devices
from bm3_engine._arrays import ids
from bm3_engine._progress import _somebody_looks
from conftest import ITEMS, USERS, settings


def same(left: BM3, right: BM3) -> bool:
    return bool(
        (left.user_embeddings == right.user_embeddings).all()
        and (left.item_embeddings == right.item_embeddings).all()
    )


def test_attributes_after_training(data):
    model = BM3(**settings())
    assert not hasattr(model, "history_")
    assert model.fit(data.users, data.items, data.features) is model
    assert (model.n_users_, model.n_items_) == (USERS, ITEMS)
    assert model.modalities_ == {"image": 12, "text": 8}
    assert [record["epoch"] for record in model.history_] == list(range(1, 9))
    record = model.history_[0]
    assert set(record["loss"]) == {
        "total", "ui", "iu", "align.image", "align.text", "mask.image", "mask.text", "reg"
    }  # fmt: skip
    best = max(model.history_, key=lambda record: record["valid"]["recall@20"])
    assert best["epoch"] == model.best_epoch_ and "test" not in record
    assert model.user_embeddings.shape == (USERS, 16)
    assert model.item_embeddings.shape == (ITEMS, 16)


def test_validation_is_split_off_or_given(data):
    whole = BM3(**settings()).fit(data.users, data.items, data.features, validation_fraction=0)
    assert "valid" not in whole.history_[0] and whole.best_epoch_ == 8
    steps = [
        BM3(**settings(batch_size=1, epochs=1)).fit(data.users, data.items, validation_fraction=share)
        for share in (0, 0.25)
    ]
    train, kept = (model.history_[0]["step"] for model in steps)
    assert train == len(data.users) and 0.7 * train < kept < 0.8 * train
    valid = (data.users[:50], data.items[:50])
    given_one = BM3(**settings(patience=2, epochs=200)).fit(
        data.users[50:], data.items[50:], data.features, validation=valid
    )
    assert len(given_one.history_) == given_one.best_epoch_ + 3 < 200


def test_the_same_interactions_in_every_form(data):
    reference = BM3(**settings()).fit(data.users, data.items, data.features)
    for dtype in (np.int32, np.uint32, np.int64, np.uint8, np.float64, np.float16):
        users, items = data.users.astype(dtype), data.items.astype(dtype)
        assert same(BM3(**settings()).fit(users, items, data.features), reference)
    lists = BM3(**settings()).fit(data.users.tolist(), data.items.tolist(), data.features)
    assert same(lists, reference)
    # A matrix has an order of its own.
    order = np.lexsort([data.items, data.users])
    ordered = BM3(**settings()).fit(data.users[order], data.items[order], data.features)
    entries = (np.ones(len(order)), (data.users, data.items))
    for kind in (scipy.sparse.csr_matrix, scipy.sparse.coo_matrix, scipy.sparse.csc_array):
        matrix = kind(entries, shape=(USERS, ITEMS))
        assert same(BM3(**settings()).fit(matrix, features=data.features), ordered)
    twice = scipy.sparse.coo_array(
        (np.append(np.ones(len(order)), [1, 0]), (np.append(data.users, [data.users[0], 59]),
                                                  np.append(data.items, [data.items[0], 39]))),
        shape=(USERS, ITEMS),
    )  # fmt: skip
    assert same(BM3(**settings()).fit(twice, features=data.features), ordered)


def test_the_same_features_in_every_form(data, tmp_path):
    for frozen in (False, True):

        def fit(image, frozen=frozen):
            features = {"image": image, "text": data.features["text"]}
            return BM3(**settings(freeze_features=frozen, epochs=2)).fit(data.users, data.items, features)

        image = data.features["image"]
        np.save(tmp_path / "all.npy", image)
        np.save(tmp_path / "a.npy", image[:13])
        np.save(tmp_path / "b.npy", image[13:])
        odd = np.frombuffer(b"x" + image.tobytes(), np.uint8)[1:].view(np.float32).reshape(image.shape)
        reference = fit(image)
        for form in (
            np.asfortranarray(image),
            image.astype(np.float64),
            image.astype(">f4"),
            np.repeat(image, 2, axis=1)[:, ::2],
            image.tolist(),
            odd,
            np.load(tmp_path / "all.npy", mmap_mode="r"),
            tmp_path / "all.npy",
            [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")],
        ):
            assert same(fit(form), reference)


class Tensor:
    """As PyTorch's: on a device that NumPy cannot read, exported by itself, copied by cpu()."""

    def __init__(self, array, device=(1, 0), wants_gradients=False):
        self.array, self.device, self.wants_gradients = array, device, wants_gradients
        self.copied = 0

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **keywords):
        if self.wants_gradients:
            raise RuntimeError("Can't export tensors that require gradient")
        if self.device[0] != 1:
            raise BufferError("unsupported device")
        return self.array.__dlpack__(**keywords)

    def detach(self):
        return self if not self.wants_gradients else Tensor(self.array, self.device)

    def cpu(self):
        return Tensor(self.array)


def test_tensors_are_taken_by_dlpack(data):
    reference = BM3(**settings(epochs=2)).fit(data.users, data.items, data.features)
    for make in (
        Tensor,
        lambda array: Tensor(array, (2, 0)),
        lambda array: Tensor(array, (2, 0), wants_gradients=True),
    ):
        tensors = {name: make(array) for name, array in data.features.items()}
        assert same(BM3(**settings(epochs=2)).fit(data.users, data.items, tensors), reference)
    away = Tensor(data.features["image"], (2, 0))
    away.cpu = None
    away = types.SimpleNamespace(__dlpack__=away.__dlpack__, __dlpack_device__=away.__dlpack_device__)
    with pytest.raises(TypeError, match="copy it to the host first"):
        BM3(**settings()).fit(data.users, data.items, {"image": away})


def test_rows_of_features_are_items(data):
    more = {name: np.concatenate([array, array]) for name, array in data.features.items()}
    model = BM3(**settings(epochs=1)).fit(data.users, data.items, more)
    assert model.n_items_ == 2 * ITEMS
    model = BM3(**settings(epochs=1)).fit(data.users, data.items, users=70, items=45)
    assert (model.n_users_, model.n_items_) == (70, 45)
    # However interactions come, and however few items are asked for.
    matrix = scipy.sparse.csr_matrix((np.ones(len(data.users)), (data.users, data.items)))
    for fit in (
        lambda: BM3(**settings(epochs=1)).fit(matrix, features=more),
        lambda: BM3(**settings(epochs=1)).fit(data.users, data.items, more, items=ITEMS + 1),
    ):
        assert fit().n_items_ == 2 * ITEMS
    with pytest.raises(ValueError, match="features: 80 rows of image and 40 rows of text found"):
        BM3(**settings()).fit(data.users, data.items, {**data.features, "image": more["image"]})


def test_what_is_worth_knowing_is_logged(data, caplog, monkeypatch):
    # Nobody has trained on what these two do, so that nothing is left to stop by.
    model = BM3(**settings(epochs=3, patience=0))
    model.fit(data.users, data.items, validation=([70, 71], [1, 2]))
    told = [record.getMessage() for record in caplog.records if record.name == "bm3_engine"]
    assert any("2 validation and 0 test interactions are left out" in line for line in told)
    assert any("training does not stop early" in line for line in told)
    assert len(model.history_) == 3
    caplog.clear()
    model.fit(data.users, data.items)
    assert not caplog.records
    monkeypatch.setattr(_devices, "_native", types.SimpleNamespace(passed_over=lambda: "its driver is old"))
    model.fit(data.users, data.items)
    assert not caplog.records
    model.set_params(device="auto").fit(data.users, data.items)
    assert "CPU because GPU 0 cannot be used: its driver is old" in caplog.text


def test_a_callback_sees_epochs_and_ends_training(data):
    seen = []

    def callback(record):
        seen.append(record)
        return record["epoch"] == 3

    model = BM3(**settings()).fit(data.users, data.items, callback=callback)
    assert [record["epoch"] for record in seen] == [1, 2, 3] and seen == model.history_

    def fails(record):
        raise LookupError("of the callback")

    with pytest.raises(LookupError, match="of the callback"):
        model.fit(data.users, data.items, callback=fails)
    assert model.best_epoch_ == 1 and model.recommend(0, k=2)[0].shape == (2,)


def test_a_run_is_kept_and_goes_on(data, tmp_path):
    whole = BM3(**settings()).fit(data.users, data.items, data.features)
    part = BM3(**settings())
    run = tmp_path / "run"
    part.fit(
        data.users, data.items, data.features, directory=run, callback=lambda record: record["epoch"] == 3
    )
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == part.history_
    with pytest.raises(ValueError, match="a run is already here; continue it with resume"):
        part.fit(data.users, data.items, data.features, directory=run)
    rest = BM3(**settings()).fit(data.users, data.items, data.features, directory=run, resume=True)
    assert same(rest, whole) and len(rest.history_) == 8
    assert same(BM3.load(run, device="cpu"), whole)
    with pytest.raises(ValueError, match="resume: True found"):
        part.fit(data.users, data.items, resume=True)


def test_training_starts_from_given_tensors(data, tmp_path):
    def fit(**others):
        # Without a split, which the seed keys, too.
        model = BM3(**settings(**others))
        return lambda **given: model.fit(
            data.users, data.items, data.features, validation_fraction=0, **given
        )

    first = fit(epochs=2)()
    first.save(tmp_path / "m.safetensors")
    start = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    tensors = {name: array for name, array in start.items() if array.dtype == np.float32}
    safetensors.numpy.save_file(tensors, tmp_path / "start.safetensors")
    for seed in (1, 2):
        model = fit(epochs=1, seed=seed, learning_rate=1e-9)(initial=tmp_path / "start.safetensors")
        np.testing.assert_allclose(model.user_embeddings, first.user_embeddings, atol=1e-5)


def test_checkpoints_are_as_far_apart_as_is_said(data, tmp_path):
    changed = []

    def callback(record):
        state = tmp_path / str(interval) / "state.safetensors"
        changed.append(state.exists())

    for interval in (0, 10**6):
        directory = tmp_path / str(interval)
        model = BM3(**settings(epochs=3))
        model.fit(
            data.users, data.items, directory=directory, checkpoint_interval=interval, callback=callback
        )
    assert any(changed[:3]) and not any(changed[3:])


def test_progress(data, capsys, monkeypatch):
    model = BM3(**settings())
    model.fit(data.users, data.items)
    assert capsys.readouterr().err == ""
    model.fit(data.users, data.items, progress=True)
    shown = capsys.readouterr().err
    assert "8/8" in shown and "recall@20" in shown
    # Notebooks show one by themselves, as terminals do.
    shell = type("ZMQInteractiveShell", (), {})()
    notebook = types.SimpleNamespace(get_ipython=lambda: shell)
    with monkeypatch.context() as inside:
        inside.setitem(sys.modules, "IPython", notebook)
        assert _somebody_looks()
        inside.setattr(notebook, "get_ipython", lambda: None)
        assert not _somebody_looks()
    for name in [name for name in sys.modules if name.split(".")[0] == "tqdm"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    model.fit(data.users, data.items)
    with pytest.raises(ImportError, match="bm3-engine\\[progress\\]"):
        model.fit(data.users, data.items, progress=True)


def test_wrong_arguments_are_refused(data, tmp_path):
    users, items, image = data.users, data.items, data.features["image"]
    broken = image.copy()
    broken[7, 3] = np.nan
    beyond = image.astype(np.float64)
    beyond[7, 3] = 1e300
    changed = np.where(np.arange(len(items)) == 4, -3, items)
    fit = BM3(**settings()).fit
    for call, kind, problem in [
        (lambda: fit(users, items[:-1]), ValueError, "users and .* items, pairs expected"),
        (lambda: fit([], []), ValueError, "no training interaction"),
        (lambda: fit(users, changed), ValueError, "training item_ids: -3 found at position 4"),
        (lambda: fit(users, items + 0.5), ValueError, "found at position 0, a whole number"),
        (lambda: fit(users, items * 10**8), ValueError, "found at position"),
        (lambda: fit(users, items.astype(str)), TypeError, "pandas.factorize"),
        (lambda: fit(users, items[:, None]), ValueError, "2 dimensions found, 1 expected"),
        (lambda: fit(users), TypeError, "ndarray found without item_ids"),
        (lambda: fit(scipy.sparse.eye(4).tocsr(), items), TypeError, "beside a sparse matrix"),
        (lambda: fit(users, items, image), TypeError, "a dictionary from the names"),
        (lambda: fit(users, items, {"image": image[0]}), ValueError, "1 dimensions found, 2"),
        (lambda: fit(users, items, {"image": image.astype(str)}), TypeError, "numbers expected"),
        (lambda: fit(users, items, {"image": image[:9]}), ValueError, "has 9 rows"),
        (lambda: fit(users, items, {"image": broken}), ValueError, "row 7, column 3 is NaN"),
        (lambda: fit(users, items, {"image": beyond}), ValueError, "row 7, column 3 is inf"),
        (lambda: fit(users, items, {"image": np.ma.masked_less(image, 0)}), ValueError, "masked values"),
        (lambda: fit(users, np.ma.masked_equal(items, 3)), ValueError, "item_ids: masked values found"),
        (lambda: fit(np.full(len(users), np.inf, np.float16), items), ValueError, "inf found at position 0"),
        (lambda: BM3.load(tmp_path, threads=-1), ValueError, "threads: -1 found"),
        (lambda: bm3_engine.from_mmrec(tmp_path, seed=-1), ValueError, "seed: -1 found"),
        (lambda: bm3_engine.from_mmrec(tmp_path, seed=2**64), ValueError, "from 0 to 18446744073709551615"),
        (lambda: fit(users, items, {"an image": image}), ValueError, "a modality's name"),
        (lambda: fit(users, items, {"image": tmp_path / "no.npy"}), FileNotFoundError, "no.npy"),
        (lambda: fit(users, items, validation=users), TypeError, "\\(user_ids, item_ids\\)"),
        (lambda: fit(users, items, validation_fraction=1), ValueError, "validation_fraction: 1"),
        (lambda: fit(users, items, items=-1), ValueError, "items: -1 found"),
        (lambda: BM3(device="gpu").fit(users, items), ValueError, "device: `gpu` found"),
        (lambda: BM3(threads=0).fit(users, items), ValueError, "threads: 0 found"),
        (lambda: BM3(feature_storage="x").fit(users, items), ValueError, "feature_storage: 'x'"),
        (lambda: BM3.load(tmp_path / "none"), FileNotFoundError, "none"),
        (lambda: bm3_engine.from_mmrec(tmp_path / "none"), FileNotFoundError, "none"),
        (lambda: bm3_engine.from_mmrec(tmp_path), ValueError, "has no .inter file"),
        # A command of the program stays one.
        (lambda: bm3_engine.from_mmrec(__file__), ValueError, "`bm3-engine prepare --interactions FILE --o"),
    ]:
        with warnings.catch_warnings(), pytest.raises(kind, match=problem):
            warnings.simplefilter("error")
            call()


def test_wrong_arguments_leave_the_model_there_is(data, tmp_path):
    model = BM3(**settings(epochs=2)).fit(data.users, data.items)
    lists, history = model.recommend(range(60), k=5), model.history_
    with pytest.raises(ValueError, match="validation_fraction: 1"):
        model.fit(data.users, data.items, validation_fraction=1)
    run, file = tmp_path / "run", tmp_path / "file"
    BM3(**settings(epochs=1, embedding_size=8)).fit(data.users, data.items, directory=run)
    file.write_bytes(b"")
    for wrong, arguments, kind, problem in [
        ({"threads": -1}, {}, ValueError, "threads: -1 found"),
        ({"threads": 0}, {}, ValueError, "threads: 0 found, a whole number from 1, or None, expected"),
        ({"threads": 2**64}, {}, ValueError, "threads: 18446744073709551616 found"),
        ({"device": "gpu"}, {}, ValueError, "device: `gpu` found"),
        ({"device": 10**6}, {}, (ValueError, bm3_engine.Error), "GPU|driver"),
        ({"feature_storage": "x"}, {}, ValueError, "feature_storage: 'x' found"),
        ({"feature_storage": "stream"}, {}, ValueError, "feature_storage"),
        ({"seed": -1}, {}, ValueError, "seed: -1 found"),
        ({}, {"directory": run}, ValueError, "a run is already here"),
        ({}, {"directory": file}, OSError, "file"),
        ({}, {"directory": run, "resume": True}, ValueError, "embedding.size"),
        ({}, {"resume": True}, ValueError, "resume: True found"),
        ({}, {"initial": file}, ValueError, "file"),
        ({}, {"initial": tmp_path / "none"}, FileNotFoundError, "none"),
        ({}, {"checkpoint_interval": -1}, ValueError, "checkpoint_interval: -1 found, seconds"),
        ({}, {"users": 2**64}, ValueError, "users: 18446744073709551616 found"),
    ]:
        kept = {name: getattr(model, name) for name in wrong}
        for name, value in wrong.items():
            setattr(model, name, value)
        with pytest.raises(kind, match=problem):
            model.fit(data.users, data.items, **arguments)
        model.set_params(**kept)
    assert (model.recommend(range(60), k=5)[0] == lists[0]).all() and model.history_ is history


def test_messages_name_parameters_and_leave_paths_alone(data, tmp_path):
    path = tmp_path / "--out" / "a--b.npy"
    path.parent.mkdir()
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError) as raised:
        BM3(**settings()).fit(data.users, data.items, {"image": path})
    assert str(raised.value).startswith(f"{path}: not a .npy file")
    model = BM3(**settings(learning_rate=1e30))
    with pytest.raises(bm3_engine.Error, match=r"^step \d+ .*; lower learning_rate, or"):
        model.fit(data.users, data.items, data.features)
    with pytest.raises(bm3_engine.NotFittedError):
        model.recommend(0)


@given(st.lists(st.one_of(st.integers(-5, 2**33), st.floats(), st.just(2**31 - 1)), min_size=1, max_size=6))
def test_ids_are_whole_numbers_in_range(values):
    def fits(value):
        return 0 <= value < 2**31 and value == int(value)

    wrong = [position for position, value in enumerate(values) if not fits(value)]
    if wrong:
        with pytest.raises(ValueError, match=f"found at position {wrong[0]}, a whole number"):
            ids(values, "users")
    else:
        assert ids(values, "users").tolist() == values


@given(
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.lists(st.one_of(st.integers(-5, 2**33), st.floats()), min_size=1, max_size=6),
)
@pytest.mark.filterwarnings("error")
def test_ids_of_every_type_of_floats(dtype, values):
    with np.errstate(over="ignore"):
        array = np.array([float(value) for value in values]).astype(dtype)
    wide = array.astype(np.float64)
    fits = (wide >= 0) & (wide < 2**31) & (wide == np.floor(wide))
    if fits.all():
        assert ids(array, "users").tolist() == wide.tolist()
    else:
        with pytest.raises(ValueError, match=f"found at position {int(np.argmin(fits))}, a whole number"):
            ids(array, "users")


def test_a_callback_may_ask_where_there_is_one_processor(data, tmp_path):
    """Training has threads of its own: what a callback asks for does not wait for them."""
    path = tmp_path / "model.safetensors"
    BM3(**settings(epochs=1)).fit(data.users, data.items, data.features).save(path)
    script = (
        "import sys, numpy as np\n"
        "from bm3_engine import BM3\n"
        "def ask(record):\n"
        "    other = BM3.load(sys.argv[1], device='cpu')\n"
        "    other.recommend(np.arange(other.n_users_), k=3)\n"
        "model = BM3(epochs=2, embedding_size=8, device='cpu')\n"
        "model.fit(np.arange(600) % 60, np.arange(600) * 7 % 40, callback=ask)\n"
        "print(len(model.history_))\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "2\n", done.stderr
