"""Winograd's F(4x4, 3x3) in integers: 4 x 4 results of a 3 x 3 convolution in 36 products.

``y = A (sum over channels of (G w G') * (B d B')) A'`` with points 0, +-1, +-2 and infinity
(Lavin and Gray 2016, arXiv 1509.09308). To make all integers, G's rows are multiplied by 24,
-6, -6, 24, 24, 6, two of B's rows by -1 and A's columns by 1, 4, 4, 1, 1, 4; powers of two
common to a row of A are taken out of it. Rows of A then give y times 24, 12, 6, 6: 3 times the
powers of two of `SHIFT`.

Exact, although sums wrap: transformed codes fit int16, sums are right modulo 2^32, and so is
their product with the inverse of 9, which is y times 2^s with s <= 6: right itself, not only
modulo 2^32, wherever ``-2^25 <= y < 2^25``. The result's factor times 2^-s removes the 2^s:
float32 rounds ``2^s y`` as it rounds y.
"""

from collections.abc import Sequence

import numpy as np
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.tir import Expr, intrinsic, let

TILE = 4  # results of a tile, each way
PATCH = 6  # pixels that a tile reads, each way
TAPS = 3
POINTS = PATCH * PATCH
INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, 4, 4, -1, -1, 0],
        [0, -4, 4, 1, -1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
WEIGHT = np.array([[6, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [1, -2, 4], [0, 0, 6]])
OUTPUT = np.array(
    [[1, 4, 4, 1, 1, 0], [0, 2, -2, 1, -1, 0], [0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 1]]
)
SHIFT = (3, 2, 1, 1)
INVERSE = pow(9, -1, 2**32)
# Sums with bias beyond this lose their highest bits to the largest power of two.
LIMIT = 2 ** (31 - 2 * max(SHIFT))
# Cycles to transform the weights of two channels and an output vector, measured on Zen 4,
# where a product instruction takes one.
EXPAND = 90
# A constant at this point adds the same to all results: the others see no constant image.
BIAS_POINT = (1, 1)
BIAS_FACTOR = 36


class Transforms:
    """The transforms of vectors, with few instructions.

    Args:
        lanes: int32 in a vector.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes

    def input(self, d: Sequence[Expr]) -> list[Expr]:
        """Return `INPUT` times six int16 vectors."""
        a, b = let(d[4] - d[2]), let(self._times(d[3] - d[1], 1, 16))
        even, odd = (let(self._times(d[i], 2, 16) - d[i + 2]) for i in (2, 1))
        first = a + self._times(d[0] - d[2], 2, 16)
        last = (d[5] - d[3]) - self._times(b, 1, 16)
        return [let(v) for v in (first, even + odd, even - odd, a + b, a - b, last)]

    def weights(self, w: Sequence[Expr]) -> list[Expr]:
        """Return `WEIGHT` times three int16 vectors."""
        s, q = let(w[0] + w[2]), let(w[0] + self._times(w[2], 2, 16))
        middle, six = let(self._times(w[1], 1, 16)), T.broadcast(T.int16(6), 2 * self._lanes)
        rows = (w[0] * six, s + w[1], s - w[1], q + middle, q - middle, w[2] * six)
        return [let(row) for row in rows]

    def output(self, m: Sequence[Expr]) -> list[Expr]:
        """Return `OUTPUT` times six int32 vectors, modulo 2^32."""
        add, subtract = self.add, self._subtract
        s, d = let(add(m[1], m[2])), let(subtract(m[1], m[2]))
        u, v = let(add(m[3], m[4])), let(subtract(m[3], m[4]))
        rows = (
            add(add(m[0], u), self._times(s, 2)),
            add(self._times(d, 1), v),
            add(s, u),
            add(add(m[5], d), self._times(v, 1)),
        )
        return [let(row) for row in rows]

    def divide(self, y: Expr) -> Expr:
        """Return int32 lanes divided by 9, modulo 2^32."""
        inverse = T.broadcast(T.int32(INVERSE), self._lanes)
        return let(self._wrapping("mul", y, inverse))

    def add(self, a: Expr, b: Expr) -> Expr:
        """Return ``a + b`` of int32 lanes, modulo 2^32."""
        return self._wrapping("add", a, b)

    def _subtract(self, a: Expr, b: Expr) -> Expr:
        return self._wrapping("sub", a, b)

    def _times(self, a: Expr, shift: int, bits: int = 32) -> Expr:
        """Return lanes of `bits` times ``2 ** shift``."""
        amount = T.IntImm(f"int{bits}", shift)
        return T.shift_left(a, T.broadcast(amount, self._lanes * 32 // bits))

    def _wrapping(self, operation: str, a: Expr, b: Expr) -> Expr:
        """Apply an operator that wraps; with TVM's own, LLVM assumes that 32 bits never do."""
        n = self._lanes
        every = T.broadcast(T.bool(True), n)
        return intrinsic(f"int32x{n}", f"llvm.vp.{operation}", a, b, every, T.int32(n))
