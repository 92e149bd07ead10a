"""Data folders of the MMRec toolbox."""

import logging
import os
from collections.abc import Mapping, Sequence

from . import _arrays, _native
from ._native import Dataset

__all__ = ["Dataset", "from_mmrec", "original_ids"]

_Path = str | os.PathLike[str]
_ONE = (str, os.PathLike)
_logger = logging.getLogger("bm3_engine")


def from_mmrec(
    folder: _Path,
    *,
    modalities: Sequence[str] | None = None,
    features: Mapping[str, _Path | Sequence[_Path]] | None = None,
    split: Sequence[float] | None = None,
    seed: int = 999,
) -> Dataset:
    """Read a data folder in MMRec's layout.

    The folder holds ``NAME.inter`` (tab-separated, with the columns ``userID``, ``itemID`` and
    ``x_label``: 0 train, 1 valid, 2 test) and a ``MODALITY_feat.npy`` for each modality, row i for
    item i. Features stay mapped in their files and are never copied into memory as a whole.

    Parameters
    ----------
    folder : str or path
        The folder.
    modalities : sequence of str, optional
        The modalities to read; all by default.
    features : dict, optional
        Files elsewhere, by modality: ``FILE.npy``, ``FILE.safetensors:TENSOR``, or several of them,
        whose rows are joined in order.
    split : sequence of three floats, optional
        Shares of each user's interactions for training, validation and test, such as
        ``(0.8, 0.1, 0.1)``, instead of ``x_label``.
    seed : int
        The key of that split.

    Returns
    -------
    Dataset
        With ``users`` and ``items`` (their numbers), ``train``, ``valid`` and ``test`` (pairs of arrays of
        users and items), ``modalities`` (widths by name) and ``warnings``. `BM3.fit` takes it.

    Raises
    ------
    FileNotFoundError
        When the folder or a file does not exist.
    ValueError
        When one is malformed, naming the file and the line or field.
    """
    files = [
        (name, [os.fspath(file) for file in ([value] if isinstance(value, _ONE) else value)])
        for name, value in (features or {}).items()
    ]
    dataset = Dataset._open(
        folder,
        None if modalities is None else list(modalities),
        files,
        None if split is None else list(split),
        _arrays.count(seed, "seed", most=2**64 - 1),
    )
    tell_of_warnings(dataset, os.fspath(folder))
    return dataset


def original_ids(folder: _Path) -> tuple[list[str], list[str]] | None:
    """Read the original ids of users and items, which the program's ``prepare`` keeps.

    Parameters
    ----------
    folder : str or path
        A data folder, the directory of a run on one, or a model's file in that.

    Returns
    -------
    (list of str, list of str) or None
        The id of each user and of each item, by number; None where no ids are kept.

    Raises
    ------
    FileNotFoundError
        When there is no such folder.
    ValueError
        When a file of ids is malformed, naming the line.
    """
    return _native.original_ids(os.fspath(folder))


def tell_of_warnings(dataset: Dataset, name: object) -> None:
    """Logs the warnings of a data set."""
    for warning in dataset.warnings:
        _logger.warning("%s: %s", name, warning)
