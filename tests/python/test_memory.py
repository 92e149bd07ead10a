"""What is shared instead of copied, and how long it lives."""

import gc
import sys
import threading
import time

import numpy as np
import pytest

from bm3_engine import BM3, Dataset, from_mmrec
from conftest import ITEMS, settings


def test_embeddings_are_views_that_keep_their_owner(data):
    model = BM3(**settings()).fit(data.users, data.items, data.features, validation_fraction=0)
    users, items = model.user_embeddings, model.item_embeddings
    assert np.shares_memory(users, model.user_embeddings)
    assert np.shares_memory(items, model.item_embeddings)
    for view in (users, items):
        assert view.base is not None and not view.flags.owndata and not view.flags.writeable
        with pytest.raises(ValueError):
            view[0, 0] = 1
        with pytest.raises(ValueError):
            view.flags.writeable = True
    before = users.copy(), items.copy()
    scores = model.predict(3, np.arange(ITEMS))
    # Items that are added are in the next array; the old one stays.
    model.add_items({name: array[:2] for name, array in data.features.items()})
    assert model.item_embeddings.shape == (ITEMS + 2, 16) and items.shape == (ITEMS, 16)
    assert not np.shares_memory(items, model.item_embeddings)
    owner = sys.getrefcount(users.base)
    part = users[3:5]
    assert sys.getrefcount(users.base) >= owner
    del model
    gc.collect()
    # What would have been freed is written over.
    [np.full((200, 16), np.nan, np.float32) for _ in range(50)]
    assert (users == before[0]).all() and (items == before[1]).all()
    del users
    gc.collect()
    assert (part == before[0][3:5]).all()
    np.testing.assert_allclose(items @ before[0][3], scores, atol=1e-5)


def test_lists_are_handed_over(model):
    ids, scores = model.recommend([1, 2], k=3)
    for array in (ids, scores):
        assert array.flags.writeable and array.flags.c_contiguous
    ids[:] = 0
    assert (model.recommend([1, 2], k=3)[0] != 0).any()


def test_pairs_of_a_data_set_are_views(folder):
    dataset = from_mmrec(folder)
    users, items = dataset.train
    assert np.shares_memory(users, dataset.train[0]) and np.shares_memory(items, dataset.train[1])
    assert not users.flags.writeable and users.base is dataset
    del dataset
    gc.collect()
    assert users.max() < 2**20


@pytest.mark.parametrize("freeze_features", [True, False])
def test_features_are_shared_while_training_lasts(data, freeze_features):
    image = data.features["image"].copy()
    counts = []

    def callback(record):
        with pytest.raises(ValueError, match="read-only"):
            image[0, 0] = 1
        counts.append(sys.getrefcount(image))

    references = sys.getrefcount(image)
    model = BM3(**settings(freeze_features=freeze_features, epochs=2))
    model.fit(data.users, data.items, {"image": image}, callback=callback)
    # The engine refers to the array itself while it trains, and not afterwards.
    assert min(counts) > references and sys.getrefcount(image) == references
    image[0, 0] = 1
    assert image.flags.writeable


@pytest.mark.parametrize("freeze_features", [True, False])
def test_features_are_not_resized_while_training_lasts(data, freeze_features):
    owner = np.repeat(data.features["image"], 2, axis=0)
    view, other = owner[:ITEMS], data.features["text"].copy()
    refused = []

    def callback(record):
        for array in (owner, other):
            with pytest.raises(ValueError, match="cannot resize"):
                array.resize((1, 1), refcheck=False)
            refused.append(array)

    model = BM3(**settings(freeze_features=freeze_features, epochs=1))
    model.fit(data.users, data.items, {"image": view, "text": other}, callback=callback)
    assert len(refused) == 2
    other.resize((1, 1), refcheck=False)
    assert other.shape == (1, 1)


def test_what_features_are_a_view_of_is_protected_too(data, tmp_path):
    owner = np.repeat(data.features["image"], 2, axis=0)
    mapped = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.float32, shape=(ITEMS, 8))
    mapped[:] = data.features["text"]
    view = owner[:ITEMS]
    refused = []

    def callback(record):
        for array in (owner, view, mapped):
            with pytest.raises(ValueError, match="read-only"):
                array[0, 0] = 1
            refused.append(array)

    features = {"image": view, "text": mapped}
    BM3(**settings(epochs=1)).fit(data.users, data.items, features, callback=callback)
    assert len(refused) == 3
    for array in (owner, view, mapped):
        array[0, 0] = 1


def test_features_that_nobody_may_write_stay_so(data):
    image = data.features["image"].copy()
    image.flags.writeable = False
    BM3(**settings(epochs=1)).fit(data.users, data.items, {"image": image})
    assert not image.flags.writeable


def test_two_trainings_share_one_array(data):
    image = data.features["image"].copy()
    second_done, first_done = threading.Event(), threading.Event()
    seen = []

    def wait(record):
        second_done.wait(60)
        seen.append(image.flags.writeable)

    def first():
        model = BM3(**settings(epochs=1, freeze_features=True))
        model.fit(data.users, data.items, {"image": image}, callback=wait)
        first_done.set()

    thread = threading.Thread(target=first)
    thread.start()
    while image.flags.writeable:
        time.sleep(0.001)
    BM3(**settings(epochs=1)).fit(data.users, data.items, {"image": image})
    second_done.set()
    thread.join()
    assert first_done.is_set() and seen == [False] and image.flags.writeable


@pytest.mark.parametrize("view_first", [True, False])
def test_a_view_and_its_owner_are_given_back(data, view_first):
    owner = np.repeat(data.features["image"], 2, axis=0)
    view = owner[: len(owner) // 2]

    def lend(array):
        arrays = [("image", array)]
        none = np.empty(0, np.uint32), np.empty(0, np.uint32)
        train = data.users.astype(np.uint32), data.items.astype(np.uint32)
        return Dataset._gather(train, none, none, 0.0, 0, arrays, (0, 0))

    lent = [lend(view), lend(owner)]
    assert not view.flags.writeable and not owner.flags.writeable
    lent.pop(0 if view_first else 1)
    gc.collect()
    assert not owner.flags.writeable and not view.flags.writeable
    # Lent again while its flag waits to be raised.
    again = lend(view)
    lent.clear()
    gc.collect()
    assert not view.flags.writeable and not owner.flags.writeable
    references = sys.getrefcount(view)
    del again
    gc.collect()
    assert sys.getrefcount(view) < references
    for array in (view, owner):
        array[0, 0] = 1
        assert array.flags.writeable


def test_arrays_are_protected_whose_attributes_have_code(data):
    class Busy(np.ndarray):
        @property
        def flags(self):
            raise LookupError

        base = flags

    owner = data.features["image"].copy()
    view = owner.view(Busy).view(np.ndarray)
    refused = []

    def callback(record):
        for array in (owner, view):
            with pytest.raises(ValueError, match="read-only"):
                array[0, 0] = 1
            refused.append(array)

    BM3(**settings(epochs=1)).fit(data.users, data.items, {"image": view}, callback=callback)
    assert len(refused) == 2 and owner.flags.writeable and view.flags.writeable


def test_features_are_given_back_after_an_error(data):
    image = data.features["image"].copy()
    with pytest.raises(ValueError, match="given twice|NaN|rows"):
        BM3(**settings()).fit(data.users, data.items, {"image": image, "text": image[:3]})
    assert image.flags.writeable

    def fails(record):
        raise LookupError

    with pytest.raises(LookupError) as raised:
        BM3(**settings()).fit(data.users, data.items, {"image": image}, callback=fails)
    # While the exception is there, as in a notebook.
    assert image.flags.writeable and raised.tb is not None
