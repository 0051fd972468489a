"""``qtool list``: what a name can be, and the settings of a recipe."""

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from qtool.cli.session import show
from qtool.core.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from qtool.settings.listing import Row

Rows = list[tuple[str, str]]
SETTINGS = "settings"


def _analyses() -> Rows:
    from qtool.analyses import ANALYSES

    return [(name, entry[2]) for name, entry in ANALYSES.items()]


def _datasets() -> Rows:
    from qtool.data import DATASETS

    return [(name, entry[2]) for name, entry in DATASETS.items()]


def _frontends() -> Rows:
    from qtool.settings.registry import CONFIGS

    return [(name, _first_line(kind)) for name, kind in CONFIGS.items()]


def _models() -> Rows:
    from qtool.models import MODELS

    return [
        (n, f"{'x'.join(map(str, e.input_shape))}  {e.summary}") for n, e in MODELS.items()
    ]


def _quantizers() -> Rows:
    from qtool.quantizers import QUANTIZERS

    return [(name, entry.summary) for name, entry in QUANTIZERS.items()]


def _recipes() -> Rows:
    from qtool.recipes import GENERIC, RECIPES

    return [(name, _first_line(recipe)) for name, recipe in {**GENERIC, **RECIPES}.items()]


def _runtimes() -> Rows:
    from runtimes.registry import RUNTIMES

    return [(name, entry.line) for name, entry in RUNTIMES.items()]


def _searches() -> Rows:
    from qtool.search import METHODS

    return [(name, entry.summary) for name, entry in METHODS.items()]


def _first_line(documented: object) -> str:
    return str(documented.__doc__).splitlines()[0]


def _targets() -> Rows:
    from passes.emit.registry import TARGETS

    return [(name, target.summary) for name, target in TARGETS.items()]


LISTS: dict[str, Callable[[], Rows]] = {
    "analyses": _analyses,
    "datasets": _datasets,
    "frontends": _frontends,
    "models": _models,
    "quantizers": _quantizers,
    "recipes": _recipes,
    "runtimes": _runtimes,
    "searches": _searches,
    "targets": _targets,
}


@click.command(name="list")
@click.argument("what", type=click.Choice([*LISTS, SETTINGS]))
@click.argument("recipe", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_(what: str, recipe: str | None, as_json: bool) -> None:
    """List what a name can be; `settings RECIPE`: what --set changes, and to which values."""
    if what == SETTINGS:
        _list_settings(recipe, as_json)
        return
    if recipe is not None:
        raise UserError(f"qtool list {what} takes no name, got {recipe!r}")
    rows = LISTS[what]()
    if as_json:
        click.echo(json.dumps(dict(rows), indent=1))
        return
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        click.echo(f"{name:{width}} {summary}")


def _list_settings(recipe: str | None, as_json: bool) -> None:
    if recipe is None:
        raise UserError(
            "qtool list settings needs a recipe: qtool list settings RECIPE "
            "(qtool list recipes says which)"
        )
    from qtool.recipes import load_recipe
    from qtool.settings.listing import rows_of

    rows = rows_of(load_recipe(recipe))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        show(_table(rows))


def _table(rows: "list[Row]") -> "Table":
    """Return the settings in columns; words that do not fit go on below."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("setting", no_wrap=True)
    for column, width in (("value", 20), ("range", 21), ("meaning", None)):
        table.add_column(column, overflow="fold", max_width=width)
    for row in rows:
        table.add_row(*map(Text, dataclasses.astuple(row)))
    return table
