"""What ``--tune`` asks for, and the file that keeps what was found.

    {"format": 1, "entries": {mcpu: {kernel key: result}}}

A result is measured on one kind of CPU, so that it is looked up by its name too. The file is
only a cache: it may be deleted, and several exports may share it.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtool.core.errors import UserError
from qtool.core.files import read_json, write_json

FORMAT = 1
_WHAT = "tuning cache"
_REMEDY = "delete it, or choose another with --tune-cache"


@dataclass(frozen=True)
class TuneOptions:
    """How to search for the fastest tiles.

    Args:
        trials: variants measured per kernel; 0 uses what the cache holds and measures nothing.
        cache: file that keeps the results.
    """

    trials: int
    cache: Path


@dataclass
class TuneCache:
    """Results by CPU and kernel, read from and written to a JSON file.

    Args:
        path: the file; it need not exist.
        entries: {mcpu: {kernel key: result}}, results are JSON objects.
    """

    path: Path
    entries: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "TuneCache":
        """Read `path`; an empty cache if there is no such file.

        Raises:
            UserError: not a cache, or one of a newer version.
        """
        return cls(path, _read(path))

    def get(self, mcpu: str, key: str) -> dict[str, Any] | None:
        """Return the result of kernel `key` on `mcpu`, None if it was not searched for."""
        return self.entries.get(mcpu, {}).get(key)

    def put(self, mcpu: str, key: str, result: dict[str, Any]) -> None:
        """Keep `result`, JSON values, for kernel `key` on `mcpu`."""
        self.entries.setdefault(mcpu, {})[key] = result

    def save(self) -> None:
        """Write the file atomically, with what other exports have added to it meanwhile.

        Raises:
            UserError: the file was damaged meanwhile, or cannot be written.
        """
        merged = _read(self.path)
        for mcpu, results in self.entries.items():
            merged[mcpu] = merged.get(mcpu, {}) | results
        self.entries = merged
        try:
            write_json(self.path, {"format": FORMAT, "entries": merged})
        except OSError as error:
            raise UserError(
                f"{_WHAT} {self.path} cannot be written: {error.strerror}; "
                "choose another with --tune-cache"
            ) from None


def _read(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    if not path.exists():
        return {}
    try:
        content = read_json(path, _WHAT)
    except UserError as error:
        raise UserError(f"{error}; {_REMEDY}") from None
    version = content.get("format")
    if version != FORMAT:
        raise UserError(f"{_WHAT} {path}: format {version!r}, expected {FORMAT}; {_REMEDY}")
    entries: Any = content.get("entries")
    if not _is_nested(entries):
        raise UserError(
            f"{_WHAT} {path} is damaged: expected entries of CPU, kernel and result; {_REMEDY}"
        )
    found: dict[str, dict[str, dict[str, Any]]] = entries
    return found


def _is_nested(entries: Any) -> bool:
    """Whether `entries` are {mcpu: {key: {...}}}; JSON keys are always strings."""
    return isinstance(entries, dict) and all(
        isinstance(results, dict) and all(isinstance(r, dict) for r in results.values())
        for results in entries.values()
    )


def default_cache() -> Path:
    """Return the file in the user's cache folder, by the platform's rule.

    Source: XDG Base Directory Specification 0.8 (a relative path there is to be ignored).

    Raises:
        UserError: the user has no home directory.
    """
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            chosen = os.environ.get("XDG_CACHE_HOME", "")
            base = chosen if Path(chosen).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise UserError(
            f"{_WHAT}: this user has no home directory; name a file with --tune-cache"
        ) from None
    return Path(base) / "qtool" / "tune.json"
