"""The devices to compute on."""

import logging
from typing import Any

from . import _native

_logger = logging.getLogger("bm3_engine")


def devices() -> list[dict[str, Any]]:
    """The CPU and every GPU that the driver shows.

    Returns
    -------
    list of dict
        Each with ``device`` (the value for `BM3`: ``"cpu"`` or a GPU's number), ``name``, and
        ``problem`` (why it cannot be used, or None).
    """
    return _native.devices()


def tell_of_choice(device: object) -> None:
    """Logs why ``"auto"`` picks the CPU although there is a GPU."""
    reason = _native.passed_over() if device == "auto" else None
    if reason is not None:
        _logger.warning("computing on the CPU because GPU 0 cannot be used: %s", reason)
