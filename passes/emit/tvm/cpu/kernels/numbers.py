"""Numbers of a layer in memory: each fills a slot, so that one load puts it in every lane."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from passes.emit.tvm.cpu.kernels.epilogue import SLOT
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, load, reinterpret
from passes.emit.tvm.cpu.vectors.base import Vectors

Number = np.generic


def slots(*numbers: Number) -> NDArray[np.uint8]:
    """Return each number repeated over `SLOT` bytes."""
    full = (np.full(SLOT // n.itemsize, n).view(np.uint8) for n in numbers)
    return np.concatenate(list(full))


class Numbers:
    """The slots of a record by name.

    Args:
        unit: the vector unit.
        buffer: uint8, as `slots` wrote it.
        names: of the slots, in order.
    """

    def __init__(self, unit: Vectors, buffer: Buffer, names: Sequence[str]) -> None:
        self._unit, self._buffer, self._names = unit, buffer, names

    def bytes(self, name: str) -> Expr:
        """Return a uint8 in every byte of a vector."""
        return load(self._buffer, self._names.index(name) * SLOT, 4 * self._unit.lanes)

    def halves(self, name: str) -> Expr:
        """Return an int16 in every half of a lane."""
        return reinterpret(self.bytes(name), f"int16x{2 * self._unit.lanes}")

    def ints(self, name: str) -> Expr:
        """Return an int32 in every lane."""
        return reinterpret(self.bytes(name), f"int32x{self._unit.lanes}")

    def floats(self, name: str) -> Expr:
        """Return a float32 in every lane."""
        return reinterpret(self.bytes(name), f"float32x{self._unit.lanes}")
