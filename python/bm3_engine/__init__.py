"""BM3, the multimodal recommender, trained and served by hand-written kernels.

The interface follows ``implicit`` and scikit-learn:

>>> import numpy as np
>>> from bm3_engine import BM3
>>> users, items = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 2, 2, 3])
>>> image = np.random.default_rng(0).random((5, 8), dtype=np.float32)
>>> model = BM3(embedding_size=8, epochs=5, device="cpu")
>>> model = model.fit(users, items, features={"image": image})
>>> ids, scores = model.recommend([0, 1], k=2)
>>> ids.shape
(2, 2)

`BM3` trains, recommends and can be saved; `from_mmrec` reads a data folder of the MMRec toolbox;
`original_ids` tells which user and item a number stands for;
`devices` lists the devices to compute on. A wrong argument raises ValueError, TypeError or
FileNotFoundError; too little GPU memory raises MemoryError; a failure of a device or of training
raises `Error`.
"""

from ._dataset import Dataset, from_mmrec, original_ids
from ._devices import devices
from ._errors import Error, NotFittedError
from ._model import BM3
from ._native import VERSION as __version__

__all__ = [
    "BM3",
    "Dataset",
    "Error",
    "NotFittedError",
    "__version__",
    "devices",
    "from_mmrec",
    "original_ids",
]
