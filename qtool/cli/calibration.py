"""``--calibration``: BatchNorm's statistics at further pairs of bits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from passes.emit.base import Note
from qtool.cli.session import load_data
from qtool.core.errors import UserError
from qtool.core.pairs import pair_key, parse_pair
from qtool.core.selection import LayerBits
from qtool.core.zero_shot import place_of

if TYPE_CHECKING:
    from qtool.data.images import DataSet
    from qtool.export.export import ExportOptions
    from qtool.runs.run import Run

# Refuses a pair of a run, whatever its statistics are.
Refuse: TypeAlias = Callable[["Run", LayerBits], None]


@contextmanager
def calibrated(
    folder: Path, options: "ExportOptions", data: Path | str | None, note: Note
) -> Iterator[None]:
    """Take statistics at the pairs of `options`; the run keeps them if the block succeeds.

    What the export refuses whatever they are is refused before: that takes no images.

    Args:
        folder: the run.
        options: what is exported.
        data: value of ``--calibration``; None: nothing is to be done.
        note: is told what was done.

    Raises:
        UserError: no pairs, data that the run was not trained on, or what the export refuses;
            the run is as it was. Without `data`, pairs that need it.
    """
    from qtool.runs.run import Run

    run = Run.open(folder)
    if data is None:
        require_known(run, all_pairs(options.bits), note)
        yield
        return
    from qtool.core.selection import Selection
    from qtool.export.adaptive import OneRow
    from qtool.export.export import integer_model_at

    def refuse(run: Run, pair: LayerBits) -> None:
        source = OneRow(run, pair)
        integer_model_at(source, Selection(default=pair), options.allow_float)

    with pairs_added(run, named_pairs(options.bits), data, note, refuse):
        yield


@contextmanager
def pairs_added(
    run: "Run",
    pairs: Sequence[LayerBits],
    data: Path | str,
    note: Note,
    refuse: Refuse | None = None,
) -> Iterator[None]:
    """Take statistics of `run` at `pairs`; it is as it was if the block fails.

    Args:
        run: trained.
        pairs: of all layers.
        data: value of ``--calibration``.
        note: is told what was done.
        refuse: called with every pair before images are read.

    Raises:
        UserError: a pair that cannot be added, or data that the run was not trained on.
    """
    from qtool.core.files import restored
    from qtool.runs.stage import Stage
    from qtool.training.added_pairs import add_pair, require_addable

    for pair in pairs:
        require_addable(run, pair)
        if refuse is not None:
            refuse(run, pair)
    loaded = _images(run, data)
    with ExitStack() as stack:
        for stage in (Stage.NORMS, Stage.ZERO_SHOT):
            stack.enter_context(restored(run.path(stage.file)))
        for pair in pairs:
            note(add_pair(run, pair, loaded))
        yield


def require_known(
    run: "Run", pairs: Sequence[LayerBits], note: Note = lambda text: None
) -> None:
    """Refuse pairs that only images could give `run`: those between trained widths.

    Args:
        run: trained.
        pairs: of all layers.
        note: is told of pairs that were never trained, and that the run was given.

    Raises:
        UserError: such a pair, with what is missing and how to give it.
    """
    from qtool.runs.zero_shot import takes_pairs, zero_shot_pairs

    config, known = run.config, zero_shot_pairs(run)
    if not takes_pairs(run):
        return  # nothing is interpolated in such a run
    for pair in pairs:
        if pair in known:
            note(str(known[pair]))
            continue
        place = place_of(config.weight_candidates, config.activation_bits, pair)
        if not place.is_trained:
            key = pair_key(pair)
            span = place.activation if place.weight.is_trained else place.weight
            raise UserError(
                f"--bits: {key} was not trained; its grids can be interpolated {span}, "
                "but BatchNorm's statistics that belong to them are not known: take them from "
                "a few hundred training images with --calibration DIR"
            )


def named_pairs(bits: str | None) -> list[LayerBits]:
    """Return the pairs that `bits`, the value of ``--bits``, names.

    Raises:
        UserError: none, or something else than pairs for all layers.
    """
    if pairs := all_pairs(bits):
        return pairs
    raise UserError(
        "--calibration: statistics are of one pair for all layers, such as --bits w4a4, or of "
        f"several, w7a7,w5a5, not of {bits or 'no --bits'}"
    )


def all_pairs(bits: str | None) -> list[LayerBits]:
    """Return the pairs that `bits` consists of; none where it is something else."""
    found = [parse_pair(part.strip()) for part in (bits or "").split(",")]
    pairs = [pair for pair in found if pair is not None]
    return pairs if len(pairs) == len(found) else []


def _images(run: "Run", data: Path | str) -> "DataSet":
    """Return the data set that `data`, the value of ``--calibration``, has.

    Files of pictures in the folder itself are images without labels.
    """
    from qtool.data.unlabelled import holds_pictures, load_unlabelled

    dataset = run.config.dataset
    if data == Path(dataset):  # by its name: where it is by itself
        return load_data(run.config, None)
    if isinstance(data, Path) and holds_pictures(data):
        return load_unlabelled(data, dataset, run.input_shape, run.classes)
    if isinstance(data, Path) and (":" in dataset or not data.exists()):
        wrong = "does not exist" if not data.exists() else "is not where its images come from"
        right = dataset if ":" in dataset else f"the folder of {dataset}"
        raise UserError(
            f"--calibration {data} {wrong}: give {right}, as run {run.folder} learned from, "
            "or a folder of pictures"
        )
    loaded = load_data(run.config, data)
    run.require_shape(loaded)
    return loaded
