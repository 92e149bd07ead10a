"""The model that users train and ask."""

import json
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

from numpy.typing import ArrayLike

from . import _arrays, _native
from ._answers import Answers
from ._dataset import Dataset, tell_of_warnings
from ._devices import tell_of_choice
from ._parameters import SETTINGS, Parameters
from ._progress import progress as make_progress

Self = TypeVar("Self", bound="BM3")
_Path = str | os.PathLike[str]
_logger = logging.getLogger("bm3_engine")


class BM3(Parameters, Answers):
    """BM3, a recommender that learns from interactions and from features of the items.

    Parameters
    ----------
    embedding_size : int
        d, the width of every embedding: a multiple of 4 up to 512.
    layers : int
        L, propagation layers, 0 to 4.
    dropout : float
        p, the dropout of the bootstrap targets: 0 ≤ p < 1.
    reg_weight : float
        λ_reg, the weight of the Frobenius norms.
    cl_weight : float
        λ_cl, the weight of the alignment and mask losses.
    freeze_features : bool
        Keep features as inputs; otherwise they are trained, as in the published implementation.
    learning_rate, learning_rate_decay : float
        Adam's learning rate, and γ: the rate is multiplied by γ^(epoch/50).
    batch_size : int
        Training pairs per step.
    epochs, patience : int
        Training stops after `epochs` epochs, or when more than `patience` in a row have not beaten the
        best validation Recall@20.
    propagation : {"light", "gcn"}
        ``"gcn"``: with weights and LeakyReLU, the paper's equation as printed.
    self_loops : bool
        Add self-loops to the graph: the paper's A + I.
    seed : int
        The key of every draw: the same seed on the same type of processor gives the same bits, on any
        number of threads.
    order : {"random", "file"}
        ``"file"``: pairs in the order given, the same in every epoch.
    top_k : sequence of int
        List lengths of the metrics in `history_`.
    feature_type : {"auto", "f32", "f16", "bf16"}
        The type of frozen features on a GPU.
    feature_storage : {"auto", "resident", "stream"}
        Where frozen features lie on a GPU.
    device_memory : int or str, optional
        The most GPU memory that training may take, in bytes or as in ``"8GB"``; by default, what is
        free. Results do not depend on it.
    device : {"auto", "cpu"} or int
        Where to compute: a GPU's number, or GPU 0 if it can be used, else the CPU.
    threads : int, optional
        CPU threads; all by default.

    Attributes
    ----------
    history_ : list of dict
        One for each epoch of `fit`: ``epoch``, ``step``, ``learning_rate``, ``loss`` (means by term),
        ``valid`` and ``test`` (metrics, where there are such interactions), ``train_seconds``,
        ``evaluate_seconds``, ``best``. Empty after `load`.
    best_epoch_ : int
        The epoch that the model is from: the one with the best validation Recall@20, or the last.
    record_ : dict
        What the model's file says of it: in ``identity`` its settings and sizes, its ``epoch``, and
        its metrics then, ``valid`` and ``test``.
    n_users_, n_items_ : int
    modalities_ : dict of str to int
        The width of each modality's features.
    """

    history_: list[dict[str, Any]]
    record_: dict[str, Any]
    best_epoch_: int
    n_users_: int
    n_items_: int
    modalities_: dict[str, int]

    def fit(
        self: Self,
        user_ids: Any,
        item_ids: ArrayLike | None = None,
        features: _arrays.Features | None = None,
        *,
        validation: Any = None,
        test: Any = None,
        validation_fraction: float | None = None,
        users: int | None = None,
        items: int | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        progress: bool | None = None,
        directory: _Path | None = None,
        resume: bool = False,
        initial: _Path | None = None,
        checkpoint_interval: float = 30,
    ) -> Self:
        """Trains the model.

        The interpreter is released, so that other threads run. Ctrl-C ends training within a step, or at
        the end of an evaluation, saves everything if there is a directory, and raises KeyboardInterrupt;
        the model of the best epoch so far can be used.

        A model trained before stays as it is when an argument is refused or a device cannot be used;
        otherwise it is dropped at the first step.

        Warnings go to the logger ``bm3_engine``: interactions that are left out, ids without any, and
        why ``"auto"`` does not use a GPU.

        Parameters
        ----------
        user_ids : array of int, shape (n,), or sparse matrix, shape (users, items), or Dataset
            The users of the interactions; or a scipy matrix, whose nonzero entries are the
            interactions; or the result of `from_mmrec`, with its own items, features and splits.
        item_ids : array of int, shape (n,)
            The items of the interactions. Users and items are numbered from 0.
        features : dict of str to array, shape (items, width), optional
            Features by modality, row i for item i: finite numbers. Rows without interactions are items
            too, so all modalities have the same number of rows. A C-contiguous float32 array is shared
            during training, not copied: until it ends, the array and those it is a view of cannot be
            assigned to or resized, and must not be changed through another view. Other types and orders
            are copied once. A tensor that exports itself (DLPack) is taken as an array; one on a GPU is
            copied to the host by its ``cpu()``, since the engine keeps features on the GPU in its own
            layout. Files (``FILE.npy``, ``FILE.safetensors:TENSOR``, or a list of them) stay mapped.
        validation, test : (user_ids, item_ids) or sparse matrix, optional
            Held-out interactions: early stopping watches `validation`, nothing watches `test`.
        validation_fraction : float, optional
            Without `validation`, the share of each user's interactions to hold out for it (a user with
            few keeps all), 0.1 by default. 0 trains all `epochs`. A Dataset has its own split.
        users, items : int, optional
            The least number of each, whether or not they have interactions.
        callback : callable, optional
            Called after each epoch with its dict of `history_`; a true result ends training.
        progress : bool, optional
            Whether to show a tqdm bar; by default if tqdm is installed and standard error is a
            terminal, or in a notebook.
        directory : str or path, optional
            Where to keep the run, as the program `bm3-engine` does, with checkpoints. A directory that
            has a run is refused.
        resume : bool
            Continue the run in `directory`, with the same bits as a run that was never stopped.
        initial : str or path, optional
            A safetensors file of tensors to start from instead of random ones, named as in a model's
            file.
        checkpoint_interval : float
            The least seconds between two checkpoints in `directory`.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError, FileNotFoundError
            For a wrong argument.
        MemoryError
            When a GPU has too little memory.
        Error
            When a device fails, or a loss stops being finite.
        """
        # Attributes may have been set to anything.
        self._check(self.get_params())
        dataset = self._dataset(
            user_ids, item_ids, features, validation, test, validation_fraction, users, items
        )
        tell_of_choice(self.device)
        bar = make_progress(progress)

        def on_start(run: str) -> None:
            # Not earlier, so that a refused argument leaves the old model; not later, as training needs
            # its memory.
            self._forget()
            if bar is not None:
                bar.start(run)

        def on_epoch(record: str) -> bool:
            told = json.loads(record)
            if bar is not None:
                bar.epoch(told)
            return callback is not None and bool(callback(told))

        try:
            model, _, records, raised = _native.train(
                dataset,
                self._settings(),
                device=self.device,
                feature_storage=self.feature_storage,
                device_memory=self.device_memory,
                threads=self.threads,
                directory=directory,
                resume=bool(resume),
                initial=initial,
                checkpoint_interval=checkpoint_interval,
                on_start=on_start,
                on_step=None if bar is None else bar.step,
                on_epoch=None if bar is None and callback is None else on_epoch,
            )
        finally:
            # An exception's traceback holds this frame, and must not hold the lent arrays.
            del dataset
            if bar is not None:
                bar.close()
        if model is not None:
            self._remember(model, [json.loads(record) for record in records])
        if raised is not None:
            raise raised
        return self

    def _dataset(
        self,
        user_ids: Any,
        item_ids: ArrayLike | None,
        features: _arrays.Features | None,
        validation: Any,
        test: Any,
        validation_fraction: float | None,
        users: int | None,
        items: int | None,
    ) -> Dataset:
        if isinstance(user_ids, Dataset):
            for name, value in [
                ("item_ids", item_ids),
                ("features", features),
                ("validation", validation),
                ("test", test),
                ("validation_fraction", validation_fraction),
                ("users", users),
                ("items", items),
            ]:
                if value is not None:
                    raise TypeError(f"{name}: given beside a Dataset, which has its own")
            if len(user_ids.valid[0]) == 0:
                _logger.warning("the Dataset has no validation split, so that training does not stop early")
            return user_ids
        if item_ids is None and not _arrays.is_sparse(user_ids):
            raise TypeError(
                f"user_ids: {type(user_ids).__name__} found without item_ids; a sparse matrix, a "
                "Dataset or item_ids expected"
            )
        if item_ids is not None and _arrays.is_sparse(user_ids):
            raise TypeError("item_ids: given beside a sparse matrix; give features by their name")
        if validation_fraction is None:
            validation_fraction = 0.1
        if not 0 <= validation_fraction < 1:
            raise ValueError(
                f"validation_fraction: {validation_fraction} found, from 0 and less than 1 expected"
            )
        sparse = item_ids is None
        train, size = _arrays.pairs(user_ids if sparse else (user_ids, item_ids), "training")
        valid, valid_size = _arrays.pairs(validation, "validation")
        tested, test_size = _arrays.pairs(test, "test")
        least = (_arrays.count(users or 0, "users"), _arrays.count(items or 0, "items"))
        sizes = [max(every) for every in zip(size, valid_size, test_size, least)]
        share = 0.0 if validation is not None else float(validation_fraction)
        tables = _arrays.features(features)
        dataset = Dataset._gather(train, valid, tested, share, self.seed, tables, (sizes[0], sizes[1]))
        tell_of_warnings(dataset, "training data")
        if validation is not None and len(dataset.valid[0]) == 0:
            _logger.warning("validation: no interaction is left, so that training does not stop early")
        return dataset

    def _forget(self) -> None:
        self._model = None
        for name in ("history_", "best_epoch_", "n_users_", "n_items_", "modalities_", "record_"):
            self.__dict__.pop(name, None)

    def _remember(self, model: _native.Model, history: list[dict[str, Any]]) -> None:
        record = json.loads(model.record())
        self._model = model
        self.history_ = history
        self.record_ = record
        self.best_epoch_ = record["epoch"]
        self.n_users_ = record["identity"]["users"]
        self.n_items_ = record["identity"]["items"]
        self.modalities_ = {name: width for name, width in record["identity"]["modalities"]}

    def __sklearn_is_fitted__(self) -> bool:
        return self._model is not None

    def __sklearn_tags__(self) -> Any:
        """Describes the kind of estimator to scikit-learn, the only caller."""
        from sklearn.utils import Tags, TargetTags

        return Tags(estimator_type=None, target_tags=TargetTags(required=False))

    def with_interactions(self: Self, user_ids: Any, item_ids: ArrayLike | None = None) -> Self:
        """The model with other interactions in place of those it was trained on, without training.

        For newer interactions of the same users and items, say: they are what lists leave out, and, as
        in training, part of what the embeddings are made of.

        Parameters
        ----------
        user_ids, item_ids
            All interactions, as in `fit`.

        Returns
        -------
        BM3
            A new one, with these parameters. It is the model as it was trained in all else: call
            `score_cold_items` and `add_items` again. `save` keeps the interactions.

        Raises
        ------
        ValueError
            For users or items that the model does not have.
        """
        trained = self._trained()
        least = (None, None) if isinstance(user_ids, Dataset) else (self.n_users_, self.n_items_)
        share = None if isinstance(user_ids, Dataset) else 0.0
        dataset = self._dataset(user_ids, item_ids, None, None, None, share, *least)
        made = type(self)(**self.get_params())
        made._remember(trained.with_interactions(dataset), self.history_)
        return made

    def save(self, path: _Path) -> None:
        """Writes the model to a ``.safetensors`` file, whole or not at all.

        `load` and the program `bm3-engine` read it. It is the model as it was trained: call
        `score_cold_items` and `add_items` again after `load`.
        """
        self._trained().save(path)

    @classmethod
    def load(cls: type[Self], path: _Path, device: str | int = "auto", threads: int | None = None) -> Self:
        """Reads a trained model.

        Parameters
        ----------
        path : str or path
            A model's file, or the directory of a run, also one of the program `bm3-engine`. The file
            stays mapped as long as the model exists: replace it by renaming a newer file to its name, as
            `save` does, never by writing into it.
        device, threads
            As in `BM3`. A process that was forked can answer on a GPU only if its parent has not used
            or looked for one: load models with a device other than ``"cpu"`` after the fork.

        Returns
        -------
        BM3
            With the parameters it was trained with.
        """
        model = _native.Model.load(path, device, threads)
        tell_of_choice(device)
        settings = json.loads(model.record())["identity"]["config"]
        loaded = cls(**{name: settings[name] for name in SETTINGS}, device=device, threads=threads)
        loaded._remember(model, [])
        return loaded

    def __getstate__(self) -> dict[str, Any]:
        """The attributes, with a trained model as the bytes of its file.

        As with `save`, this is the model as it was trained: an unpickled or copied one scores cold items
        by their embeddings until `score_cold_items` is called again.

        Raises
        ------
        ValueError
            When items added by `add_items` would be lost.
        """
        state = self.__dict__.copy()
        model = state.pop("_model", None)
        added = 0 if model is None else model.items() - self.n_items_
        if added > 0:
            raise ValueError(
                f"this {type(self).__name__} has {added} items of add_items, which are no part of what is "
                "pickled or copied; save it, and add them again after load"
            )
        state["_bytes"] = None if model is None else model.to_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        bytes_of_model = state.pop("_bytes")
        self.__dict__.update(state)
        if bytes_of_model is not None:
            self._model = _native.Model.from_bytes(bytes_of_model, self.device, self.threads)
