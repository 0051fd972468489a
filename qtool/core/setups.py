"""Environments of their own, by name: what ``qtool setup NAME`` makes.

For packages that cannot be installed beside qtool's. An entry says what it is; the module that
it names has `VERSION`, `is_made` and `make` (see `qtool.core.relay.environment`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setup:
    """What is known of an environment without importing what makes it.

    Args:
        summary: one line.
        at: the module that makes it.
    """

    summary: str
    at: str

    @property
    def version(self) -> str:
        """Of what it is for."""
        return str(self._module().VERSION)

    def is_made(self) -> bool:
        """True where it is there and complete."""
        return bool(self._module().is_made())

    def make(self, python: Path | None, note: Callable[[str], None]) -> Path:
        """Make it unless it is there; return its folder."""
        place: Path = self._module().make(python, note)
        return place

    def _module(self) -> Any:
        return import_module(self.at)


SETUPS: dict[str, Setup] = {
    "relay": Setup(
        "TVM 0.19, the last with Relay, for --target relay (650 MB)",
        "qtool.core.relay.environment",
    ),
}  # fmt: skip
