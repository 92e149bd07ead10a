"""A progress bar for training, if tqdm is installed and there is a terminal or a notebook."""

import json
import sys
from collections.abc import Callable
from typing import Any


class Progress:
    """Shows epochs on a tqdm bar, with the loss and the validation Recall@20."""

    def __init__(self, make_bar: Callable[..., Any]) -> None:
        self._make_bar = make_bar
        self._bar: Any = None
        self._metrics = ""

    def start(self, run: str) -> None:
        """Starts the bar from a run's facts as JSON."""
        facts = json.loads(run)
        self._bar = self._make_bar(
            total=facts["epochs"],
            initial=facts["first_epoch"] - 1,
            desc="BM3",
            unit="epoch",
            leave=True,
        )

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Shows the position within a long epoch."""
        if self._bar is not None:
            share = f"epoch {epoch}: step {step}/{steps}"
            self._bar.set_postfix_str(", ".join(filter(None, [share, self._metrics])))

    def epoch(self, record: dict[str, Any]) -> None:
        """Counts an epoch."""
        shown = {"loss": f"{record['loss']['total']:.4g}"}
        if "valid" in record:
            shown["recall@20"] = f"{record['valid']['recall@20']:.4f}"
        self._metrics = ", ".join(f"{name} {value}" for name, value in shown.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._metrics, refresh=False)
            self._bar.update(1)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def progress(wanted: bool | None) -> Progress | None:
    """A bar if it is wanted; with None, if tqdm is installed and there is a terminal or a notebook."""
    if wanted is False or (wanted is None and not _somebody_looks()):
        return None
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if wanted is None:
            return None
        raise ImportError("progress=True needs tqdm: pip install 'bm3-engine[progress]'") from None
    return Progress(tqdm)


def _somebody_looks() -> bool:
    """Whether there is a terminal or a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None and type(shell).__name__ == "ZMQInteractiveShell":
        return True
    return sys.stderr is not None and sys.stderr.isatty()
