"""The parameters of a model, kept as scikit-learn's estimators keep theirs."""

from collections.abc import Sequence
from typing import Any, TypeVar

from . import _native

Self = TypeVar("Self", bound="Parameters")

#: The parameters that decide the bits of a trained model.
SETTINGS = (
    "embedding_size",
    "layers",
    "dropout",
    "reg_weight",
    "cl_weight",
    "freeze_features",
    "learning_rate",
    "learning_rate_decay",
    "batch_size",
    "epochs",
    "patience",
    "propagation",
    "self_loops",
    "seed",
    "order",
    "top_k",
    "feature_type",
)
#: The parameters that decide where to compute, and with which resources.
PLACES = ("feature_storage", "device_memory", "device", "threads")


def _differ(value: Any, default: Any) -> bool:
    """Whether a parameter is not the default; any sequence may hold the list lengths."""
    if isinstance(default, tuple) and hasattr(value, "__iter__"):
        return list(value) != list(default)
    return type(value) is not type(default) or bool(value != default)


class Parameters:
    """Holds the parameters, each as an attribute of its own name, as it was given."""

    def __init__(
        self,
        *,
        embedding_size: int = 64,
        layers: int = 1,
        dropout: float = 0.5,
        reg_weight: float = 0.1,
        cl_weight: float = 2.0,
        freeze_features: bool = False,
        learning_rate: float = 1e-3,
        learning_rate_decay: float = 1.0,
        batch_size: int = 2048,
        epochs: int = 1000,
        patience: int = 20,
        propagation: str = "light",
        self_loops: bool = False,
        seed: int = 999,
        order: str = "random",
        top_k: Sequence[int] = (5, 10, 20, 50),
        feature_type: str = "auto",
        feature_storage: str = "auto",
        device_memory: int | str | None = None,
        device: str | int = "auto",
        threads: int | None = None,
    ) -> None:
        self.embedding_size = embedding_size
        self.layers = layers
        self.dropout = dropout
        self.reg_weight = reg_weight
        self.cl_weight = cl_weight
        self.freeze_features = freeze_features
        self.learning_rate = learning_rate
        self.learning_rate_decay = learning_rate_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.propagation = propagation
        self.self_loops = self_loops
        self.seed = seed
        self.order = order
        self.top_k = top_k
        self.feature_type = feature_type
        self.feature_storage = feature_storage
        self.device_memory = device_memory
        self.device = device
        self.threads = threads
        self._check(self.get_params())

    @staticmethod
    def _check(params: dict[str, Any]) -> None:
        """Refuses parameters that are not possible."""
        _native.check({name: params[name] for name in SETTINGS}, **{name: params[name] for name in PLACES})

    def _settings(self) -> dict[str, Any]:
        """The parameters that decide the bits of a trained model."""
        return {name: getattr(self, name) for name in SETTINGS}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name, as in scikit-learn.

        Parameters
        ----------
        deep : bool
            Has no effect: no parameter has parameters.

        Returns
        -------
        dict
        """
        return {name: getattr(self, name) for name in SETTINGS + PLACES}

    def set_params(self: Self, **params: Any) -> Self:
        """Changes parameters; a trained model stays as it is until the next `fit`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For an unknown name or an impossible value; nothing is changed then.
        """
        for name in params:
            if name not in SETTINGS + PLACES:
                known = ", ".join(SETTINGS + PLACES)
                raise ValueError(f"{name}: there is no such parameter; there are {known}")
        self._check({**self.get_params(), **params})
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        default = Parameters().get_params()
        given = {name: value for name, value in self.get_params().items() if _differ(value, default[name])}
        inside = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return f"{type(self).__name__}({inside})"
