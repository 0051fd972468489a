"""Unfinished training, as a run directory keeps it."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.core.errors import UserError
from qtool.parallel.together import on_main
from qtool.runs.run import CHECKPOINT, METRICS, RUN_FORMAT, Run, load_marked
from qtool.tensor_file import save_tensors

if TYPE_CHECKING:  # exporting a run again needs no torch
    from torch import Tensor

_ANEW = "; delete it to start this phase anew"


@dataclass(frozen=True)
class Checkpoint:
    """Unfinished training.

    Args:
        phase: which.
        epochs_done: whole epochs of it.
        batches_done: batches of the epoch after these.
        tensors: everything that changes while training.
        metrics_bytes: size of metrics.jsonl at this point; None: not known.
    """

    phase: str
    epochs_done: int
    batches_done: int
    tensors: dict[str, "Tensor"]
    metrics_bytes: int | None = None


def save_checkpoint(run: Run, checkpoint: Checkpoint) -> None:
    """Write unfinished training."""

    def save() -> None:
        metrics = run.path(METRICS)
        mark = {
            "format": RUN_FORMAT,
            "phase": checkpoint.phase,
            "epochs_done": checkpoint.epochs_done,
            "batches_done": checkpoint.batches_done,
            "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
        }
        save_tensors(run.path(CHECKPOINT), checkpoint.tensors, mark)

    on_main(save)


def load_checkpoint(run: Run) -> Checkpoint | None:
    """Return unfinished training, None where there is none.

    Raises:
        UserError: truncated, altered, or not written by qtool.
    """
    path = run.path(CHECKPOINT)
    if not path.exists():
        return None
    tensors, mark = load_marked(path, _ANEW)
    try:
        return Checkpoint(
            str(mark["phase"]), int(mark["epochs_done"]), int(mark.get("batches_done", 0)),
            tensors, mark.get("metrics_bytes"),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        raise UserError(f"checkpoint {path} holds no unfinished training{_ANEW}") from None


def rewind(run: Run, checkpoint: Checkpoint) -> None:
    """Forget the metrics that were added after `checkpoint` was written."""

    def cut() -> None:
        path, size = run.path(METRICS), checkpoint.metrics_bytes
        if size is not None and path.exists() and path.stat().st_size > size:
            os.truncate(path, size)

    on_main(cut)
