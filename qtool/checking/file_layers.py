"""The layers of a file by their names in the run that it was made from.

In a file a layer is called like the tensor that it makes. Where another tensor has the name
already, the input or the output, it is numbered: ``logits`` -> ``logits_2``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from passes.graph import fake_quants
from qtool.core.selection import LayerBits, Selection
from qtool.export.adaptive import RunSource
from qtool.runs.run import Run

_NUMBER = re.compile(r"_\d+$")


def selection_in_run(run: Run, facts: Mapping[str, Any]) -> Selection:
    """Return the bits of a file's layers, by their names in `run`.

    A name that is none of the run's, numbered or not, stays: who resolves the selection
    refuses it. What runs in floating point inside an island, and is no layer of the run, has
    no bits to select.

    Args:
        run: what the file was made from.
        facts: the file's, `passes.emit.facts.describe`.
    """
    views = fake_quants(RunSource(run).graph())
    own = [view.name for view in views if view.role == "weight"]
    islands = tuple(island["name"] for island in facts["islands"])
    found = {}
    names = names_in_run(list(facts["layers"]), own)
    for (name, pair), known in zip(facts["layers"].items(), names, strict=True):
        bits = LayerBits(*pair)
        if known in own or not (bits.is_float and _is_inside(name, islands)):
            found[known] = bits
    return Selection(found)


def names_in_run(names: Sequence[str], own: Sequence[str]) -> list[str]:
    """Return the name among `own` that each of a file's `names` stands for, or itself.

    Args:
        names: of a file's layers, in the order they run.
        own: of the run's layers, in that order too.
    """
    # Only where a name is none of the run's is any of them numbered.
    if {*names} <= {*own}:
        return list(names)
    free, found = dict.fromkeys(own), []
    for name in names:
        spellings = {*_spellings(name)}
        known = next((layer for layer in free if layer in spellings), name)
        free.pop(known, None)
        found.append(known)
    return found


def _spellings(name: str) -> Iterable[str]:
    """Yield `name`, and what it may be numbered from."""
    yield name
    while match := _NUMBER.search(name):
        name = name[: match.start()]
        yield name


def _is_inside(name: str, islands: tuple[str, ...]) -> bool:
    return any(name == island or name.startswith(f"{island}/") for island in islands)
