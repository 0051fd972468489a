"""Accuracy of deployed files and of the torch networks that they come from."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtool.checking.models import Model
from qtool.checking.record import Glue
from qtool.core.errors import UserError
from qtool.core.records import from_json
from qtool.data.clips import clip_logits
from qtool.data.images import DataSet, Source
from runtimes.base import Floats


def top1(outputs: Floats, images: Source) -> float:
    """Return the top-1 accuracy of logits (N, classes), clips averaged, in percent."""
    return agreement(clip_logits(outputs, len(images)).argmax(1), images.labels)


def agreement(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Return how many of two lists of classes agree, in percent."""
    return 100 * int(np.count_nonzero(one == other)) / len(one)


def glue_choices(folder: Path | None) -> Glue | None:
    """Return what `folder`'s run measured about choices of glue grids, if it did."""
    if folder is None:
        return None
    from qtool.runs.run import Run

    run = Run.open(folder)
    measured = run.metrics("glue")
    try:
        return from_json(Glue, measured[-1]) if measured else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{run.path('metrics.jsonl')}: its choices of glue grids are damaged: {error!r}"
        ) from None


def torch_accuracy(model: Model, folder: Path | None, data: DataSet) -> dict[str, float]:
    """Return the accuracy of the float and the fake-quantized network at the file's bits."""
    from qtool.checking.file_layers import selection_in_run
    from qtool.networks import load_deployed, load_float
    from qtool.runs.run import Run
    from qtool.training.evaluation import accuracy

    if folder is None:
        return {}
    run = Run.open(folder)
    prepared = load_deployed(run, selection_in_run(run, model.facts))
    return {
        "float": accuracy(load_float(run), data.test),
        "fake_quant": accuracy(prepared, data.test),
    }
