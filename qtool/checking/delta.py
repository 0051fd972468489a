"""Accuracy of one network at several precisions against networks trained for one each.

Delta_B = mean over b in B of 100 accuracy(network at b) / accuracy(network trained at b)

in percent (CoQuant, arXiv 2103.01435). 100: on average as good as the individual networks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from qtool.checking.grid import Request, evaluate, pairs_of
from qtool.checking.grid_record import GridRecord
from qtool.core.errors import UserError
from qtool.core.pairs import pair_name
from qtool.core.progress import Progress
from qtool.core.selection import LayerBits
from qtool.data.images import DataSet
from qtool.runs.run import Run


@dataclass(frozen=True)
class DeltaRow:
    """One precision.

    Args:
        accuracy: top-1 of the network at these bits, percent.
        individual: top-1 of the network that was trained for them alone, percent.
        relative: the first in percent of the second.
        run: directory of the individual network.
    """

    accuracy: float
    individual: float
    relative: float
    run: str


@dataclass(frozen=True)
class Delta:
    """Delta_B, and what it is the mean of, by pair (`qtool.core.pairs.pair_name`)."""

    delta: float
    pairs: Mapping[str, DeltaRow]


def individual_runs(
    run: Run, others: Sequence[Run], pairs: Sequence[LayerBits]
) -> dict[LayerBits, Run]:
    """Return which of `others` was trained for each of `pairs`.

    Raises:
        UserError: one of several pairs, or of none of `pairs`; two of one pair, or none of
            some; one of other images or classes than `run`.
    """
    found: dict[LayerBits, Run] = {}
    for other in others:
        trained = pairs_of(other)
        if len(trained) != 1:
            raise UserError(
                f"--delta {other.folder}: it serves {len(trained)} pairs of bits, not one: "
                "give runs that were trained at one pair each (frontend qat)"
            )
        (pair,) = trained
        if pair in found:
            raise UserError(
                f"--delta: {found[pair].folder} and {other.folder} were both trained at "
                f"{pair_name(pair)}: give one of them"
            )
        _require_same_images(run, other)
        found[pair] = other
    names = ", ".join(pair_name(pair) for pair in pairs)
    for pair in found:
        if pair not in pairs:
            raise UserError(
                f"--delta {found[pair].folder}: it was trained at {pair_name(pair)}, and run "
                f"{run.folder} is compared at {names}: leave it out, or change --bits"
            )
    if lacking := [pair_name(pair) for pair in pairs if pair not in found]:
        raise UserError(
            f"--delta: no run was trained at {', '.join(lacking)}: give one of each pair, or "
            "name the pairs that there are in --bits"
        )
    return {pair: found[pair] for pair in pairs}


def _require_same_images(run: Run, other: Run) -> None:
    mine, theirs = run.config, other.config
    if mine.dataset != theirs.dataset:
        raise UserError(
            f"--delta {other.folder}: it was trained on {theirs.dataset}, run {run.folder} on "
            f"{mine.dataset}"
        )
    shapes = [(each.input_shape, each.classes) for each in (run, other)]
    if shapes[0] != shapes[1]:
        (shape, classes), (other_shape, other_classes) = shapes
        raise UserError(
            f"--delta {other.folder}: it was trained on {other_classes} classes of "
            f"{other_shape}, run {run.folder} on {classes} of {shape}"
        )


def delta_of(
    record: GridRecord,
    others: Mapping[LayerBits, Run],
    data: DataSet,
    request: Request,
    progress: Progress,
) -> Delta:
    """Return Delta_B; what eval.json of a run knows is not measured again.

    Args:
        record: of the network, with all pairs of `others`.
        others: of `individual_runs`.
        data: that `record` is of.
        request: that `record` answers.
        progress: shows what is done.

    Raises:
        UserError: what `qtool.checking.grid.evaluate` refuses, such as an eval.json of other
            images; a network that is never right.
    """
    rows: dict[str, DeltaRow] = {}
    for pair, other in others.items():
        name = pair_name(pair)
        asked = replace(request, pairs=[pair], transductive=False)
        alone = evaluate(other, data, asked, progress).pairs[name].accuracy
        if alone == 0:
            raise UserError(f"--delta {other.folder}: it is right for none of the images")
        mine = record.pairs[name].accuracy
        rows[name] = DeltaRow(mine, alone, 100 * mine / alone, str(other.folder))
    return Delta(fmean(row.relative for row in rows.values()), rows)
