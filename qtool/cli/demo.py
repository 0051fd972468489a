"""``qtool demo``: the whole chain on embedded images."""

from pathlib import Path

import click

from qtool.cli.options import FOLDER
from qtool.cli.session import progress_shown, show


@click.command()
@click.option("--out", type=FOLDER, default=Path("qtool-demo"), show_default=True)
@click.option("--force", is_flag=True, help="Replace an earlier demo in --out.")
def demo(out: Path, force: bool) -> None:
    """Run the whole chain on embedded images: train, search, export, check (minutes)."""
    from qtool.cli.demo_chain import run_demo

    with progress_shown() as progress:
        tables = run_demo(out, force, progress)
    for table in tables:
        show(table)
    click.echo(f"everything is in {out}")
