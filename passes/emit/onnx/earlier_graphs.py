"""Graphs of an earlier export in a folder: their weights are replaced, so they go as well."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from passes.emit.onnx.shared_file import facts_of
from qtool.core.errors import UserError
from qtool.core.files import read_json


def earlier_graphs(index: Path, kept: Collection[str]) -> list[Path]:
    """Return the graphs that an index lists, of those that are as it was written for.

    Args:
        index: ``index.json`` of the earlier export; absent or damaged: there are none.
        kept: names of files that are written again.
    """
    try:
        pairs = read_json(index, "index").get("pairs")
    except (UserError, RecursionError):
        return []
    entries = pairs.values() if isinstance(pairs, dict) else ()
    return [
        index.parent / entry["file"]
        for entry in entries
        if isinstance(entry, dict) and _is_as_written(index.parent, entry, kept)
    ]


def _is_as_written(folder: Path, entry: dict[str, Any], kept: Collection[str]) -> bool:
    """True for a file beside the index whose content has the hash that the index says."""
    name = entry.get("file")
    if not isinstance(name, str) or Path(name).name != name or name in kept:
        return False
    path = folder / name
    if not path.is_file():
        return False
    found = facts_of(name, path.read_bytes())
    return {key: entry.get(key) for key in found} == found
