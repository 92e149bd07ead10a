"""Questions to a trained model."""

from collections.abc import Iterable
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _arrays, _native
from ._errors import NotFittedError
from ._native import Dataset

Scored = tuple[NDArray[np.int32], NDArray[np.float32]]


class Answers:
    """Lists, scores, metrics and embeddings of a trained model.

    Other Python threads run while a question is answered, and may ask at the same time. Ctrl-C ends
    lists and metrics of many users after the current few thousand, and anything else once it is done.
    """

    _model: _native.Model | None = None

    def _trained(self) -> _native.Model:
        if self._model is None:
            name = type(self).__name__
            raise NotFittedError(f"this {name} is not trained yet; call fit, or {name}.load")
        return self._model

    @overload
    def recommend(
        self,
        users: ArrayLike,
        k: int = 10,
        *,
        exclude: Any = None,
        with_seen: bool = False,
        return_scores: Literal[True] = True,
    ) -> Scored: ...

    @overload
    def recommend(
        self,
        users: ArrayLike,
        k: int = 10,
        *,
        exclude: Any = None,
        with_seen: bool = False,
        return_scores: Literal[False],
    ) -> NDArray[np.int32]: ...

    @overload
    def recommend(
        self,
        users: ArrayLike,
        k: int = 10,
        *,
        exclude: Any = None,
        with_seen: bool = False,
        return_scores: bool,
    ) -> Scored | NDArray[np.int32]: ...

    def recommend(
        self,
        users: ArrayLike,
        k: int = 10,
        *,
        exclude: Any = None,
        with_seen: bool = False,
        return_scores: bool = True,
    ) -> Scored | NDArray[np.int32]:
        """The best items for users of the training data, best first.

        Parameters
        ----------
        users : int or array of int, shape (n,)
        k : int
            Items per user, 1 to 1024.
        exclude : array of int or sequence of n arrays of int, optional
            Items to leave out: of all lists, or of each user's. ``implicit`` calls it
            ``filter_items``.
        with_seen : bool
            Whether items that a user interacted with in training may be recommended too;
            ``implicit``'s ``filter_already_liked_items`` is the opposite.
        return_scores : bool
            Whether to return scores.

        Returns
        -------
        ids : int32 array, shape (n, k), or (k,) for one user
            -1 where fewer than k items are left.
        scores : float32 array of the same shape
            NaN there; only with ``return_scores``.

        Raises
        ------
        ValueError
            For a user, item or k out of range.
        """
        asked, one = _arrays.scalar_or_ids(users, "users")
        found = self._trained().recommend(
            asked, _arrays.count(k, "k"), _arrays.exclusions(exclude, len(asked)), bool(with_seen)
        )
        return _shaped(found, one, return_scores)

    @overload
    def recommend_new(
        self,
        item_lists: ArrayLike | Iterable[ArrayLike],
        k: int = 10,
        *,
        exclude: Any = None,
        with_seen: bool = False,
        return_scores: Literal[True] = True,
    ) -> Scored: ...

    @overload
    def recommend_new(
        self,
        item_lists: ArrayLike | Iterable[ArrayLike],
        k: int = 10,
        *,
        exclude: Any = None,
        with_seen: bool = False,
        return_scores: Literal[False],
    ) -> NDArray[np.int32]: ...

    @overload
    def recommend_new(
        self,
        item_lists: ArrayLike | Iterable[ArrayLike],
        k: int = 10,
        *,
        exclude: Any = None,
        with_seen: bool = False,
        return_scores: bool,
    ) -> Scored | NDArray[np.int32]: ...

    def recommend_new(
        self,
        item_lists: ArrayLike | Iterable[ArrayLike],
        k: int = 10,
        *,
        exclude: Any = None,
        with_seen: bool = False,
        return_scores: bool = True,
    ) -> Scored | NDArray[np.int32]:
        """The best items for users that the model was not trained on, from their items.

        Parameters
        ----------
        item_lists : sequence of n arrays of int, or one array of int
            The items of each user, or of the only one; at least one item. Their order does not
            matter, and repeats count once.
        k, exclude, with_seen, return_scores
            As in `recommend`; the seen items are the items given.

        Returns
        -------
        ids, scores
            As in `recommend`: shape (n, k), or (k,) for one array.
        """
        known, one = _arrays.one_or_lists(item_lists, "item_lists")
        found = self._trained().recommend_new(
            known,
            _arrays.count(k, "k"),
            _arrays.exclusions(exclude, len(known[0]) - 1),
            bool(with_seen),
        )
        return _shaped(found, one, return_scores)

    def embed_new(self, item_lists: ArrayLike | Iterable[ArrayLike]) -> NDArray[np.float32]:
        """The embeddings of users that the model was not trained on, from their items.

        A score is the inner product of such a row and one of `item_embeddings`: for a vector database
        that holds those.

        Parameters
        ----------
        item_lists : sequence of n arrays of int, or one array of int
            As in `recommend_new`.

        Returns
        -------
        float32 array, shape (n, embedding_size), or (embedding_size,) for one array
        """
        known, one = _arrays.one_or_lists(item_lists, "item_lists")
        rows = self._trained().rows_new(known)
        return rows[0] if one else rows

    def rank(self, user: int, candidates: ArrayLike, k: int = 10, *, with_seen: bool = False) -> Scored:
        """The best of some items for one user, as for a shelf of chosen items.

        Parameters
        ----------
        user : int
        candidates : array of int
            The items; repeats count once.
        k : int
            1 to 1024.
        with_seen : bool
            Whether to keep items that the user interacted with in training.

        Returns
        -------
        ids : int32 array, shape (m,)
            m ≤ k; a short list is not padded.
        scores : float32 array, shape (m,)
        """
        items = _arrays.ids(candidates, "candidates")
        asked, one = _arrays.scalar_or_ids(user, "user")
        if not one:
            raise ValueError(f"user: {len(asked)} found, one expected")
        return self._trained().rank(int(asked[0]), items, _arrays.count(k, "k"), bool(with_seen))

    def rank_new(
        self, item_list: ArrayLike, candidates: ArrayLike, k: int = 10, *, with_seen: bool = False
    ) -> Scored:
        """The best of some items for a user that the model was not trained on, from the user's items.

        Parameters
        ----------
        item_list : array of int
            The user's items, as one of `recommend_new`.
        candidates, k, with_seen
            As in `rank`; the seen items are the items given.

        Returns
        -------
        ids, scores
            As in `rank`.
        """
        return self._trained().rank_new(
            _arrays.ids(item_list, "item_list"),
            _arrays.ids(candidates, "candidates"),
            _arrays.count(k, "k"),
            bool(with_seen),
        )

    def similar_items(self, items: ArrayLike, k: int = 10) -> Scored:
        """The items nearest to each item by the cosine of their embeddings, without the item itself.

        Parameters
        ----------
        items : int or array of int, shape (n,)
        k : int
            1 to 1024.

        Returns
        -------
        ids : int32 array, shape (n, k), or (k,) for one item
            -1 where there are fewer than k other items.
        cosines : float32 array of the same shape
            NaN there.
        """
        asked, one = _arrays.scalar_or_ids(items, "items")
        ids, scores = self._trained().similar_items(asked, _arrays.count(k, "k"))
        return (ids[0], scores[0]) if one else (ids, scores)

    def predict(self, users: ArrayLike, items: ArrayLike) -> NDArray[np.float32]:
        """The scores of pairs, seen in training or not, with the same bits as in lists.

        Parameters
        ----------
        users, items : int or array of int
            Of shapes that NumPy can broadcast together.

        Returns
        -------
        float32 array of that shape
        """
        user_array, item_array = np.broadcast_arrays(
            _arrays.plain(users, "users"), _arrays.plain(items, "items")
        )
        scores = self._trained().scores(
            _arrays.ids(user_array.reshape(-1), "users"),
            _arrays.ids(item_array.reshape(-1), "items"),
        )
        return scores.reshape(user_array.shape)

    def evaluate(
        self, users: ArrayLike, items: ArrayLike, k: int | Iterable[int] = (5, 10, 20, 50)
    ) -> dict[str, float]:
        """How well held-out interactions are found.

        All items are scored for each user, except the user's training items. Users without training
        interactions do not count.

        Parameters
        ----------
        users, items : array of int, shape (n,)
            The held-out interactions.
        k : int or iterable of int
            List lengths, 1 to 1024.

        Returns
        -------
        dict of str to float
            ``recall@K``, ``ndcg@K``, ``precision@K`` and ``map@K`` for each length, means over users.
        """
        return self._trained().evaluate(
            _arrays.ids(users, "users"), _arrays.ids(items, "items"), _arrays.counts(k, "k")
        )

    @property
    def user_embeddings(self) -> NDArray[np.float32]:
        """p(H_u): a score is the inner product of one of its rows and one of `item_embeddings`.

        float32 array, shape (n_users_, embedding_size): a read-only view of the engine's own memory,
        valid as long as the array.
        """
        return self._trained().user_rows()

    @property
    def item_embeddings(self) -> NDArray[np.float32]:
        """p(H_i), with other rows for items that are scored from their features.

        float32 array, shape (number of items, embedding_size): a read-only view of the engine's own
        memory as it is now. Changes by `score_cold_items` and `add_items` show only in a new array.
        """
        return self._trained().item_rows()

    @property
    def cold_items(self) -> NDArray[np.int32]:
        """Items without training interactions, including added ones; int32 array, ascending."""
        return self._trained().cold_items()

    @property
    def cold_users(self) -> NDArray[np.int32]:
        """Users without training interactions, ascending; int32 array.

        Their lists come from what was drawn when training began, and say nothing about them;
        `recommend_new` needs no training.
        """
        return self._trained().cold_users()

    def score_cold_items(self, features: _arrays.Features | Dataset | None = None) -> int:
        """Scores items without training interactions from their features from now on.

        Until then their scores come from embeddings that no interaction has moved. `save`, ``pickle``
        and ``copy`` do not keep this: call it again on the result.

        Parameters
        ----------
        features : dict of str to array, shape (n_items_, width), or Dataset, optional
            What was given to `fit`; needed only with ``freeze_features=True``, as other models have
            learned their features.

        Returns
        -------
        int
            How many such items there are.
        """
        if isinstance(features, Dataset):
            return self._trained().score_cold_items_of(features)
        return self._trained().score_cold_items(_arrays.features(features))

    def add_items(self, features: _arrays.Features) -> NDArray[np.int32]:
        """Adds items by their features; they can be recommended at once.

        A model with ``freeze_features=True`` needs `score_cold_items` first. `save` does not keep
        added items: add them again after `load`. A model with added items cannot be pickled or copied.

        Parameters
        ----------
        features : dict of str to array, shape (m, width) or (width,)
            A table for each modality of the model, all with the same number of rows.

        Returns
        -------
        int32 array, shape (m,)
            The numbers of the new items, after the existing ones.
        """
        rows = {
            name: value[None, :] if getattr(value, "ndim", 2) == 1 else value
            for name, value in _arrays.named(features)
        }
        first, end = self._trained().add_items(_arrays.features(rows))
        return np.arange(first, end, dtype=np.int32)


def _shaped(found: Scored, one: bool, return_scores: bool) -> Scored | NDArray[np.int32]:
    ids, scores = (found[0][0], found[1][0]) if one else found
    return (ids, scores) if return_scores else ids
