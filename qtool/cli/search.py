"""``qtool search``: bits for every layer of a run, under budgets."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtool.cli.options import FILE, FOLDER, data_option
from qtool.cli.session import load_data, progress_shown, show
from qtool.core.errors import UserError
from qtool.search import METHODS
from runtimes.registry import SEARCHED

if TYPE_CHECKING:
    from qtool.search.request import Budget


@click.command()
@click.argument("run", type=FOLDER)
@click.option(
    "--bops", multiple=True, metavar="BUDGET",
    help="BOPs per image: 5.3G, 300M, 1.2e9. Several give a front from one meta-state.",
)  # fmt: skip
@click.option("--size", multiple=True, metavar="BYTES", help="Bytes of weights: 2MB, 300K.")
@click.option("--latency", multiple=True, metavar="TIME", help="Per image: 3ms, 250us.")
@click.option(
    "--runtime", type=click.Choice(SEARCHED), default="tvm", show_default=True,
    help="Where --latency is measured, layer by layer, on this machine.",
)  # fmt: skip
@click.option("--latency-table", type=FILE, help="File of these measurements: read, or made.")
@click.option(
    "--method", type=click.Choice(list(METHODS)), default="metamix", show_default=True,
    help="See `qtool list searches`.",
)  # fmt: skip
@click.option("--weights", metavar="BITS", help="Weight candidates, such as 4 or 8,4,2.")
@click.option("--activations", metavar="BITS", help="Activation candidates, such as 8,4,3.")
@click.option("--power-of-two", is_flag=True, help="Only candidates of 1, 2, 4 and 8 bits.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="Override a setting of the run's recipe, for the search and the fine-tuning.",
)  # fmt: skip
@data_option
@click.option("--no-finetune", is_flag=True, help="Only choose the bits.")
@click.option("--out", type=FOLDER, help="Folder for the results; by default RUN itself.")
@click.option("--resume", is_flag=True, help="Continue an interrupted search.")
@click.option("--force", is_flag=True, help="Replace the results of an earlier search.")
def search(
    run: Path, bops: Sequence[str], size: Sequence[str], latency: Sequence[str], runtime: str,
    latency_table: Path | None, method: str, weights: str | None, activations: str | None,
    power_of_two: bool, settings: Sequence[str], data: Path | str | None, no_finetune: bool,
    out: Path | None, resume: bool, force: bool,
) -> None:  # fmt: skip
    """Choose every layer's bits in RUN under a budget, then fine-tune.

    The result is never above the budget. Several budgets (--bops A --bops B) give as many
    runs, in folders of --out (by default RUN/pareto), and pareto.json.
    """
    from qtool.search.request import Request

    request = Request(
        _budgets(bops, size, latency), method, _bits("--weights", weights),
        _bits("--activations", activations), power_of_two, tuple(settings), not no_finetune,
        out, runtime, latency_table, resume, force,
    )  # fmt: skip
    from qtool.parallel.together import joined
    from qtool.report.bits import bits_table
    from qtool.runs.run import Run
    from qtool.search.runner import run_search

    opened = Run.open(run)
    loaded = load_data(opened.config, data)
    with joined() as job, progress_shown() as progress:
        contents = run_search(opened, loaded, request, progress)
    if job.is_main:
        for content in contents:
            show(bits_table(content))


def _budgets(
    bops: Sequence[str], size: Sequence[str], latency: Sequence[str]
) -> "tuple[Budget, ...]":
    """Return every combination of the bounds."""
    from qtool.core.cost import parse_bytes, parse_count, parse_seconds
    from qtool.search.request import Budget

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
