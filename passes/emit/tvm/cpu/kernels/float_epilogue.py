"""From int32 sums to the float32 output of a network: ``f32(acc) * factor``.

`qtool.core.numerics.scale_accumulators`; there are no codes, so no window, table or addition.
"""

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.epilogue import Piece
from passes.emit.tvm.cpu.kernels.tir import Buffer, let, store
from passes.emit.tvm.cpu.vectors.base import Vectors


class FloatEpilogue:
    """Writes floats for vectors of sums, in place of an `Epilogue`.

    Args:
        unit: the vector unit.
        result: float32; strides and offsets count its elements. Whole vectors are written, so
            it needs room for the outputs rounded up.
    """

    def __init__(self, unit: Vectors, result: Buffer) -> None:
        self._unit, self._result = unit, result

    def write(self, pieces: Sequence[Piece]) -> None:
        """Write the results of `pieces`."""
        lanes = self._unit.lanes
        for piece in pieces:
            value = let(self._unit.floats(piece.acc) * piece.factor)
            if piece.valid is None:
                store(self._result, piece.offset, value, lanes)
                continue
            with T.If(piece.valid), T.Then():
                store(self._result, piece.offset, value, lanes)
