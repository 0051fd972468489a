"""``qtool setup``: environments of their own, for packages that do not fit beside qtool's."""

from pathlib import Path

import click

from qtool.cli.options import FILE
from qtool.cli.session import progress_shown
from qtool.core.errors import UserError
from qtool.core.setups import SETUPS


@click.command()
@click.argument("name", required=False, type=click.Choice(list(SETUPS)))
@click.option(
    "--python", type=FILE, metavar="FILE", help="The Python to make it of, where this one "
    "is of another version than its packages need.",
)  # fmt: skip
def setup(name: str | None, python: Path | None) -> None:
    """Make the environment NAME, unless it is there; without NAME, list them.

    It is made in the cache folder (QTOOL_CACHE) and can be deleted at any time.
    """
    if name is None:
        if python is not None:
            raise UserError(f"--python needs a name: {', '.join(SETUPS)}")
        for known, entry in SETUPS.items():
            click.echo(f"{known} {entry.summary}: {'made' if entry.is_made() else 'not made'}")
        return
    with progress_shown() as progress:
        place = SETUPS[name].make(python, progress.note)
    click.echo(f"{place} is ready")
