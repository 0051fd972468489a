"""From int32 sums to the codes of the result: what every convolution kernel ends with.

``clip(rint(f32(acc) * factor) + zero_point)`` of `qtool.core.numerics.requantize`; then, where
the plan fused them, a residual addition and a table of 256 answers. Four vectors of sums
become one vector of codes: int32 saturates to int16, takes the zero point with saturation, and
saturates to uint8. Saturating is monotone and the window lies inside [0, 255], so clipping
last is exact.

Numbers come from a record in memory (`Numbers`), so that layers of one shape share a kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.tir import Buffer, Expr, let, load, reinterpret, store
from passes.emit.tvm.cpu.vectors.base import Vectors, shuffle

SLOT = 64  # bytes of a broadcast number in a record: one vector of the widest unit
_SLOTS = ("zero16", "lo", "hi", "zero32", "lo32", "hi32", "ra", "rb", "c", "add_lo", "add_hi")
RECORD_BYTES = SLOT * (len(_SLOTS) + 4)
# Below this bound the product of a sum and its factor converts to int32 without a clamp.
ROUND_LIMIT = 2.0**30


@dataclass(frozen=True)
class Window:
    """Zero point and window of a result."""

    zero: int
    lo: int
    hi: int


@dataclass(frozen=True)
class Residual:
    """An addition behind the kernel: `numerics.add_coefficients` and its window."""

    ra: float
    rb: float
    c: float
    lo: int
    hi: int


def record(
    window: Window, residual: Residual | None = None, table: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Return the numbers of an epilogue as the kernel reads them."""
    r = residual or Residual(0, 0, 0, 0, 255)
    values = (
        np.int16(window.zero), np.uint8(window.lo), np.uint8(window.hi),
        np.int32(window.zero), np.int32(window.lo), np.int32(window.hi),
        np.float32(r.ra), np.float32(r.rb), np.float32(r.c), np.uint8(r.lo), np.uint8(r.hi),
    )  # fmt: skip
    slots = [np.full(SLOT // v.itemsize, v).view(np.uint8) for v in values]
    slots.append(np.zeros(4 * SLOT, np.uint8) if table is None else table)
    return np.concatenate(slots)


@dataclass(frozen=True)
class Form:
    """What an epilogue does, apart from its numbers.

    Args:
        zero: the result has a zero point other than 0.
        clip: its window is not [0, 255].
        clamp: products may leave int32, so they are clamped as floats first.
        residual: 0 none; 1 the layer's codes are the addition's first operand; 2 the second.
        residual_clip: the addition's window is not [0, 255].
        table: the codes go through a table of 256 answers.
        floats: there are no codes: the result is float32, see `FloatEpilogue`.
        only_top: where `clip` clips, it does at the top only: the window begins at 0.
    """

    zero: bool
    clip: bool
    clamp: bool = False
    residual: int = 0
    residual_clip: bool = False
    table: bool = False
    floats: bool = False
    only_top: bool = False


def form(
    window: Window, largest: float, residual: Residual | None = None, first: bool = True,
    table: bool = False,
) -> Form:  # fmt: skip
    """Return the form that a result needs.

    Args:
        window: of the result.
        largest: bound of ``|acc * factor|``.
        residual: the addition behind it.
        first: the codes are the addition's first operand.
        table: codes go through a table.
    """
    kind = 0 if residual is None else (1 if first else 2)
    last = residual or window
    return Form(
        window.zero != 0,
        (window.lo, window.hi) != (0, 255),
        largest >= ROUND_LIMIT,
        kind,
        residual is not None and (residual.lo, residual.hi) != (0, 255),
        table,
        only_top=last.lo == 0 and last.hi < 255,
    )


@dataclass(frozen=True)
class Piece:
    """A vector of sums and where its codes go.

    Args:
        acc: int32 vector.
        factor: float32 vector of its channels.
        offset: of its first byte in the result.
        other: of its first byte in the residual operand.
        valid: None, or a condition under which it is stored.
        run: pieces of equal `run` are adjacent in memory when they follow each other.
    """

    acc: Expr
    factor: Expr
    offset: Expr
    other: Expr = 0
    valid: Expr | None = None
    run: int = 0


class Epilogue:
    """Writes codes for vectors of sums.

    Args:
        unit: the vector unit.
        form: what to do.
        numbers: the record.
        result: where codes go.
        residual: the other operand of an addition.
    """

    def __init__(
        self, unit: Vectors, form: Form, numbers: Buffer, result: Buffer,
        residual: Buffer | None = None,
    ) -> None:  # fmt: skip
        self._unit, self._form, self._numbers = unit, form, numbers
        self._result, self._residual = result, residual

    def write(self, pieces: Sequence[Piece], transposed: bool = True) -> None:
        """Store the codes of `pieces`, four at a time.

        Args:
            pieces: their channels lie side by side within a piece.
            transposed: False where lanes are in the order of `Vectors.interleave`, so that
                each four pieces are one run of bytes already.
        """
        for start in range(0, len(pieces), 4):
            group = list(pieces[start : start + 4])
            used = len(group)
            codes = self._codes((group * 4)[:4], transposed)
            self._store(group[:used], codes)

    def _number(self, name: str, kind: str, lanes: int) -> Expr:
        place = _SLOTS.index(name) * SLOT
        return reinterpret(load(self._numbers, place, SLOT if lanes == 0 else lanes), kind)

    def _lanes(self, name: str, kind: str) -> Expr:
        """Return a number of the record in every 32-bit lane."""
        n = self._unit.lanes
        return reinterpret(
            load(self._numbers, _SLOTS.index(name) * SLOT, 4 * n), f"{kind}x{n}"
        )

    def _bytes(self, name: str) -> Expr:
        return load(self._numbers, _SLOTS.index(name) * SLOT, 4 * self._unit.lanes)

    def _scaled(self, piece: Piece) -> Expr:
        unit, product = self._unit, self._unit.floats(piece.acc) * piece.factor
        if self._form.clamp:
            bound = T.broadcast(T.float32(ROUND_LIMIT), unit.lanes)
            low = T.broadcast(T.float32(-ROUND_LIMIT), unit.lanes)
            product = T.max(T.min(product, bound), low)
        return let(unit.round(product))

    def _codes(self, group: Sequence[Piece], transposed: bool) -> Expr:
        unit, form = self._unit, self._form
        parts = [self._scaled(piece) for piece in group]
        if form.residual:
            others = self._others(group, transposed)
            added = [self._added(p, q) for p, q in zip(parts, others, strict=True)]
            codes = unit.pack(added)
            clip, names = form.residual_clip, ("add_lo", "add_hi")
        else:
            if form.zero:
                halves = f"int16x{2 * unit.lanes}"
                zero = reinterpret(self._bytes("zero16"), halves)
                codes = unit.add_saturated(parts, zero)
            else:
                codes = unit.pack(parts)
            clip, names = form.clip, ("lo", "hi")
        if clip:
            if not form.only_top:
                codes = T.max(codes, self._bytes(names[0]))
            codes = T.min(codes, self._bytes(names[1]))
        if form.table:
            codes = unit.look_up(codes, self._numbers, SLOT * len(_SLOTS))
        return let(unit.transpose(codes) if transposed else codes)

    def _others(self, group: Sequence[Piece], transposed: bool) -> list[Expr]:
        """Return the residual operand in the order of the sums' lanes."""
        n = self._unit.lanes
        others = [let(load(self._residual, piece.other, n)) for piece in group]
        if transposed:
            return others
        first = [16 * k + t for k in range(n // 4) for t in range(4)]
        return [shuffle(others, [4 * j + place for place in first]) for j in range(4)]

    def _added(self, rounded: Expr, other: Expr) -> Expr:
        """Return the rounded sum with the residual operand, before its window."""
        unit, form = self._unit, self._form
        own = rounded + self._lanes("zero32", "int32") if form.zero else rounded
        own = T.min(T.max(own, self._lanes("lo32", "int32")), self._lanes("hi32", "int32"))
        mine = unit.floats(own)
        theirs = unit.floats(T.cast(other, f"int32x{unit.lanes}"))
        a, b = (mine, theirs) if form.residual == 1 else (theirs, mine)
        ra, rb, c = (self._lanes(name, "float32") for name in ("ra", "rb", "c"))
        return let(unit.round(unit.fma(a, ra, unit.fma(b, rb, c))))

    def _store(self, group: Sequence[Piece], codes: Expr) -> None:
        """Store adjacent pieces together."""
        n, start = self._unit.lanes, 0
        while start < len(group):
            end = start + 1
            while (
                end < len(group)
                and group[end].run == group[start].run
                and (group[start].valid is None)
            ):
                end += 1
            if end - start == 3:
                end -= 1
            self._store_run(group[start], codes, start * n, (end - start) * n)
            start = end

    def _store_run(self, piece: Piece, codes: Expr, first: int, count: int) -> None:
        part = codes
        if count != 4 * self._unit.lanes:
            part = shuffle([codes], range(first, first + count))
        if piece.valid is None:
            store(self._result, piece.offset, part, count)
            return
        with T.If(piece.valid), T.Then():
            store(self._result, piece.offset, part, count)
