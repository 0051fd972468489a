"""``qtool train``: a recipe and data into a run directory."""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import click

from qtool.cli.options import FOLDER, data_option
from qtool.cli.session import load_data, progress_shown, show


@click.command()
@click.argument("recipe")
@data_option
@click.option("--epochs", type=click.IntRange(0), help="Epochs of float pre-training.")
@click.option("--model", metavar="NAME", help="Another network; also package.module:factory.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="Override a setting, one of `qtool list settings RECIPE`.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@click.option("--force", is_flag=True, help="Replace the run in --out.")
@click.option("--out", type=FOLDER, required=True, help="Run directory to write.")
def train(
    recipe: str,
    data: Path | str | None,
    epochs: int | None,
    model: str | None,
    settings: Sequence[str],
    resume: bool,
    force: bool,
    out: Path,
) -> None:
    """Train RECIPE into a run directory (see `qtool list recipes`)."""
    from qtool.recipes import load_recipe
    from qtool.recipes.generic import complete
    from qtool.settings.override import override

    if epochs is not None:
        settings = [*settings, f"float_epochs={epochs}"]
    if model is not None:
        settings = [*settings, f"model={model}"]
    if isinstance(data, str):
        settings = [*settings, f"dataset={data}"]
    config = complete(override(load_recipe(recipe), settings), data)
    loaded = load_data(config, data)
    from qtool.parallel.together import joined
    from qtool.runs.attempt import begun
    from qtool.training.frontend import load_frontend

    frontend = load_frontend(config.frontend)
    with joined() as job:
        frontend.check(config, loaded)
        with begun(out, config, loaded, resume, force) as run, progress_shown() as progress:
            table = frontend.train(run, loaded, progress, resume)
    if job.is_main:
        if table is not None:
            show(table)
        again = "" if data is None else f" --data {quote(str(data))}"
        hint = frontend.next.format(run=quote(str(out)), bits=config.example_bits, data=again)
        click.echo(f"trained {config.name} -> {out}; next: {hint}")
