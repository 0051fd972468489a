"""Sums and products of codes: `qtool.core.numerics.add` and `multiply`, a vector at a time.

An operand whose strides are 0 is broadcast over the pixels, such as the (C, 1, 1) gate of
squeeze-and-excitation; what is computed of it alone is then computed once a channel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels import tir
from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.epilogue import ROUND_LIMIT
from passes.emit.tvm.cpu.kernels.numbers import Numbers, slots
from passes.emit.tvm.cpu.kernels.runs import Region, store_first, walk
from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, let, load
from passes.emit.tvm.cpu.vectors.base import Vectors
from passes.emit.tvm.cpu.vectors.units import vectors

_POINTERS = [("a", "uint8"), ("b", "uint8"), ("y", "uint8"), ("numbers", "uint8")]
_SUM = ("ra", "rb", "c", "lo", "hi")
_PRODUCT = ("za", "zb", "factor", "one", "zy", "lo", "hi")


def sum_numbers(
    ra: np.float32, rb: np.float32, c: np.float32, lo: int, hi: int
) -> NDArray[np.uint8]:
    """Return the record of `AddCodes`: `numerics.add_coefficients` and the result's window."""
    return slots(np.float32(ra), np.float32(rb), np.float32(c), np.uint8(lo), np.uint8(hi))


def product_numbers(
    factor: np.float32, a_zero: int, b_zero: int, y_zero: int, lo: int, hi: int
) -> NDArray[np.uint8]:
    """Return the record of `MulCodes`: `numerics.multiply_factor`, zero points, window."""
    return slots(
        np.int32(a_zero), np.int32(b_zero), np.float32(factor), np.float32(1),
        np.float32(y_zero), np.uint8(lo), np.uint8(hi),
    )  # fmt: skip


@dataclass(frozen=True)
class Operands:
    """What two operands and their result look like.

    Args:
        isa: name of the vector unit.
        region: pixels of the result.
        a, b, y: strides; of 0 where an operand is broadcast over rows or columns.
        clip: the result's window is not [0, 255].
        clamp: results before rounding may leave int32, so they are clamped as floats first.
        parallel: split over threads.
    """

    isa: str
    region: Region
    a: Place
    b: Place
    y: Place
    clip: bool
    clamp: bool
    parallel: bool


@dataclass(frozen=True)
class AddCodes:
    """Specification of ``rint(fma(a, ra, fma(b, rb, c)))``."""

    operands: Operands

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"add_{self.operands.region}"

    def build(self, name: str) -> Any:
        """Return the function (a, b, y, numbers)."""
        return tir.function(name, _POINTERS, lambda *p: _write(self.operands, p, _SUM, _sum))


@dataclass(frozen=True)
class MulCodes:
    """Specification of ``rint(f32((a - za) * (b - zb)) * factor + zy)``."""

    operands: Operands

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"mul_{self.operands.region}"

    def build(self, name: str) -> Any:
        """Return the function (a, b, y, numbers)."""
        return tir.function(
            name, _POINTERS, lambda *p: _write(self.operands, p, _PRODUCT, _product)
        )


def _sum(unit: Vectors, numbers: Numbers, a: Expr, b: Expr) -> Expr:
    """Return sixteen sums before rounding, of int32 codes."""
    inner = unit.fma(unit.floats(b), numbers.floats("rb"), numbers.floats("c"))
    return unit.fma(unit.floats(a), numbers.floats("ra"), inner)


def _product(unit: Vectors, numbers: Numbers, a: Expr, b: Expr) -> Expr:
    """Return sixteen products before rounding, of int32 codes."""
    product = (a - numbers.ints("za")) * (b - numbers.ints("zb"))
    scaled = unit.floats(product) * numbers.floats("factor")
    # The compiler may fuse a product and a sum, which then rounds once; it can not fuse a
    # product into a product, and x * 1 + z is x + z.
    return unit.fma(scaled, numbers.floats("one"), numbers.floats("zy"))


def _write(
    spec: Operands,
    buffers: Sequence[Buffer],
    names: Sequence[str],
    formula: Callable[[Vectors, Numbers, Expr, Expr], Expr],
) -> None:
    unit, (a, b, y, record) = vectors(spec.isa), buffers
    numbers, n = Numbers(unit, record, names), unit.lanes

    places = (spec.y, spec.a, spec.b)
    held = [_repeats(spec, place, 4 * n) for place in places]
    walked = [place for place, repeated in zip(places, held, strict=True) if not repeated]

    def step(offsets: Sequence[Expr], count: int) -> None:
        rest = iter(offsets)
        starts = [0 if repeated else next(rest) for repeated in held]
        parts = []
        for i in range(-(-count // n)):
            x, z = (
                _ints(unit, codes, start + (i * n % spec.region.bytes if repeated else i * n))
                for codes, start, repeated in zip((a, b), starts[1:], held[1:], strict=True)
            )
            parts.append(_rounded(unit, formula(unit, numbers, x, z), spec.clamp))
        codes = unit.transpose(unit.pack((parts * 4)[:4]))
        if spec.clip:
            codes = T.min(T.max(codes, numbers.bytes("lo")), numbers.bytes("hi"))
        store_first(y, starts[0], let(codes), count, 4 * n)

    # A step of fewer bytes is less arithmetic.
    walk(spec.region, walked, 4 * n, step, spec.parallel, overlap=False)


def _repeats(spec: Operands, place: Place, size: int) -> bool:
    """Return whether a vector is whole pixels, to all of which an operand gives the same."""
    whole = size % spec.region.bytes == 0 and spec.region.bytes % (size // 4) == 0
    return whole and place == Place(0, 0)


def _ints(unit: Vectors, codes: Buffer, offset: Expr) -> Expr:
    return let(T.cast(load(codes, offset, unit.lanes), f"int32x{unit.lanes}"))


def _rounded(unit: Vectors, value: Expr, clamp: bool) -> Expr:
    if clamp:
        high = T.broadcast(T.float32(ROUND_LIMIT), unit.lanes)
        low = T.broadcast(T.float32(-ROUND_LIMIT), unit.lanes)
        value = T.min(T.max(value, low), high)
    return let(unit.round(value))
