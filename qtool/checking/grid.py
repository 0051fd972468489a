"""Accuracy of a run at pairs of bit-widths, kept after each of them: ``qtool eval``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qtool.checking.episode_meter import EpisodeMeter
from qtool.checking.grid_record import (
    TORCH,
    GridRecord,
    PairRecord,
    Question,
    read_grid,
    write_grid,
)
from qtool.checking.meter import Meter
from qtool.checking.savings import savings_of
from qtool.core.errors import UserError
from qtool.core.pairs import pair_name
from qtool.core.progress import Progress
from qtool.core.selection import LayerBits
from qtool.core.zero_shot import ZeroShot
from qtool.data.images import DataSet
from qtool.data.part import digest_of
from qtool.export.adaptive import trained_key
from qtool.runs.run import EVALUATION, Run
from qtool.runs.stage import Stage
from qtool.runs.zero_shot import zero_shot_pairs
from qtool.settings.episodes import EpisodeConfig
from qtool.training.frontend import load_frontend


@dataclass(frozen=True)
class Request:
    """What to measure.

    Args:
        pairs: of bit-widths, among `pairs_of`.
        runtime: what executes deployed files, or `qtool.checking.grid_record.TORCH`.
        images: of the test set, the first ones; None for all.
        transductive: also with BatchNorm's statistics of the test batches.
        force: replace what was measured of other images or in another runtime.
        episodes: of new classes, for runs that learn such; None: as their recipe says.
    """

    pairs: Sequence[LayerBits]
    runtime: str
    images: int | None = None
    transductive: bool = False
    force: bool = False
    episodes: int | None = None


def pairs_of(run: Run) -> list[LayerBits]:
    """Return the pairs of bit-widths that `run` was made for.

    Raises:
        UserError: it has other bits from layer to layer, or is not trained yet.
    """
    if not run.is_chosen and (pairs := run.config.pairs()):
        return pairs
    run.require_weights(Stage.MODEL)
    layers = list(run.selection().layers.values())
    inner = set(layers[1:-1] or layers)
    if len(inner) != 1:
        raise UserError(
            f"run {run.folder} has bits of its own for each layer, which are no pair: use "
            "qtool export, then qtool check"
        )
    return list(inner)


def evaluate(run: Run, data: DataSet, request: Request, progress: Progress) -> GridRecord:
    """Return what is known of `run` once all pairs of `request` are measured.

    What the run directory knows of the same weights, images and runtime is not measured again.
    What is measured is written there pair by pair: an interrupted call goes on where it was.

    Raises:
        UserError: nothing trained yet; other images than the network's; a pair that has no
            statistics of BatchNorm; an evaluation of other images or in another runtime.
    """
    run.require_weights(Stage.MODEL)
    run.require_shape(data)
    path, meter = run.path(EVALUATION), meter_of(run, data, request)
    question = Question(
        trained_key(run), data.name, len(meter.data), meter.runtime, meter.episodes,
        meter.task, digest_of(meter.data.test),
    )  # fmt: skip
    record = _known(path, question, request.force, progress)
    if record is None:
        record = GridRecord(question, savings_of(run, meter.model, pairs_of(run), data), {})
    untrained = zero_shot_pairs(run)
    record = record.only([k for k, p in record.pairs.items() if _is_now(p, untrained)])
    todo = [bits for bits in request.pairs if not _has(record, bits, request.transductive)]
    progress.start("evaluating", len(todo))
    for bits in todo:
        found = record.pairs.get(pair_name(bits)) or replace(
            meter.measure(bits), zero_shot=untrained.get(bits)
        )
        if request.transductive:
            found = meter.with_batches(found)
        record = record.extended(found)
        write_grid(path, record)
        progress.step(f"{pair_name(bits)} {found.accuracy:.2f} % in {found.where}")
    return record


def meter_of(run: Run, data: DataSet, request: Request) -> Meter:
    """Return what measures `run`: on images, or on episodes where it learns from such.

    Raises:
        UserError: images are asked of a run that learns from episodes, or the other way round.
    """
    tester, config = load_frontend(run.config.frontend).tester, run.config
    if tester is None or not isinstance(config, EpisodeConfig):
        if request.episodes is not None:
            raise UserError(
                f"--episodes: run {run.folder} knows its classes; measure it on --images"
            )
        shown = replace(data, test=data.test.head(request.images))
        return Meter(run, shown, request.runtime)
    if request.images is not None:
        raise UserError(
            f"--images: run {run.folder} learns its classes from episodes; give --episodes N"
        )
    count = request.episodes or config.test_episodes
    task = f"{config.test_ways}-way {config.shots}-shot"
    return EpisodeMeter(run, data, TORCH, count, task, tester=tester(run, data))


def _is_now(known: PairRecord, untrained: Mapping[LayerBits, ZeroShot]) -> bool:
    """True where a pair that was never trained was given then what it has now."""
    return known.zero_shot == untrained.get(known.pair)


def _has(record: GridRecord, bits: LayerBits, transductive: bool) -> bool:
    known = record.pairs.get(pair_name(bits))
    return known is not None and (known.transductive is not None or not transductive)


def _known(
    path: Path, question: Question, force: bool, progress: Progress
) -> GridRecord | None:
    """Return what `path` knows of `question`; None: nothing, or nothing that is kept."""
    try:
        record = read_grid(path)
    except UserError as error:
        if force:
            return None
        raise UserError(f"{error} (--force replaces it)") from None
    if record is None or record.question == question:
        return record
    if record.question.origin != question.origin:
        progress.note(f"{path} is of other weights: everything is measured again")
    elif not force:
        same = str(record.question) == str(question)
        other = "others, of the same name" if same else f"{question}"
        raise UserError(
            f"{path} holds {record.question}, asked for are {other}; --force replaces it"
        )
    return None
