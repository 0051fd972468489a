"""Analyses of runs by name: each writes data (JSON) and a picture (PNG).

A module has ``analyse(runs, data, images, progress) -> dict`` (JSON-able, its docstring says
what is in it) and ``draw(content, path)``; it may have ``table(content)``, a rich table for
the terminal. Importing this package does not import torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.core.errors import UserError, unknown_name

if TYPE_CHECKING:
    from rich.table import Table

    from qtool.runs.run import Run

# Module, images unless --images says otherwise (0: it looks at no images), summary.
ANALYSES = {
    "activations": (
        "qtool.analyses.activations", 512,
        "input activations at every bit-width, with and without the meta-state",
    ),
    "norms": (
        "qtool.analyses.norms", 16_000,
        "a BatchNorm's running variance while its layer's bits change",
    ),
    "choices": (
        "qtool.analyses.choices", 512,
        "chosen bits against Hessian trace and operations",
    ),
    "pareto": ("qtool.analyses.pareto", 0, "accuracy against BOPs of several runs"),
}  # fmt: skip


@dataclass(frozen=True)
class Analysis:
    """One entry of `ANALYSES`, imported.

    Args:
        name: its key.
        images: how many it looks at, unless told otherwise; 0: it needs no data set.
        analyse: (runs, data set or None, images, progress) -> the JSON's content.
        draw: (content, path of a PNG).
        table: (content) -> terminal table; None where there is none.
    """

    name: str
    images: int
    analyse: Callable[..., dict[str, Any]]
    draw: Callable[[dict[str, Any], Path], None]
    table: "Callable[[dict[str, Any]], Table] | None"


def load_analysis(name: str) -> Analysis:
    """Return analysis `name`.

    Raises:
        UserError: no such analysis; with the nearest names.
    """
    if name not in ANALYSES:
        raise unknown_name("analysis", name, ANALYSES)
    module, images, _ = ANALYSES[name]
    found = import_module(module)
    table = getattr(found, "table", None)
    return Analysis(name, images, found.analyse, found.draw, table)


def only(runs: "Sequence[Run]", name: str) -> "Run":
    """Return the one run that analysis `name` takes; refuse more."""
    if len(runs) != 1:
        raise UserError(f"qtool analyse {name}: got {len(runs)} runs, expected one")
    return runs[0]
