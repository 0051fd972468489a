"""``qtool eval``: accuracy of a run at pairs of bit-widths."""

from pathlib import Path

import click

from qtool.checking.grid_record import TORCH, GridRecord
from qtool.cli.options import FILE, FOLDER, data_option
from qtool.cli.session import load_data, progress_shown, show
from runtimes.registry import ENGINE, RUNTIMES


@click.command(name="eval")
@click.argument("run", type=FOLDER)
@click.option(
    "--bits", metavar="all|w4a4,w2a8,fp", default="all", show_default=True,
    help="Pairs of weight and input bits, among the run's candidates.",
)  # fmt: skip
@data_option
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
    bits: str,
    data: Path | str | None,
    runtime: str,
    images: int | None,
    episodes: int | None,
    transductive: bool,
    output: Path | None,
    force: bool,
) -> None:
    """Measure RUN at pairs of bit-widths, as integers wherever bits allow it.

    Writes RUN/eval.json, pair by pair, and RUN/eval.png. What is known of the same weights is
    not measured again: an interrupted command goes on when it is repeated.
    """
    import matplotlib  # noqa: F401  (where it is missing, the command ends before its work)

    from qtool.checking.grid import Request, evaluate, pairs_of
    from qtool.core.files import refuse_existing, write_json
    from qtool.core.pairs import pair_name, parse_pairs
    from qtool.report.grid import grid_picture
    from qtool.runs.run import EVALUATION_PICTURE, Run

    opened = Run.open(run)
    pairs = parse_pairs(bits, pairs_of(opened))
    if output is not None:
        refuse_existing(output, force)
    if runtime != TORCH:
        RUNTIMES[runtime].require()
    request = Request(pairs, runtime, images, transductive, force, episodes)
    loaded = load_data(opened.config, data)
    with progress_shown() as progress:
        whole = evaluate(opened, loaded, request, progress)
    grid_picture(whole, opened.path(EVALUATION_PICTURE))
    asked = whole.only([pair_name(pair) for pair in pairs])
    if output is not None:
        write_json(output, asked.to_json())
    _print(asked)


def _print(record: GridRecord) -> None:
    from qtool.report.grid import grid_notes, grid_table, grid_title, savings_lines

    click.echo(grid_title(record))
    show(grid_table(record))
    for line in (*grid_notes(record), *savings_lines(record.savings)):
        click.echo(line)
