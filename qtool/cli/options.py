"""Options that several commands of the command line share."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from passes.emit.base import Option, Target, options_of
from passes.emit.registry import TARGETS

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


class _Number(click.ParamType):  # type: ignore[type-arg]
    """A finite number: nothing is below NaN, so that every bar would be passed."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = float(click.FLOAT.convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


NUMBER = _Number()


def _data_place(_: click.Context, __: click.Parameter, value: str | None) -> Path | str | None:
    """Return a folder as a path, ``package.module:factory`` as it is."""
    if value is None or ":" not in value or Path(value).exists():
        return None if value is None else Path(value)
    return value


data_option = click.option(
    "--data", metavar="DIR|MODULE:FACTORY", callback=_data_place,
    help="Folder with the data set's files, or a function that returns data.",
)  # fmt: skip


calibration_option = click.option(
    "--calibration", metavar="DIR|MODULE:FACTORY", callback=_data_place,
    help="Take BatchNorm's statistics at --bits from these training images, or pictures; RUN "
    "keeps them. For bits that were never trained too, between two that were.",
)  # fmt: skip


def witness_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what decides how an export or import is compared with its origin."""
    for add in (
        click.option(
            "--no-witness", is_flag=True, help="Do not compare with what it comes from."
        ),
        click.option(
            "--accept-differences", "accept", is_flag=True,
            help="Say what is not as its origin computes it, and write it all the same.",
        ),
        click.option(
            "--witness-images", "images", type=click.IntRange(1), default=4,
            show_default=True, help="Images that both compute.",
        ),
        data_option,
    ):  # fmt: skip
        command = add(command)
    return command


def target_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every target; those that are not given are None."""
    for name, owners in reversed(_owners().items()):
        option = options_of(owners[0])[name]
        titles = ", ".join(owner.title for owner in owners)
        default = f"  [default: {option.default}]" if option.default else ""
        command = click.option(
            option.flag, name, type=_value_type(option), metavar=option.metavar,
            is_flag=option.kind is bool, default=None,
            help=f"{titles}: {option.help}{default}",
        )(command)  # fmt: skip
    return command


def output_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--output``."""
    ends = (f"{' or '.join(kind.suffixes)} ({name})" for name, kind in TARGETS.items())
    files = f"File to write: {', '.join(ends)}."
    place = click.Path(path_type=Path)
    return click.option("-o", "--output", type=place, help=files)(command)


def _owners() -> dict[str, list[type[Target]]]:
    """Return which targets have each option."""
    owners: dict[str, list[type[Target]]] = {}
    for target in TARGETS.values():
        for name in options_of(target):
            owners.setdefault(name, []).append(target)
    return owners


def _value_type(option: Option) -> Any:
    """Return click's type of a value of `option`, None for a flag."""
    if option.choices:
        return click.Choice(option.choices)
    if option.kind is int:
        return click.IntRange(option.minimum)
    return {Path: FILE, str: click.STRING, float: click.FLOAT}.get(option.kind)
