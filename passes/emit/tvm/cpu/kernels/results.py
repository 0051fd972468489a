"""Codes and sums to float32: the network's output."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.numbers import Numbers, slots
from passes.emit.tvm.cpu.kernels.runs import Region, store_first, walk
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, let, load
from passes.emit.tvm.cpu.vectors.units import vectors


def dequantize_numbers(scale: np.float32, zero: int) -> NDArray[np.uint8]:
    """Return the record of `Dequantize`."""
    return slots(np.int32(zero), np.float32(scale))


@dataclass(frozen=True)
class Dequantize:
    """Specification of ``f32(code - zero_point) * scale``; constant `dequantize_numbers`.

    Args:
        isa: name of the vector unit.
        count: codes, side by side as the floats will be.
        parallel: split over threads.
    """

    isa: str
    count: int
    parallel: bool

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"dequantize_{self.count}"

    def build(self, name: str) -> Any:
        """Return the function (x, y, numbers)."""
        pointers = [("x", "uint8"), ("y", "float32"), ("numbers", "uint8")]
        return tir.function(name, pointers, self._write)

    def _write(self, x: Buffer, y: Buffer, record: Buffer) -> None:
        unit = vectors(self.isa)
        numbers = Numbers(unit, record, ("zero", "scale"))

        def step(offsets: Sequence[Expr], count: int) -> None:
            codes = T.cast(load(x, offsets[0], unit.lanes), f"int32x{unit.lanes}")
            value = let(unit.floats(codes - numbers.ints("zero")) * numbers.floats("scale"))
            store_first(y, offsets[0], value, count, unit.lanes)

        walk(Region(1, 1, self.count), (Place(0, 0),), unit.lanes, step, self.parallel)
