"""What a trained model answers."""

from collections.abc import Iterable
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _arrays, _native
from ._errors import NotFittedError

Scored = tuple[NDArray[np.int32], NDArray[np.float32]]


class Answers:
    """Lists, scores, metrics and embeddings of a trained model.

    While a question is answered other Python threads run, and they may ask at the same time. Ctrl-C
    ends lists and metrics of many users after those at hand, a few thousand; all else when it is done.
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
            Whether items that a user has interacted with in training may be recommended, too;
            ``implicit``'s ``filter_already_liked_items`` is its opposite.
        return_scores : bool
            Whether scores are returned.

        Returns
        -------
        ids : int32 array, shape (n, k), or (k,) for one user
            -1 where there are fewer than k items left.
        scores : float32 array of the same shape
            NaN there; with ``return_scores`` only.

        Raises
        ------
        ValueError
            For a user, item or k out of range.
        """
        asked, one = _arrays.scalar_or_ids(users, "users")
        found = self._trained().recommend(
            asked, _arrays.count(k, "k"), _arrays.exclusions(exclude), bool(with_seen)
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
        """The best items for users the model was not trained on, who have interacted with items.

        Parameters
        ----------
        item_lists : sequence of n arrays of int, or one array of int
            The items of each user, or of the only one; one item at least. Their order decides
            nothing, repeats count once.
        k, exclude, with_seen, return_scores
            As `recommend` has them; seen are the items given.

        Returns
        -------
        ids, scores
            As of `recommend`: shape (n, k), or (k,) for one array.
        """
        given: Any = item_lists if isinstance(item_lists, np.ndarray) else list(item_lists)  # type: ignore[arg-type]
        # No numbers in an array are one user without items, who is refused; an empty list is no user.
        numbers = isinstance(given, np.ndarray) and given.dtype != object
        one = (numbers or len(given) > 0) and not _arrays.is_nested(given)
        found = self._trained().recommend_new(
            _arrays.lists([given] if one else given, "item_lists"),
            _arrays.count(k, "k"),
            _arrays.exclusions(exclude),
            bool(with_seen),
        )
        return _shaped(found, one, return_scores)

    def rank(self, user: int, candidates: ArrayLike, k: int = 10, *, with_seen: bool = False) -> Scored:
        """The best of some items for one user: what a shelf of chosen items shows.

        Parameters
        ----------
        user : int
        candidates : array of int
            The items; repeats count once.
        k : int
            1 to 1024.
        with_seen : bool
            Whether items that she has interacted with in training stay.

        Returns
        -------
        ids : int32 array, shape (m,)
            m ≤ k, without filling.
        scores : float32 array, shape (m,)
        """
        items = _arrays.ids(candidates, "candidates")
        asked, one = _arrays.scalar_or_ids(user, "user")
        if not one:
            raise ValueError(f"user: {len(asked)} found, one expected")
        return self._trained().rank(int(asked[0]), items, _arrays.count(k, "k"), bool(with_seen))

    def similar_items(self, items: ArrayLike, k: int = 10) -> Scored:
        """The items nearest to items by the cosine of their embeddings, themselves left out.

        Parameters
        ----------
        items : int or array of int, shape (n,)
        k : int
            1 to 1024.

        Returns
        -------
        ids : int32 array, shape (n, k), or (k,) for one item
            -1 where there are fewer than k others.
        cosines : float32 array of the same shape
            NaN there.
        """
        asked, one = _arrays.scalar_or_ids(items, "items")
        ids, scores = self._trained().similar_items(asked, _arrays.count(k, "k"))
        return (ids[0], scores[0]) if one else (ids, scores)

    def predict(self, users: ArrayLike, items: ArrayLike) -> NDArray[np.float32]:
        """The scores of pairs, seen in training or not: the bits that lists have.

        Parameters
        ----------
        users, items : int or array of int
            Of shapes that NumPy can broadcast to one.

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

        All items are scored for each user, her training items left out. Users without training
        interactions do not count.

        Parameters
        ----------
        users, items : array of int, shape (n,)
            The interactions to be found.
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
        """p(H_u): a score is the inner product of a row of it and one of `item_embeddings`.

        float32 array, shape (n_users_, embedding_size): the engine's own memory, which cannot be
        written to and lives as long as the array.
        """
        return self._trained().user_rows()

    @property
    def item_embeddings(self) -> NDArray[np.float32]:
        """p(H_i), or what stands for it where items are scored by their features.

        float32 array, shape (number of items, embedding_size): the engine's own memory as it is
        now. What `score_cold_items` and `add_items` change shows in the next array only.
        """
        return self._trained().item_rows()

    @property
    def cold_items(self) -> NDArray[np.int32]:
        """Items without training interactions, those added among them; int32 array, ascending."""
        return self._trained().cold_items()

    def score_cold_items(self, features: _arrays.Features | None = None) -> int:
        """Scores items without training interactions by their features from now on.

        Until then their scores come from embeddings that no interaction has moved. It is no part of
        what `save`, ``pickle`` and ``copy`` keep: call it again on what comes back.

        Parameters
        ----------
        features : dict of str to array, shape (n_items_, width), optional
            What `fit` was given; needed with ``freeze_features=True`` only, as other models have
            learned theirs.

        Returns
        -------
        int
            How many there are.
        """
        return self._trained().score_cold_items(_arrays.features(features))

    def add_items(self, features: _arrays.Features) -> NDArray[np.int32]:
        """Adds items by their features, to be recommended at once.

        A model with ``freeze_features=True`` needs `score_cold_items` first. They are no part of what
        `save` keeps: add them again after `load`. A model that has some is not pickled or copied.

        Parameters
        ----------
        features : dict of str to array, shape (m, width) or (width,)
            A table for each modality of the model, all of as many rows.

        Returns
        -------
        int32 array, shape (m,)
            Their numbers, which follow those there are.
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
