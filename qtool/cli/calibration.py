"""``qtool export --calibration``: BatchNorm's statistics at one more pair of bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from passes.emit.base import Note
from qtool.cli.session import load_data
from qtool.core.errors import UserError

if TYPE_CHECKING:
    from qtool.core.selection import LayerBits
    from qtool.data.images import DataSet
    from qtool.export.export import ExportOptions
    from qtool.runs.run import Run


@contextmanager
def calibrated(
    folder: Path, options: "ExportOptions", data: Path | str | None, note: Note
) -> Iterator[None]:
    """Take statistics at the pair of `options`; the run keeps them if the block succeeds.

    What the export refuses whatever they are is refused before: that takes no images.

    Args:
        folder: the run.
        options: what is exported.
        data: value of ``--calibration``; None: nothing is to be done.
        note: is told what was done.

    Raises:
        UserError: several pairs or none, data that the run was not trained on, or what the
            export refuses; the run is as it was.
    """
    if data is None:
        yield
        return
    from qtool.core.files import restored
    from qtool.core.selection import Selection, parse_uniform
    from qtool.export.adaptive import OneRow
    from qtool.export.export import integer_model_at
    from qtool.runs.run import Run
    from qtool.runs.stage import Stage

    pair = None if options.bits is None else parse_uniform(options.bits)
    if pair is None:
        raise UserError(
            f"--calibration: statistics are of one pair for all layers, such as --bits w4a4, "
            f"not of {options.bits or 'no --bits'}"
        )
    run = Run.open(folder)
    integer_model_at(OneRow(run), Selection(default=pair), options.allow_float)
    with restored(run.path(Stage.NORMS.file)):
        note(_take(run, pair, _images(run, data)))
        yield


def _images(run: "Run", data: Path | str) -> "DataSet":
    """Return the data set that `data`, the value of ``--calibration``, has."""
    dataset = run.config.dataset
    if isinstance(data, Path) and (":" in dataset or not data.exists()):
        wrong = "does not exist" if not data.exists() else "is not where its images come from"
        right = dataset if ":" in dataset else f"the folder of {dataset}"
        raise UserError(
            f"--calibration {data} {wrong}: give {right}, as run {run.folder} learned from"
        )
    loaded = load_data(run.config, data)
    run.require_shape(loaded)
    return loaded


def _take(run: "Run", pair: "LayerBits", data: "DataSet") -> str:
    """Take statistics at `pair`; return what was done."""
    from qtool.core.pairs import pair_key
    from qtool.settings.base import TrainConfig
    from qtool.training.ingredients import make_batches
    from qtool.training.statistics import add_statistics

    config = run.settings(TrainConfig)
    batches = make_batches(config, data)
    count = min(config.norm_batches, len(batches))
    add_statistics(run, pair, batches, count)
    images = count * batches.size
    return f"statistics at {pair_key(pair)}: {images:,} images of {data.name}"
