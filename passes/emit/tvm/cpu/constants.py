"""All constants of a module in one array, equal ones once."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passes.emit.tvm.cpu.kernels.layout import round_up
from passes.emit.tvm.cpu.plan.memory import ALIGNMENT


class Constants:
    """The array, in construction."""

    def __init__(self, arrays: Iterable[NDArray[Any]] = ()) -> None:
        self._parts: list[NDArray[np.uint8]] = []
        self._places: dict[bytes, int] = {}
        self.size = 0
        # Programs that only move codes have none, and TVM no empty arrays.
        for array in (np.zeros(1, np.uint8), *arrays):
            self.add(array)

    def add(self, array: NDArray[Any]) -> None:
        """Append a constant unless it is there."""
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        key = raw.tobytes()
        if key in self._places:
            return
        self._places[key] = self.size
        padded = np.zeros(round_up(raw.size + ALIGNMENT, ALIGNMENT), np.uint8)
        padded[: raw.size] = raw
        self._parts.append(padded)
        self.size += padded.size

    def place(self, array: NDArray[Any]) -> int:
        """Return the offset of a constant."""
        return self._places[np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes()]

    def array(self) -> NDArray[np.uint8]:
        """Return all of it."""
        return np.concatenate(self._parts)
