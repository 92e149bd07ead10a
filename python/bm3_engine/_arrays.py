"""Converts what users give to arrays of the types that the engine takes."""

import operator
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ids: TypeAlias = NDArray[np.uint32]
Pairs: TypeAlias = tuple[Ids, Ids]
Lists: TypeAlias = tuple[NDArray[np.int64], Ids]
Features: TypeAlias = Mapping[str, Any]
GivenFeatures: TypeAlias = list[tuple[str, NDArray[np.float32] | list[str]]]

_LARGEST_ID = 2**31 - 1
_CPU = 1  # kDLCPU


def ids(values: ArrayLike, what: str) -> Ids:
    """Numbers of users or items, as a 1-d array.

    Raises
    ------
    ValueError
        Naming the first value that is not a whole number from 0 to 2³¹ - 1.
    TypeError
        For values that are not numbers.
    """
    array = plain(values, what)
    if array.ndim != 1:
        raise ValueError(f"{what}: an array of {array.ndim} dimensions found, 1 expected")
    if array.size == 0:
        return np.empty(0, np.uint32)
    if array.dtype.kind not in "iuf":
        raise TypeError(
            f"{what}: values of type {array.dtype} found, numbers from 0 expected; "
            "pandas.factorize makes numbers of other ids"
        )
    if array.dtype.kind == "f" and array.itemsize < 8:
        # Smaller floats cannot represent the largest id.
        array = array.astype(np.float64)
    # NaN fails each comparison.
    fits = (array >= 0) & (array <= _LARGEST_ID)
    if array.dtype.kind == "f":
        fits &= np.floor(array) == array
    if not fits.all():
        position = int(np.argmin(fits))
        raise ValueError(
            f"{what}: {array[position]} found at position {position}, a whole number from 0 to "
            f"{_LARGEST_ID} expected"
        )
    return np.ascontiguousarray(array, dtype=np.uint32)


def plain(values: Any, what: str) -> NDArray[Any]:
    """An array without masked values.

    Raises
    ------
    ValueError
        For a masked array with masked values.
    """
    if np.ma.is_masked(values):
        raise ValueError(f"{what}: masked values found; take those that are not, as by .compressed()")
    return np.asarray(values)


def scalar_or_ids(values: ArrayLike, what: str) -> tuple[Ids, bool]:
    """As `ids`, but also takes a single number; the second result says whether it did."""
    array = plain(values, what)
    if array.ndim == 0:
        return ids(array.reshape(1), what), True
    return ids(array, what), False


def lists(values: Iterable[ArrayLike], what: str) -> Lists:
    """Lists of different lengths, as bounds and the numbers between them."""
    arrays = [ids(value, f"{what}[{position}]") for position, value in enumerate(values)]
    bounds = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(array) for array in arrays], out=bounds[1:])
    flat = np.concatenate(arrays) if arrays else np.empty(0, np.uint32)
    return bounds, flat


def is_nested(values: object) -> bool:
    """Whether the values are lists themselves, not numbers."""
    if isinstance(values, np.ndarray):
        return values.ndim == 2 or (values.dtype == object and is_nested(list(values)))
    return isinstance(values, Sequence) and any(np.ndim(value) > 0 for value in values)


def one_or_lists(values: ArrayLike | Iterable[ArrayLike], what: str) -> tuple[Lists, bool]:
    """As `lists`, but also takes a single list; the second result says whether it did."""
    given: Any = values if isinstance(values, np.ndarray) else list(values)  # type: ignore[arg-type]
    # An empty array of numbers is one list; an empty sequence is none.
    numbers = isinstance(given, np.ndarray) and given.dtype != object
    one = (numbers or len(given) > 0) and not is_nested(given)
    return lists([given] if one else given, what), one


def exclusions(values: Any, count: int) -> Lists:
    """The items that `count` lists leave out: one list for all of them, or one for each."""
    if values is None:
        return lists([[]], "exclude")
    if not is_nested(values):
        return lists([values], "exclude")
    each = lists(values, "exclude")
    if len(each[0]) - 1 != count:
        raise ValueError(f"exclude: {len(each[0]) - 1} lists found, one for each of {count} expected")
    return each


def count(value: Any, what: str, most: int = sys.maxsize) -> int:
    """A whole number from 0 to `most`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= most:
        limit = f" to {most}" if number > most else ""
        raise ValueError(f"{what}: {value!r} found, a whole number from 0{limit} expected")
    return number


def counts(values: Any, what: str) -> list[int]:
    """One or several whole numbers from 0."""
    try:
        return [count(operator.index(values), what)]
    except TypeError:
        pass
    try:
        several = list(values)
    except TypeError:
        several = [values]
    return [count(value, what) for value in several]


def is_sparse(value: object) -> bool:
    """Whether a value is a sparse matrix or array of scipy, without importing scipy."""
    return hasattr(value, "tocsr") and hasattr(value, "shape")


def pairs(value: Any, what: str) -> tuple[Pairs, tuple[int, int]]:
    """The interactions in a sparse matrix of users and items, or in two arrays; and the least number
    of users and of items."""
    if value is None:
        return (np.empty(0, np.uint32), np.empty(0, np.uint32)), (0, 0)
    if is_sparse(value):
        matrix = value.tocsr()
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        matrix = matrix.tocoo()
        kept = matrix.data != 0
        users, items = ids(matrix.row[kept], what), ids(matrix.col[kept], what)
        return (users, items), (int(matrix.shape[0]), int(matrix.shape[1]))
    try:
        user_ids, item_ids = value
    except (TypeError, ValueError):
        raise TypeError(
            f"{what}: {type(value).__name__} found, (user_ids, item_ids) or a sparse matrix expected"
        ) from None
    both = ids(user_ids, f"{what} user_ids"), ids(item_ids, f"{what} item_ids")
    return both, (0, 0)


def features(given: Features | None) -> GivenFeatures:
    """Features by modality, as C-contiguous f32 or as names of files.

    An array that already is C-contiguous f32 is passed on, not copied.
    """
    if given is None:
        return []
    return [(str(name), _table(value, str(name))) for name, value in named(given)]


def named(given: Features) -> Iterable[tuple[str, Any]]:
    """The names of modalities, and the value given for each."""
    if not isinstance(given, Mapping):
        raise TypeError(
            f"features: {type(given).__name__} found, a dictionary from the names of modalities "
            'to arrays expected, as in {"image": array}'
        )
    return given.items()


def _table(value: Any, name: str) -> NDArray[np.float32] | list[str]:
    if isinstance(value, (str, os.PathLike)):
        return [os.fspath(value)]
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (str, os.PathLike)):
        return [os.fspath(file) for file in value]
    array = _on_host(value, name)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"features[{name!r}]: values of type {array.dtype} found, numbers expected")
    if array.ndim != 2:
        raise ValueError(
            f"features[{name!r}]: an array of {array.ndim} dimensions found, 2 expected: a row for each item"
        )
    # Values beyond f32 become infinite, which the engine refuses, naming row and column.
    with np.errstate(over="ignore"):
        contiguous = np.ascontiguousarray(array, dtype=np.float32)
    # Copies an array at a misaligned address.
    return np.require(contiguous, requirements=["ALIGNED"])


def _on_host(value: Any, name: str) -> NDArray[Any]:
    """An array in host memory, from an array or anything with ``__dlpack__``."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):
        return plain(value, f"features[{name!r}]")
    # A PyTorch tensor that requires gradients does not export itself.
    tensor = value.detach() if hasattr(value, "detach") else value
    if hasattr(tensor, "__dlpack_device__") and int(tensor.__dlpack_device__()[0]) != _CPU:
        if not hasattr(tensor, "cpu"):
            raise TypeError(
                f"features[{name!r}]: {type(value).__name__} on another device found, which has no "
                "method cpu(); copy it to the host first"
            )
        tensor = tensor.cpu()
    try:
        return cast(NDArray[Any], np.from_dlpack(tensor))
    except (BufferError, RuntimeError) as error:
        raise TypeError(
            f"features[{name!r}]: {error}; convert it to float32 first, as by .float()"
        ) from error
