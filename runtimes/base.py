"""What runtimes execute, and the protocol that every one of them keeps."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qtool.core.dialect import Grid, Program

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
# Images (N, C, H, W): float32, or uint8 where the model takes raw pixels.
Inputs = NDArray[Any]


@dataclass(frozen=True)
class Artifact:
    """A deployed file, and what it says of itself.

    Args:
        path: the file.
        facts: result of `passes.emit.facts.describe` for its program, and what the file's own
            runtime needs; nothing where a file is only to be timed.
        program: what it computes, where the file is the program itself.
        module: what a report says of its code, where it is code.
        pair: of bit-widths, where the file holds a network at several: which of them.
    """

    path: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    program: Program | None = None
    module: Mapping[str, Any] | None = None
    pair: str | None = None

    @property
    def name(self) -> str:
        """The file, and the pair in it."""
        return str(self.path) if self.pair is None else f"{self.path} {self.pair}"

    @property
    def tensors(self) -> list[str]:
        """Names of the program's integer tensors."""
        return list(self.facts.get("tensors", ()))

    @property
    def differs(self) -> str | None:
        """Why its arithmetic is not the reference's, where it says so itself."""
        said: str | None = self.facts.get("differs")
        return said

    @property
    def fused(self) -> list[str]:
        """Names of those that its code holds in registers only."""
        return list((self.module or {}).get("fused_tensors", ()))


class Runtime(Protocol):
    """A loaded model."""

    @classmethod
    def require(cls, artifact: Artifact | None) -> None:
        """Raise `UserError` unless it is installed and can load `artifact` on this machine."""

    @classmethod
    def open(cls, artifact: Artifact, threads: int) -> Self:
        """Load `artifact`; the runtime may use `threads` threads."""

    def run(self, x: Inputs) -> Floats:
        """Return the float output (N, classes) for input `x` (N, C, H, W)."""

    def intermediates(self, x: Inputs) -> dict[str, Codes]:
        """Return every integer tensor by name, each (N, ...)."""

    def float_ops(self) -> Counter[str]:
        """Count operators that compute in floating point between input Q and output DQ."""


@runtime_checkable
class TimesItself(Protocol):
    """A runtime in another process, which measures without the way there."""

    def times(self, x: Inputs, warmup_s: float, measure_s: float) -> list[float]:
        """Return seconds of one inference after the other, after a warm-up."""


@runtime_checkable
class TellsIslands(Protocol):
    """A runtime that tells float operators of islands from others."""

    def island_ops(self, grids: Collection[Grid]) -> Counter[str]:
        """Count those of `float_ops` that belong to islands, whose results are on `grids`."""


@runtime_checkable
class TellsDevice(Protocol):
    """A runtime that does not always compute on the same kind of device."""

    @property
    def device(self) -> str:
        """What it computes on."""


@runtime_checkable
class TellsTables(Protocol):
    """A runtime that looks answers up in tables with operators of its own."""

    def table_ops(self) -> tuple[int, int]:
        """Return how many of its operators look up, and how many there are."""
