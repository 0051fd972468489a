"""``qtool list``: what a name can be."""

from collections.abc import Callable

import click

Rows = list[tuple[str, str]]


def _analyses() -> Rows:
    from qtool.analyses import ANALYSES

    return [(name, entry[2]) for name, entry in ANALYSES.items()]


def _datasets() -> Rows:
    from qtool.data import DATASETS

    return [(name, entry[2]) for name, entry in DATASETS.items()]


def _models() -> Rows:
    from qtool.models import MODELS

    return [
        (n, f"{'x'.join(map(str, e.input_shape))}  {e.summary}") for n, e in MODELS.items()
    ]


def _quantizers() -> Rows:
    from qtool.quantizers import QUANTIZERS

    return [(name, entry.summary) for name, entry in QUANTIZERS.items()]


def _recipes() -> Rows:
    from qtool.recipes import RECIPES

    return [(name, str(recipe.__doc__).splitlines()[0]) for name, recipe in RECIPES.items()]


def _runtimes() -> Rows:
    from runtimes.registry import RUNTIMES

    return [(name, entry.line) for name, entry in RUNTIMES.items()]


def _searches() -> Rows:
    from qtool.search import METHODS

    return [(name, entry[1]) for name, entry in METHODS.items()]


def _targets() -> Rows:
    from passes.emit.registry import TARGETS

    return [(name, target.summary) for name, target in TARGETS.items()]


LISTS: dict[str, Callable[[], Rows]] = {
    "analyses": _analyses,
    "datasets": _datasets,
    "models": _models,
    "quantizers": _quantizers,
    "recipes": _recipes,
    "runtimes": _runtimes,
    "searches": _searches,
    "targets": _targets,
}


@click.command(name="list")
@click.argument("what", type=click.Choice(list(LISTS)))
def list_(what: str) -> None:
    """List what a name can be."""
    rows = LISTS[what]()
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        click.echo(f"{name:{width}} {summary}")
