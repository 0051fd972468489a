"""Options that several commands of the command line share."""

from collections.abc import Callable
from pathlib import Path

import click

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


def _data_place(_: click.Context, __: click.Parameter, value: str | None) -> Path | str | None:
    """Return a folder as a path, ``package.module:factory`` as it is."""
    if value is None or ":" not in value or Path(value).exists():
        return None if value is None else Path(value)
    return value


data_option = click.option(
    "--data", metavar="DIR|MODULE:FACTORY", callback=_data_place,
    help="Folder with the data set's files, or a function that returns data.",
)  # fmt: skip


_TVM_OPTIONS = (
    click.option(
        "--mcpu", metavar="NAME",
        help="TVM: CPU to compile for, by LLVM's name (znver4, haswell, cortex-a76); "
        "by default native, this machine's.",
    ),
    click.option(
        "--tune", type=click.IntRange(0), metavar="N",
        help="TVM: measure N variants of each kernel on this machine, keep the fastest.",
    ),
    click.option(
        "--tune-cache", type=FILE, help="TVM: file of what --tune found, read and extended."
    ),
    click.option(
        "--emit-ir", type=FILE, help="TVM: also write the module as readable TVMScript."
    ),
)  # fmt: skip


def tvm_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that are the fields of `passes.emit.tvm.target.TvmOptions`."""
    for option in reversed(_TVM_OPTIONS):
        command = option(command)
    return command
