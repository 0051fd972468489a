"""``qtool search``: bits for every layer of a run, under budgets."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtool.cli.options import FILE, FOLDER, data_option
from qtool.cli.session import load_data, progress_shown, show
from qtool.core.errors import UserError
from qtool.search import HELD_OUT_IMAGES, JOINT_METHOD, META_METHOD, METHODS
from runtimes.registry import SEARCHED

if TYPE_CHECKING:
    from qtool.runs.run import Run
    from qtool.search.request import Budget, Request


@click.command()
@click.argument("run", type=FOLDER)
@click.option(
    "--bops", multiple=True, metavar="BUDGET",
    help="BOPs per image: 5.3G, 300M, 1.2e9. Several give a front.",
)  # fmt: skip
@click.option(
    "--front", type=click.IntRange(1), metavar="N",
    help="N budgets in BOPs, between the cheapest and the dearest uniform bits.",
)  # fmt: skip
@click.option("--size", multiple=True, metavar="BYTES", help="Bytes of weights: 2MB, 300K.")
@click.option("--latency", multiple=True, metavar="TIME", help="Per image: 3ms, 250us.")
@click.option(
    "--runtime", type=click.Choice(SEARCHED), default="tvm", show_default=True,
    help="Where --latency is measured, layer by layer, on this machine.",
)  # fmt: skip
@click.option("--latency-table", type=FILE, help="File of these measurements: read, or made.")
@click.option(
    "--method", type=click.Choice(list(METHODS)),
    help=f"See `qtool list searches`.  [default: {META_METHOD}; of jointly trained runs "
    f"{JOINT_METHOD}]",
)  # fmt: skip
@click.option("--weights", metavar="BITS", help="Weight candidates, such as 4 or 8,4,2.")
@click.option("--activations", metavar="BITS", help="Activation candidates, such as 8,4,3.")
@click.option("--power-of-two", is_flag=True, help="Only candidates of 1, 2, 4 and 8 bits.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="Override a setting of the run's recipe, for the search and the fine-tuning.",
)  # fmt: skip
@data_option
@click.option(
    "--finetune/--no-finetune", default=None,
    help="Train at the chosen bits, or only choose them.  [default: train, but jointly "
    "trained runs]",
)  # fmt: skip
@click.option(
    "--held-out", type=click.IntRange(1), metavar="N", default=HELD_OUT_IMAGES,
    show_default=True, help="Training images that fronts of jointly trained runs are "
    "measured on.",
)  # fmt: skip
@click.option(
    "--out", type=FOLDER, help="Folder for the results.  [default: RUN itself, or RUN/pareto]"
)
@click.option("--resume", is_flag=True, help="Continue an interrupted search.")
@click.option("--force", is_flag=True, help="Replace the results of an earlier search.")
def search(
    run: Path, bops: Sequence[str], front: int | None, size: Sequence[str],
    latency: Sequence[str], runtime: str, latency_table: Path | None, method: str | None,
    weights: str | None, activations: str | None, power_of_two: bool, settings: Sequence[str],
    data: Path | str | None, finetune: bool | None, held_out: int, out: Path | None,
    resume: bool, force: bool,
) -> None:  # fmt: skip
    """Choose every layer's bits in RUN under a budget, then fine-tune.

    The result is never above the budget. Several budgets (--bops A --bops B, or --front N)
    give as many runs, in folders of --out (by default RUN/pareto), and pareto.json. Runs that
    were trained jointly at every pair of bits (mebqat, coquant) stay as they are, are not
    fine-tuned unless asked, and the command goes on where an earlier one ended.
    """
    from qtool.search.request import Request

    request = Request(
        _budgets(bops, size, latency, front), method or "", _bits("--weights", weights),
        _bits("--activations", activations), power_of_two, tuple(settings), finetune,
        out, runtime, latency_table, resume, force, front or 0, held_out,
    )  # fmt: skip
    from qtool.parallel.together import joined
    from qtool.report.bits import bits_table
    from qtool.runs.run import Run
    from qtool.search.runner import run_search
    from qtool.training.frontend import load_frontend

    opened = Run.open(run)
    is_joint = load_frontend(opened.config.frontend).search_start(opened).is_joint
    if is_joint:  # it will be drawn: where this is missing, the command ends before its work
        import matplotlib  # noqa: F401
    loaded = load_data(opened.config, data)
    with joined() as job, progress_shown() as progress:
        contents = run_search(opened, loaded, request, progress)
    if job.is_main and is_joint:
        _show_front(opened, request)
    for content in contents if job.is_main and not (is_joint and contents[1:]) else ():
        show(bits_table(content))


def _show_front(run: "Run", request: "Request") -> None:
    """Draw and print the front of a jointly trained run."""
    from qtool.report.pareto import joint_picture, joint_table
    from qtool.search.front import FRONT, FRONT_PICTURE, read_front
    from qtool.search.places import results_folder

    folder = results_folder(run, request)
    record = read_front(folder / FRONT)
    if record is None:
        raise FileNotFoundError(folder / FRONT)
    joint_picture(record, folder / FRONT_PICTURE)
    show(joint_table(record))


def _budgets(
    bops: Sequence[str], size: Sequence[str], latency: Sequence[str], front: int | None
) -> "tuple[Budget, ...]":
    """Return every combination of the bounds; none where a front has budgets of its own."""
    from qtool.core.cost import parse_bytes, parse_count, parse_seconds
    from qtool.search.request import Budget

    if front is not None:
        if bops or size or latency:
            raise UserError("--front chooses budgets itself: leave out the others, or --front")
        return ()
    if not (bops or size or latency):
        raise UserError("a search needs a budget: --bops 5.3G, --size 2MB or --latency 3ms")
    values: tuple[list[float | None], ...] = (
        [*map(parse_count, bops)] or [None],
        [*map(parse_bytes, size)] or [None],
        [*map(parse_seconds, latency)] or [None],
    )
    found = [Budget(*bounds) for bounds in itertools.product(*values)]
    names = [budget.name for budget in found]
    if len(set(names)) < len(names):
        raise UserError(f"budgets {', '.join(names)}: one of them is there twice")
    return tuple(found)


def _bits(option: str, text: str | None) -> tuple[int, ...]:
    """Parse ``8,4,2``."""
    try:
        bits = tuple(int(part) for part in (text or "").split(",") if part)
    except ValueError:
        raise UserError(f"{option} {text}: expected bits such as 4 or 8,4,2") from None
    if len(set(bits)) < len(bits):
        raise UserError(f"{option} {text}: a candidate is there twice")
    return bits
