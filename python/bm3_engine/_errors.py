"""The package's own exceptions."""

from ._native import EngineError as Error

__all__ = ["Error", "NotFittedError"]


class NotFittedError(ValueError, AttributeError):
    """A model was asked before it was trained or loaded.

    It has the base classes of scikit-learn's exception of this name.
    """
