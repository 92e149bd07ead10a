from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Final, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

_Ids: TypeAlias = NDArray[np.uint32]
_Pairs: TypeAlias = tuple[_Ids, _Ids]
_GivenLists: TypeAlias = tuple[NDArray[np.int64], _Ids]
_Features: TypeAlias = Sequence[tuple[str, NDArray[np.float32] | list[str]]]
_Lists: TypeAlias = tuple[NDArray[np.int32], NDArray[np.float32]]
_Path: TypeAlias = str | PathLike[str]

__all__ = [
    "VERSION",
    "Dataset",
    "EngineError",
    "Model",
    "check",
    "devices",
    "original_ids",
    "passed_over",
    "train",
]

VERSION: Final[str]

class EngineError(RuntimeError): ...

@final
class Dataset:
    @staticmethod
    def _open(
        folder: _Path,
        modalities: list[str] | None,
        features: list[tuple[str, list[str]]],
        split: list[float] | None,
        seed: int,
    ) -> Dataset: ...
    @staticmethod
    def _gather(
        train: _Pairs,
        valid: _Pairs,
        test: _Pairs,
        share: float,
        seed: int,
        features: _Features,
        sizes: tuple[int, int],
    ) -> Dataset: ...
    @property
    def name(self) -> str: ...
    @property
    def users(self) -> int: ...
    @property
    def items(self) -> int: ...
    @property
    def train(self) -> _Pairs: ...
    @property
    def valid(self) -> _Pairs: ...
    @property
    def test(self) -> _Pairs: ...
    @property
    def modalities(self) -> dict[str, int]: ...
    @property
    def warnings(self) -> list[str]: ...

@final
class Model:
    @staticmethod
    def load(path: _Path, device: object, threads: object) -> Model: ...
    @staticmethod
    def from_bytes(bytes: bytes, device: object, threads: object) -> Model: ...
    def save(self, path: _Path) -> None: ...
    def to_bytes(self) -> bytes: ...
    def record(self) -> str: ...
    @property
    def users(self) -> int: ...
    def items(self) -> int: ...
    def recommend(self, users: _Ids, k: int, excluded: _GivenLists, with_seen: bool) -> _Lists: ...
    def recommend_new(self, known: _GivenLists, k: int, excluded: _GivenLists, with_seen: bool) -> _Lists: ...
    def rank(self, user: int, candidates: _Ids, k: int, with_seen: bool) -> _Lists: ...
    def rank_new(self, known: _Ids, candidates: _Ids, k: int, with_seen: bool) -> _Lists: ...
    def similar_items(self, items: _Ids, k: int) -> _Lists: ...
    def scores(self, users: _Ids, items: _Ids) -> NDArray[np.float32]: ...
    def evaluate(self, users: _Ids, items: _Ids, lengths: list[int]) -> dict[str, float]: ...
    def cold_items(self) -> NDArray[np.int32]: ...
    def score_cold_items(self, features: _Features) -> int: ...
    def add_items(self, features: _Features) -> tuple[int, int]: ...
    def user_rows(self) -> NDArray[np.float32]: ...
    def item_rows(self) -> NDArray[np.float32]: ...

def check(
    settings: dict[str, Any],
    *,
    device: object,
    feature_storage: object,
    device_memory: object,
    threads: object,
) -> None: ...
def original_ids(folder: str) -> tuple[list[str], list[str]] | None: ...
def devices() -> list[dict[str, Any]]: ...
def passed_over() -> str | None: ...
def train(
    dataset: Dataset,
    settings: dict[str, Any],
    *,
    device: object,
    feature_storage: object,
    device_memory: object,
    threads: object,
    directory: _Path | None,
    resume: bool,
    initial: _Path | None,
    checkpoint_interval: float,
    on_start: Callable[[str], object] | None,
    on_step: Callable[[int, int, int], object] | None,
    on_epoch: Callable[[str], object] | None,
) -> tuple[Model | None, str, list[str], BaseException | None]: ...
