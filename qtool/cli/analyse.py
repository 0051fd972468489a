"""``qtool analyse``: the paper's analyses of a run, as data and as a picture."""

from collections.abc import Sequence
from pathlib import Path

import click

from qtool.analyses import ANALYSES
from qtool.cli.options import FOLDER, data_option
from qtool.cli.session import load_data, progress_shown, show


@click.command()
@click.argument("what", metavar="WHAT", type=click.Choice(list(ANALYSES)))
@click.argument("runs", nargs=-1, required=True, type=FOLDER, metavar="RUN [RUN...]")
@data_option
@click.option(
    "--images", type=click.IntRange(1), metavar="N",
    help="Training images to look at: more of them, less noise, more time.",
)  # fmt: skip
@click.option("--out", type=FOLDER, help="Folder to write into; by default RUN/analyses.")
@click.option("--force", is_flag=True, help="Replace the files of an earlier analysis.")
def analyse(
    what: str,
    runs: Sequence[Path],
    data: Path | str | None,
    images: int | None,
    out: Path | None,
    force: bool,
) -> None:
    """Analyse RUNs: write WHAT.json and WHAT.png.

    \b
    activations  input activations at every bit-width, with and without the meta-state
    norms        a BatchNorm's running variance while its layer's bits change
    choices      chosen bits against Hessian trace and operations
    pareto       accuracy against BOPs of several runs
    """  # noqa: D301 (\b is click's mark of a paragraph that keeps its lines)
    import matplotlib  # noqa: F401  (where it is missing, the command ends before its work)

    from qtool.analyses import load_analysis
    from qtool.analyses.files import write_analysis
    from qtool.core.files import refuse_existing
    from qtool.runs.run import Run

    opened = [Run.open(run) for run in runs]
    folder = out or runs[0] / "analyses"
    for suffix in ("json", "png"):
        refuse_existing(folder / f"{what}.{suffix}", force)
    analysis = load_analysis(what)
    loaded = None
    if analysis.images:
        loaded = load_data(opened[0].config, data)
        opened[0].require_shape(loaded)
    with progress_shown() as progress:
        content = analysis.analyse(opened, loaded, images or analysis.images, progress)
    paths = write_analysis(analysis, content, folder)
    if analysis.table is not None:
        show(analysis.table(content))
    for path in paths:
        click.echo(f"{path}: {path.stat().st_size:,} bytes")
