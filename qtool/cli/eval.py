"""``qtool eval``: accuracy of a run at pairs of bit-widths."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtool.checking.grid_record import TORCH, GridRecord
from qtool.cli.calibration import all_pairs, named_pairs, pairs_added, require_known
from qtool.cli.options import FILE, FOLDER, calibration_option, data_option
from qtool.cli.session import load_data, progress_shown, show
from qtool.core.errors import UserError
from qtool.core.pairs import ALL
from runtimes.registry import ENGINE, RUNTIMES

if TYPE_CHECKING:
    from qtool.checking.delta import Delta
    from qtool.checking.grid import Request
    from qtool.core.progress import Progress
    from qtool.core.selection import LayerBits
    from qtool.runs.run import Run


@click.command(name="eval")
@click.argument("run", type=FOLDER)
@click.argument("individual", type=FOLDER, nargs=-1, metavar="[INDIVIDUAL_RUN...]")
@click.option(
    "--delta", is_flag=True,
    help="Also compare with INDIVIDUAL_RUNs: networks trained at one of the pairs each.",
)  # fmt: skip
@click.option(
    "--bits", metavar="all|w4a4,w2a8,fp", default="all", show_default=True,
    help="Pairs of weight and input bits, among the run's candidates.",
)  # fmt: skip
@data_option
@calibration_option
@click.option(
    "--runtime", type=click.Choice([*RUNTIMES, TORCH]), default=ENGINE, show_default=True,
    help="What executes pairs of up to 8 bits; others are measured in torch.",
)  # fmt: skip
@click.option("--images", type=click.IntRange(1), metavar="N", help="Only the first N.")
@click.option(
    "--episodes", type=click.IntRange(2), metavar="N",
    help="Of new classes, for few-shot runs; by default as many as their recipe says.",
)  # fmt: skip
@click.option(
    "--transductive", is_flag=True,
    help="Also with BatchNorm's statistics of the test batches, which cannot be deployed.",
)  # fmt: skip
@click.option("--json", "output", type=FILE, help="Also write these pairs to a file.")
@click.option(
    "--force", is_flag=True,
    help="Replace the file of --json, and what is known of other images or runtimes.",
)  # fmt: skip
def eval_(
    run: Path,
    individual: tuple[Path, ...],
    delta: bool,
    bits: str,
    data: Path | str | None,
    calibration: Path | str | None,
    runtime: str,
    images: int | None,
    episodes: int | None,
    transductive: bool,
    output: Path | None,
    force: bool,
) -> None:
    """Measure RUN at pairs of bit-widths, as integers wherever bits allow it.

    Writes RUN/eval.json, pair by pair, and RUN/eval.png. What is known of the same weights is
    not measured again: an interrupted command goes on when it is repeated. With --delta also
    measures every INDIVIDUAL_RUN, and says how good RUN is relative to these.
    """
    import matplotlib  # noqa: F401  (where it is missing, the command ends before its work)

    from qtool.checking.grid import Request
    from qtool.core.files import refuse_existing, write_json
    from qtool.core.records import to_json
    from qtool.runs.run import Run

    opened, others = Run.open(run), _opened(individual, delta)
    if output is not None:
        refuse_existing(output, force)
    if runtime != TORCH:
        RUNTIMES[runtime].require()
    with progress_shown() as progress, _pairs(opened, bits, calibration, progress) as pairs:
        request = Request(pairs, runtime, images, transductive, force, episodes)
        record, compared = _measured(opened, others, data, request, progress)
    if output is not None:
        more = {} if compared is None else {"delta": to_json(compared)}
        write_json(output, record.to_json() | more)
    _print(record, compared)


def _measured(
    run: "Run",
    others: Sequence["Run"],
    data: Path | str | None,
    request: "Request",
    progress: "Progress",
) -> tuple[GridRecord, "Delta | None"]:
    """Return the pairs that `request` asks of `run`, and how it compares with `others`."""
    from qtool.checking.delta import delta_of, individual_runs
    from qtool.checking.grid import evaluate
    from qtool.core.pairs import pair_name
    from qtool.report.grid import grid_picture
    from qtool.runs.run import EVALUATION_PICTURE

    single = individual_runs(run, others, request.pairs) if others else {}
    loaded = load_data(run.config, data)
    whole = evaluate(run, loaded, request, progress)
    grid_picture(whole, run.path(EVALUATION_PICTURE))
    compared = delta_of(whole, single, loaded, request, progress) if others else None
    return whole.only([pair_name(pair) for pair in request.pairs]), compared


@contextmanager
def _pairs(
    run: "Run", bits: str, calibration: Path | str | None, progress: "Progress"
) -> Iterator[list["LayerBits"]]:
    """Yield the pairs that `bits` names; what they lack is taken from `calibration`.

    If the block fails, `run` is as it was.
    """
    from qtool.checking.grid import pairs_of
    from qtool.core.pairs import parse_pairs
    from qtool.runs.zero_shot import zero_shot_pairs

    trained, added = pairs_of(run), list(zero_shot_pairs(run))
    if calibration is not None:
        asked = named_pairs(bits)
        lacking = [pair for pair in asked if pair not in trained]
        with pairs_added(run, lacking, calibration, progress.note):
            yield asked
        return
    if bits.strip().lower() != ALL:
        require_known(run, all_pairs(bits))
        trained = trained + added
    yield parse_pairs(bits, trained)


def _opened(folders: Sequence[Path], delta: bool) -> list["Run"]:
    """Return the individual runs in `folders`, which --delta needs, and nothing else takes."""
    from qtool.runs.run import Run

    if delta != bool(folders):
        raise UserError(
            "--delta compares RUN with runs that were trained at one pair each: "
            "qtool eval RUN --delta INDIVIDUAL_RUN..."
        )
    return [Run.open(folder) for folder in folders]


def _print(record: GridRecord, compared: "Delta | None") -> None:
    from qtool.report.grid import grid_notes, grid_table, grid_title, savings_lines

    click.echo(grid_title(record))
    show(grid_table(record))
    for line in (*grid_notes(record), *savings_lines(record.savings)):
        click.echo(line)
    if compared is not None:
        _print_delta(compared)


def _print_delta(delta: "Delta") -> None:
    from qtool.report.delta import delta_line, delta_table

    show(delta_table(delta))
    click.echo(delta_line(delta))
