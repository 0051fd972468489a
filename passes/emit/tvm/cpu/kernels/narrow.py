"""Weights of few bits out of wider ones: 256 answers, then as many in a byte as there fit."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.kernels.packed_weights import fields, pack
from passes.emit.tvm.cpu.kernels.tir import Buffer, let


@dataclass(frozen=True)
class Narrow:
    """Specification of narrow weights, in the order in which another kernel reads them.

    How many there are is a constant, so that one function serves all layers.

    Args:
        bits: of a field of the result (`packed_weights`); 8 for a byte each.
    """

    bits: int

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"narrow{self.bits}"

    def build(self, name: str) -> Any:
        """Return the function (y, x, table, shape): see `narrow`."""
        pointers = [("y", "uint8"), ("x", "uint8"), ("table", "uint8"), ("shape", "int32")]
        return tir.function(name, pointers, self._write)

    def _write(self, y: Buffer, x: Buffer, table: Buffer, shape: Buffer) -> None:
        count = fields(self.bits)
        outer, steps, inner = (let(shape[axis]) for axis in range(3))
        rows = let((steps + (count - 1)) // count)
        with T.serial(0, outer) as o, T.serial(0, rows) as r, T.serial(0, inner) as i:
            value = T.uint8(0)
            for f in range(count):
                step = r * count + f
                code = table[T.Cast("int32", x[(o * steps + step) * inner + i])]
                # Behind the last step there is nothing to read.
                answer = T.if_then_else(step < steps, code, T.uint8(0))
                low = answer & T.uint8((1 << self.bits) - 1)
                # The first is in the top bits.
                value = value | (low << T.uint8(8 - self.bits * (f + 1)))
            T.buffer_store(y, value, [(o * rows + r) * inner + i])


Shape = tuple[int, int, int]


def narrow(
    wide: NDArray[np.int8], table: NDArray[np.int8], shape: Shape, bits: int
) -> NDArray[np.int8]:
    """Return what `Narrow` makes of `wide`, one-dimensional.

    Args:
        wide: codes, bytes (outer, steps, inner).
        table: answers to their bytes.
        shape: outer, steps, inner; `8 / bits` consecutive steps share a byte of the result.
        bits: of a field.
    """
    outer, steps, inner = shape
    codes = table[wide.reshape(-1).view(np.uint8)]
    return pack(codes.reshape(outer, steps, 1, inner), bits).reshape(-1)


def codes_of(made: NDArray[np.int8], shape: Shape, bits: int) -> NDArray[np.int8]:
    """Return the codes (outer, steps, inner) of what `narrow` made."""
    outer, steps, inner = shape
    parts = made.reshape(outer, -1, 1, inner).view(np.uint8)
    left = bits * np.arange(fields(bits), dtype=np.uint8)[:, None]
    codes: NDArray[np.int8] = (parts << left).view(np.int8) >> (8 - bits)
    return codes.reshape(outer, -1, inner)[:, :steps]
