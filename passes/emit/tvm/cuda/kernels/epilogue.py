"""The end of every layer's kernel: sums to codes, in the order of `qtool.core.numerics`.

    q = clip(rint(f32(acc) * factor[c]) + zero_point)      requantize
    q = clip(rint(fma(a, ra, fma(b, rb, c))))              residual addition, a or b = q
    q = table[q]                                           256 answers

or ``f32(acc) * factor[c]`` of a layer with float results. Numbers of a layer are constants of
its own, so that layers of one shape share a kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.plan.fusion import Node
from passes.emit.tvm.cuda.intrinsics import FMA
from passes.emit.tvm.cuda.kernels import tir
from passes.emit.tvm.cuda.kernels.tir import Argument, Buffer, Expr
from qtool.core import numerics
from qtool.core.dialect import Add, FloatGemm

# Of the record that every kernel with an epilogue gets: the code around its input, the
# result's window, the coefficients of an addition and its window.
_FIELDS = ("border", "zero", "lo", "hi", "ra", "rb", "c", "sum_lo", "sum_hi")
BORDER = _FIELDS.index("border")


@dataclass(frozen=True)
class Form:
    """What an epilogue does.

    Args:
        floats: results stay floats.
        residual: an addition follows.
        first: the layer's codes are its first operand.
        table: answers replace the codes.
    """

    floats: bool = False
    residual: bool = False
    first: bool = False
    table: bool = False

    @classmethod
    def of(cls, node: Node) -> "Form":
        """Return what a node with fusions needs."""
        return cls(
            isinstance(node.op, FloatGemm), node.residual is not None, node.first,
            node.table is not None,
        )  # fmt: skip

    def arguments(
        self, x: Argument, w: Argument, channels: int, y: Argument
    ) -> list[Argument]:
        """Return the arguments of a kernel: inputs, constants, result.

        Args:
            x: input.
            w: weights.
            channels: that have a bias and a factor.
            y: result.
        """
        inputs = [x, Argument("other", y.shape)] if self.residual else [x]
        constants = [
            w, Argument("bias", (channels,), "int32"),
            Argument("factor", (channels,), "float32"),
            Argument("numbers", (len(_FIELDS),), "float32"),
        ]  # fmt: skip
        if self.table:
            constants.append(Argument("table", (256,)))
        return [*inputs, *constants, y]


def record(node: Node, border: int) -> NDArray[np.float32]:
    """Return the numbers of a node; `border` is the code around its input."""
    op = node.op
    values: dict[str, float | np.float32] = dict.fromkeys(_FIELDS, 0.0)
    values |= {"border": border, "zero": op.grid.zero_point, "lo": op.lo, "hi": op.hi}
    if node.residual is not None:
        add = node.residual
        values |= {"sum_lo": add.lo, "sum_hi": add.hi}
        values |= dict(zip(("ra", "rb", "c"), coefficients(add), strict=True))
    return np.array([values[name] for name in _FIELDS], np.float32)


def coefficients(add: Add) -> tuple[np.float32, np.float32, np.float32]:
    """Return the numbers of an addition, `numerics.add_coefficients`."""
    return numerics.add_coefficients(
        add.a.scale, add.a.zero_point, add.b.scale, add.b.zero_point, add.grid.scale,
        add.grid.zero_point,
    )  # fmt: skip


class Epilogue:
    """Writes results of one kernel.

    Args:
        form: what is done.
        buffers: those of `Form.arguments`; `x` and `w` are the kernel's own.
    """

    def __init__(self, form: Form, buffers: Sequence[Buffer]) -> None:
        self._form = form
        *front, result = buffers
        self._result = tir.flat(result)
        self._table = front.pop() if form.table else None
        *front, self.w, self.bias, self._factor, self._numbers = front
        self._other = tir.flat(front.pop()) if form.residual else None
        (self.x,) = front

    def border(self) -> Expr:
        """Return the code around the layer's input as a register of four codes."""
        return T.cast(self._numbers[BORDER], "uint32") * T.uint32(0x01010101)

    def code(self) -> Expr:
        """Return the code around the layer's input, int32."""
        return T.cast(self._numbers[BORDER], "int32")

    def write(self, total: Expr, place: Expr, channel: Expr) -> None:
        """Store what becomes of the sum `total`, int32, bias included.

        Args:
            total: the sum.
            place: of the result, in all images.
            channel: that its factor is of.
        """
        scaled = T.cast(total, "float32") * self._factor[channel]
        if self._form.floats:
            T.buffer_store(self._result, scaled, [place])
            return
        code = self._clip(T.nearbyint(scaled) + self._number("zero"), "lo", "hi")
        if self._other is not None:
            code = self._sum(code, T.cast(self._other[place], "float32"))
        result = T.cast(code, "uint8")
        if self._table is not None:
            result = self._table[T.cast(result, "int32")]
        T.buffer_store(self._result, result, [place])

    def _sum(self, code: Expr, other: Expr) -> Expr:
        a, b = (code, other) if self._form.first else (other, code)
        ra, rb, c = (self._number(name) for name in ("ra", "rb", "c"))
        return self._clip(T.nearbyint(FMA(a, ra, FMA(b, rb, c))), "sum_lo", "sum_hi")

    def _clip(self, code: Expr, lo: str, hi: str) -> Expr:
        return T.max(T.min(code, self._number(hi)), self._number(lo))

    def _number(self, name: str) -> Any:
        return self._numbers[_FIELDS.index(name)]
