"""What can be computed on."""

from typing import Any

from . import _native


def devices() -> list[dict[str, Any]]:
    """The CPU and every GPU that the driver shows.

    Returns
    -------
    list of dict
        Each with ``device`` (what `BM3` takes: ``"cpu"`` or a GPU's number), ``name``, and
        ``problem``: why it cannot be used, or None.
    """
    return _native.devices()
