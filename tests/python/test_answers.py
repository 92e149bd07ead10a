"""Lists, scores and metrics against NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bm3_engine import BM3, NotFittedError
from conftest import ITEMS, TASTES, USERS, settings


def expected_list(model, row, left_out, k):
    """A list by its definition, and how near a score has to be."""
    scores = model.item_embeddings.astype(np.float64) @ row
    order = [item for item in np.argsort(-scores, kind="stable") if item not in left_out]
    return np.array(order[:k]), scores


def assert_list(ids, scores, expected, reference, k):
    found = ids[ids >= 0]
    assert len(found) == len(expected) and len(set(found.tolist())) == len(found)
    assert (ids[len(found) :] == -1).all() and np.isnan(scores[len(found) :]).all()
    np.testing.assert_allclose(scores[: len(found)], reference[found], atol=1e-5)
    np.testing.assert_allclose(reference[found], reference[expected], atol=1e-5)


@pytest.mark.parametrize("with_seen", [False, True])
def test_lists_are_those_of_the_definition(model, data, with_seen):
    ids, scores = model.recommend(np.arange(USERS), k=35, with_seen=with_seen)
    assert ids.shape == scores.shape == (USERS, 35)
    assert ids.dtype == np.int32 and scores.dtype == np.float32
    for user in range(USERS):
        left_out = set() if with_seen else data.seen(user)
        expected, reference = expected_list(model, model.user_embeddings[user], left_out, 35)
        assert_list(ids[user], scores[user], expected, reference, 35)


def test_the_model_has_learned_something(model):
    new, _ = model.recommend(np.arange(USERS), k=1, with_seen=True)
    assert (new[:, 0] % TASTES == np.arange(USERS) % TASTES).mean() > 0.8


@given(
    user=st.integers(0, USERS - 1),
    k=st.integers(1, 50),
    excluded=st.lists(st.integers(0, ITEMS - 1), max_size=45),
)
def test_what_is_excluded_is_left_out(model, user, k, excluded):
    whole, whole_scores = model.recommend(user, k=ITEMS)
    kept = (whole >= 0) & ~np.isin(whole, excluded)
    ids, scores = model.recommend([user], k=k, exclude=excluded)
    length = min(k, kept.sum())
    assert ids.shape == (1, k)
    assert (ids[0, :length] == whole[kept][:k]).all() and (ids[0, length:] == -1).all()
    assert (scores[0, :length] == whole_scores[kept][:k]).all()
    of_each = model.recommend([user, user], k=k, exclude=[excluded, []], return_scores=False)
    assert (of_each[0] == ids[0]).all() and (of_each[1] == model.recommend(user, k=k)[0]).all()


@given(known=st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=9), min_size=1, max_size=5))
def test_new_users_are_known_by_their_items(model, known):
    ids, scores = model.recommend_new(known, k=5)
    assert ids.shape == scores.shape == (len(known), 5)
    for position, items in enumerate(known):
        assert not set(items) & set(ids[position].tolist())
        # In any order, with repeats, alone or as an array: the same bits.
        alone, alone_scores = model.recommend_new(np.array(items[::-1] + items), k=5)
        assert alone.shape == (5,)
        assert (alone == ids[position]).all() and (alone_scores == scores[position]).all()


def test_one_user_gives_one_list(model):
    lists, scores = model.recommend([7], k=4)
    for one in (7, np.int64(7), np.array(7)):
        ids, of_one = model.recommend(one, k=4)
        assert ids.shape == of_one.shape == (4,)
        assert (ids == lists[0]).all() and (of_one == scores[0]).all()
    assert model.recommend([], k=4)[0].shape == (0, 4)


def test_pairs_have_the_scores_of_lists(model):
    ids, scores = model.recommend([3, 9], k=6)
    assert (model.predict(np.array([[3], [9]]), ids) == scores).all()
    assert model.predict(3, ids[0]).shape == (6,)
    assert model.predict(3, 5).shape == ()


def test_lists_of_many_users_are_those_of_few(model):
    """They are made in pieces."""
    users = np.arange(20_000) % USERS
    ids, scores = model.recommend(np.arange(USERS), k=7)
    many, many_scores = model.recommend(users, k=7)
    assert (many == ids[users]).all() and (many_scores == scores[users]).all()
    excluded = [[position % ITEMS] for position in range(len(users))]
    many = model.recommend(users, k=7, exclude=excluded, return_scores=False)
    histories = [[position % ITEMS, 3] for position in range(len(users))]
    new = model.recommend_new(histories, k=7, return_scores=False)
    near = model.similar_items(users % ITEMS, k=7)[0]
    for start in (0, 8191, 8192, 16384, 19_999):
        alone = model.recommend(users[start], k=7, exclude=excluded[start], return_scores=False)
        assert (many[start] == alone).all()
        assert (new[start] == model.recommend_new(np.array(histories[start]), k=7)[0]).all()
        assert (near[start] == model.similar_items(users[start] % ITEMS, k=7)[0]).all()
    with pytest.raises(ValueError, match="user: 60 found"):
        model.recommend(np.append(users, USERS))


def test_metrics_of_many_users_are_those_that_training_measured():
    random = np.random.default_rng(2)
    users = np.arange(20_000)
    held_out = users, random.integers(0, 50, len(users))
    model = BM3(**settings(epochs=1)).fit(users, random.integers(0, 50, len(users)), validation=held_out)
    assert model.evaluate(*held_out) == model.history_[0]["valid"]


def test_candidates_are_ranked(model, data):
    candidates = [5, 9, 9, 1, 30]
    ids, scores = model.rank(2, candidates, k=3, with_seen=True)
    order = sorted(set(candidates), key=lambda item: -model.predict(2, item))
    assert ids.tolist() == order[:3] and (scores == model.predict(2, ids)).all()
    left, _ = model.rank(2, range(ITEMS), k=1000)
    assert set(left.tolist()) == set(range(ITEMS)) - data.seen(2)
    of_new, scores = model.recommend_new([[4, 7, 11]], k=6)
    ids, ranked = model.rank_new([11, 4, 7, 7], range(ITEMS), k=6)
    assert (ids == of_new[0]).all() and (ranked == scores[0]).all()
    assert len(model.rank_new([4], [4])[0]) == 0
    row = model.embed_new([4, 7, 11])
    scores_of_all = model.item_embeddings @ row
    assert np.allclose(scores_of_all[ids], ranked, rtol=1e-5, atol=1e-6)
    assert (model.embed_new([[4, 7, 11], [3]])[0] == row).all() and model.embed_new([]).shape == (0, 16)
    assert model.rank_new([4], [4], with_seen=True)[0].tolist() == [4]


def test_newer_interactions_are_left_out_of_lists(model, data, tmp_path):
    before = model.recommend(2, k=5)[0]
    newer = model.with_interactions(np.append(data.users, 2), np.append(data.items, before[0]))
    after = newer.recommend(2, k=5)[0]
    assert before[0] not in after and newer.get_params() == model.get_params()
    assert newer.history_ == model.history_ and (model.recommend(2, k=5)[0] == before).all()
    newer.save(tmp_path / "newer.safetensors")
    assert (BM3.load(tmp_path / "newer.safetensors", device="cpu").recommend(2, k=5)[0] == after).all()
    with pytest.raises(ValueError, match="60 users and 40 items"):
        model.with_interactions([USERS], [0])


def test_similar_items_are_near(model):
    rows = model.item_embeddings.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids, cosines = model.similar_items(np.arange(ITEMS), k=ITEMS)
    assert (ids[:, -1] == -1).all()
    for item in range(ITEMS):
        assert item not in ids[item]
        found = ids[item, :-1]
        np.testing.assert_allclose(cosines[item, :-1], rows[found] @ rows[item], atol=1e-6)
        assert (np.diff(cosines[item, :-1]) <= 0).all()
    assert (model.similar_items(3, k=5)[0] == ids[3, :5]).all()


def test_metrics_are_those_of_the_definition(model, data):
    random = np.random.default_rng(1)
    users, items = random.integers(0, USERS, 300), random.integers(0, ITEMS, 300)
    users, items = np.unique(np.stack([users, items]), axis=1)
    found = model.evaluate(users, items, k=[10, 3])
    sums = {name: [] for name in found}
    for user in np.unique(users):
        wanted = set(items[users == user].tolist())
        ids = model.recommend(user, k=10, return_scores=False).tolist()
        for k in (3, 10):
            hits = np.array([item in wanted for item in ids[:k]])
            gains = 1 / np.log2(np.arange(k) + 2)
            n = min(len(wanted), k)
            sums[f"recall@{k}"].append(hits.sum() / len(wanted))
            sums[f"precision@{k}"].append(hits.sum() / k)
            sums[f"ndcg@{k}"].append((gains * hits).sum() / gains[:n].sum())
            sums[f"map@{k}"].append((np.cumsum(hits) / np.arange(1, k + 1) * hits).sum() / n)
    assert list(found) == [f"{name}@{k}" for k in (3, 10) for name in ("recall", "ndcg", "precision", "map")]
    assert found == pytest.approx({name: np.mean(values) for name, values in sums.items()})
    for seven in (7, np.int64(7), np.array(7)):
        assert list(model.evaluate(users, items, k=seven))[0] == "recall@7"
    for lengths in ({10, 3}, (k for k in (3, 10)), np.array([3, 10])):
        assert model.evaluate(users, items, k=lengths) == found


def test_metrics_are_those_that_training_measured(data):
    split = (data.users[:200], data.items[:200])
    model = BM3(**settings()).fit(
        data.users[200:],
        data.items[200:],
        data.features,
        validation=split,
        test=(split[0][:90], split[1][:90]),
    )
    best = model.history_[model.best_epoch_ - 1]
    assert model.evaluate(*split) == best["valid"]
    assert model.evaluate(split[0][:90], split[1][:90]) == best["test"]


@pytest.mark.parametrize("freeze_features", [False, True])
def test_cold_items_are_scored_by_their_features(data, freeze_features):
    model = BM3(**settings(freeze_features=freeze_features, epochs=30))
    model.fit(data.users, data.items, data.features, validation_fraction=0)
    assert model.cold_items.tolist() == [ITEMS - 2, ITEMS - 1]
    assert model.record_["epoch"] == model.best_epoch_ and model.cold_users.tolist() == []
    if freeze_features:
        with pytest.raises(ValueError, match="no features found"):
            model.score_cold_items()
        changed = {name: array + 1 for name, array in data.features.items()}
        with pytest.raises(ValueError, match="not the features that the model was trained with"):
            model.score_cold_items(changed)
    assert model.score_cold_items(data.features if freeze_features else None) == 2
    first = [model.rank(user, model.cold_items, k=1)[0][0] for user in range(USERS)]
    fans = [user for user in range(USERS) if user % TASTES >= TASTES - 2]
    assert sum(first[user] % TASTES == user % TASTES for user in fans) > 0.7 * len(fans)

    added = model.add_items({name: array[[5, 6]] for name, array in data.features.items()})
    assert added.tolist() == [ITEMS, ITEMS + 1] and model.item_embeddings.shape[0] == ITEMS + 2
    assert (model.cold_items == [ITEMS - 2, ITEMS - 1, ITEMS, ITEMS + 1]).all()
    one = model.add_items({name: array[5] for name, array in data.features.items()})
    assert (model.predict(range(USERS), one[0]) == model.predict(range(USERS), ITEMS)).all()
    assert model.similar_items(ITEMS, k=1)[0][0] == ITEMS + 2


def test_wrong_questions_are_refused(model):
    for ask, problem in [
        (lambda: model.recommend(USERS), "user: 60 found, a number from 0 to 59 expected"),
        (lambda: model.recommend([1, -2]), "users: -2 found at position 1"),
        (lambda: model.recommend(0, k=0), "k: 0 found, 1 to 1024 expected"),
        (lambda: model.recommend(0, k=2000), "k: 2000 found"),
        (lambda: model.recommend(0, k=-1), "k: -1 found"),
        (lambda: model.recommend(0, k=2**64), "k: 18446744073709551616 found"),
        (lambda: model.recommend(np.ma.masked_equal([1, 2], 2)), "users: masked values found"),
        (lambda: model.predict(np.ma.masked_equal([1, 2], 2), 3), "users: masked values found"),
        (lambda: model.recommend(0, k=2.5), "k: 2.5 found"),
        (lambda: model.recommend(0, exclude=[ITEMS]), "item: 40 found"),
        (lambda: model.recommend([0, 1, 2], exclude=[[1], [2]]), "2 lists found, one for each of 3"),
        (lambda: model.recommend_new([[]]), "a new user is known by one item at least"),
        (lambda: model.recommend_new(np.array([], int)), "a new user is known by one item at least"),
        (lambda: model.similar_items(ITEMS), "item: 40 found"),
        (lambda: model.rank(0, [ITEMS]), "candidate: 40 found"),
        (lambda: model.recommend([0, 1, 2], exclude=[[1]]), "1 lists found, one for each of 3"),
        (lambda: model.recommend_new([[1], [], [2]]), r"query 1 \(of 0 to 2\): items: none found"),
        (
            lambda: model.add_items({name: np.full(n, 3e38) for name, n in model.modalities_.items()}),
            "row 0 of the new items: numbers so large found that its row is not finite",
        ),
        (lambda: model.rank([0, 1], [1]), "user: 2 found, one expected"),
        (lambda: model.rank_new([], [1]), "a new user is known by one item at least"),
        (lambda: model.rank_new([ITEMS], [1]), "item: 40 found"),
        (lambda: model.evaluate([0], [1, 2]), "1 users and 2 items found"),
        (lambda: model.evaluate([0], [1], k=()), "k: an empty list found"),
        (lambda: model.evaluate([0], [1], k=2.5), "k: 2.5 found"),
        (lambda: model.evaluate([0], [1], k={2.5}), "k: 2.5 found"),
        (lambda: model.add_items({"image": np.zeros((1, 12))}), "modality text: no features found"),
        (lambda: model.add_items({"smell": np.zeros((1, 12))}), "modality smell: not a modality"),
    ]:
        with pytest.raises(ValueError, match=problem):
            ask()
    with pytest.raises(TypeError, match="features: list found, a dictionary from the names"):
        model.add_items([1, 2])
    with pytest.raises(NotFittedError, match="this BM3 is not trained yet"):
        BM3().recommend(0)
