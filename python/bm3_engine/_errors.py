"""The exceptions that are not Python's own."""

from ._native import EngineError as Error

__all__ = ["Error", "NotFittedError"]


class NotFittedError(ValueError, AttributeError):
    """A model was asked before it was trained or loaded.

    Of the classes that scikit-learn's exception of this name has.
    """
