"""Convolutions with random numbers, what a kernel gets for them and what it must answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from kernel_calls import Call
from numpy.lib.stride_tricks import sliding_window_view

from passes.emit.tvm.cpu.kernels.direct import DirectConv, Place, Tile, pack_weights
from passes.emit.tvm.cpu.kernels.epilogue import Residual, Window, form, record
from passes.emit.tvm.cpu.kernels.layout import Layout, nhwc
from passes.emit.tvm.cpu.vectors.base import Vectors
from qtool.core import numerics

Array = np.ndarray[Any, Any]
SLACK = 64


@dataclass(frozen=True)
class Case:
    """A convolution and its epilogue; channels and outputs of one group."""

    channels: int
    outputs: int
    size: tuple[int, int] = (5, 7)  # of the result
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    tile: tuple[int, int, int] = (1, 3, 2)
    window: tuple[int, int, int] = (3, 2, 250)  # zero, lo, hi
    x_zero: int = 7
    residual: int = 0
    table: bool = False
    huge: bool = False
    extreme: bool = False
    weights_outer: bool = True


FULL = (0, 0, 255)
CASES = [
    Case(64, 32, tile=(2, 4, 1)),
    Case(17, 33, window=FULL, tile=(2, 2, 3)),
    Case(5, 16, kernel=(1, 1), tile=(1, 7, 1), window=(128, 0, 255), x_zero=0),
    Case(3, 24, kernel=(2, 1), stride=(3, 2), tile=(5, 1, 2), table=True),
    Case(8, 16, groups=3, kernel=(3, 2), dilation=(2, 1), tile=(1, 4, 1)),
    Case(6, 32, groups=2, tile=(2, 3, 1), residual=1, weights_outer=False),
    Case(9, 20, kernel=(1, 1), size=(1, 1), tile=(1, 1, 4), residual=2, window=FULL),
    Case(16, 48, residual=1, window=(100, 20, 200), tile=(1, 2, 4)),
    Case(40, 16, huge=True, x_zero=255),
    Case(40, 16, huge=True, residual=2, window=FULL),
    Case(128, 32, extreme=True, tile=(1, 4, 2), window=FULL),
    Case(128, 32, extreme=True, x_zero=255, residual=1, table=False),
    Case(12, 32, window=(0, 0, 15)),
    Case(250, 290, kernel=(1, 1), tile=(1, 3, 2)),
    Case(250, 290, kernel=(1, 1), tile=(1, 7, 4), weights_outer=False),
]


def drawn(seed: int) -> Case:
    """A random convolution."""
    rng = np.random.default_rng(seed)

    def pair(low: int, high: int) -> tuple[int, int]:
        return int(rng.integers(low, high)), int(rng.integers(low, high))

    groups = int(rng.choice([1, 1, 2]))
    height, width = pair(1, 9)
    rows, columns = int(rng.integers(1, min(height, 2) + 1)), int(rng.integers(1, width + 1))
    lo, zero, hi = (int(v) for v in np.sort(rng.integers(0, 256, 3)))
    return Case(
        int(rng.integers(1, 30)), 16 if groups > 1 else int(rng.integers(1, 50)),
        (height, width), pair(1, 4), pair(1, 4), pair(1, 3), groups,
        (rows, min(columns, 5), 1 if groups > 1 else int(rng.integers(1, 4))),
        (zero, lo, hi), int(rng.integers(0, 256)), int(rng.integers(0, 3)),
        extreme=bool(rng.integers(0, 2)), weights_outer=bool(rng.integers(0, 2)),
    )  # fmt: skip


class Convolution:
    """A case with random numbers for one unit: specification, arguments, what is expected."""

    def __init__(self, case: Case, unit: Vectors, seed: int) -> None:
        self.case, self.unit, self.rng = case, unit, np.random.default_rng(seed)
        rng, (height, width) = self.rng, case.size
        self.total = case.groups * case.outputs
        reach = [
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(
                case.size, case.stride, case.kernel, case.dilation, strict=True
            )
        ]
        self.x = nhwc((case.groups * case.channels, *reach))
        self.y = nhwc((self.total, height, width), (1, 1, 1, 1))
        self.codes = rng.integers(0, 256, (*reach, self.x.pixel)).astype(np.uint8)
        shape = (case.groups, case.outputs, *case.kernel, case.channels)
        self.weights = rng.integers(-128, 128, shape).astype(np.int8)
        # Half of the channels have sums that are multiples of 64: many end in a half.
        self.weights[:, ::2] &= -64
        if case.extreme:
            self.codes = np.where(rng.random(reach) < 0.8, 255, 0)[..., None] + 0 * self.codes
            self.codes = self.codes.astype(np.uint8)
            signs = rng.choice([-128, 127], (*shape[:2], 1, 1, 1))
            self.weights = (signs + 0 * self.weights).astype(np.int8)
        self.bias = 64 * rng.integers(-100, 100, self.total).astype(np.int32)
        self.acc = self._sums()
        self.factor = self._factor()
        self.table = rng.integers(0, 256, 256).astype(np.uint8)
        self.scales = [np.float32(v) for v in rng.choice([0.125, 0.25, 0.3, 0.5, 1.7], 3)]
        self.zeros = [case.window[0], *(int(z) for z in rng.integers(0, 256, 2))]
        self.other = rng.integers(0, 256, (height, width, self.y.pixel)).astype(np.uint8)
        self.memory = rng.integers(0, 256, self.y.bytes + SLACK).astype(np.uint8)

    def _sums(self) -> Array:
        case, ((sy, sx), (dy, dx)) = self.case, (self.case.stride, self.case.dilation)
        x = self.codes[..., : case.groups * case.channels].astype(np.int64) - case.x_zero
        grouped = x.reshape(*x.shape[:2], case.groups, case.channels)
        span = [(k - 1) * d + 1 for k, d in zip(case.kernel, case.dilation, strict=True)]
        windows = sliding_window_view(grouped, span, (0, 1))[::sy, ::sx, ..., ::dy, ::dx]
        sums = np.einsum(
            "hwgckl,goklc->gohw", windows, self.weights.astype(np.int64), optimize=True
        )
        return (sums.reshape(self.total, *case.size) + self.bias[:, None, None]).astype(
            np.int32
        )

    def _factor(self) -> Array:
        """Powers of two, so that many products end in a half; huge ones leave int32."""
        if self.case.huge:
            return np.full(self.total, 3e7, np.float32)
        largest = np.abs(self.acc.astype(np.int64)).reshape(self.total, -1).max(1) + 1
        exact = self.rng.random(self.total) < 0.7
        powers = np.exp2(np.round(np.log2(200 / largest)))
        return np.where(exact, powers, 300 / largest).astype(np.float32)

    def _residual(self) -> Residual | None:
        if not self.case.residual:
            return None
        (sa, sb, sy), (za, zb, zy) = self._operands()
        values = numerics.add_coefficients(sa, za, sb, zb, sy, zy)
        return Residual(*(float(v) for v in values), 5, 251)

    def _operands(self) -> tuple[list[np.float32], list[int]]:
        """Scales and zero points of the addition: its operands in their order, its result."""
        order = [0, 1, 2] if self.case.residual == 1 else [1, 0, 2]
        return [self.scales[i] for i in order], [self.zeros[i] for i in order]

    def expected(self) -> Array:
        """Return (height, width, outputs) codes."""
        window = Window(*self.case.window)
        codes = numerics.requantize(
            self.acc[None], self.factor, window.zero, window.lo, window.hi
        )[0]
        codes = codes.transpose(1, 2, 0)
        if self.case.residual:
            (sa, sb, sy), (za, zb, zy) = self._operands()
            other = self.other[..., : self.total]
            a, b = (codes, other) if self.case.residual == 1 else (other, codes)
            codes = numerics.add(a, sa, za, b, sb, zb, sy, zy, 5, 251)
        return self.table[codes] if self.case.table else codes

    def spec(self) -> DirectConv:
        case, row = self.case, self.other.shape[1] * self.y.pixel
        window, residual = Window(*case.window), self._residual()
        largest = float(np.abs(self.acc.astype(np.float64)).max() * self.factor.max())
        return DirectConv(
            self.unit.name, *case.size, -(-case.outputs // self.unit.lanes), case.groups,
            case.channels, case.kernel, -(-case.channels // 4), case.stride, case.dilation,
            Place(self.x.row, self.x.pixel), Place(self.y.row, self.y.pixel),
            Place(row, self.y.pixel), Tile(*case.tile), case.weights_outer, False,
            form(window, largest, residual, case.residual == 1, case.table),
        )  # fmt: skip

    def call(self, name: str) -> Call:
        """Return the call of the kernel; the result starts behind the halo."""
        spec, case = self.spec(), self.case
        count = spec.groups * spec.blocks * spec.tile.vectors * self.unit.lanes
        sums = self.weights.astype(np.int64).reshape(self.total, -1).sum(1)
        bias, factor = np.zeros(count, np.int32), np.zeros(count, np.float32)
        bias[: self.total] = self.bias - (case.x_zero - self.unit.x_offset) * sums
        factor[: self.total] = self.factor
        numbers = record(Window(*case.window), self._residual(), self.table)
        slack = np.full(SLACK, 255, np.uint8)
        x, other = (np.concatenate([a.reshape(-1), slack]) for a in (self.codes, self.other))
        first = [x, other] if case.residual else [x]
        packed = pack_weights(self.weights, spec, self.unit)
        arrays = [*first, self.memory, packed, bias, factor, numbers]
        return Call(spec.build(name), arrays, {len(first): self.y.origin})

    def check(self, after: Sequence[Array]) -> None:
        """Compare the result with the reference, and all around it with what was there."""
        y = self.y
        memory = after[2 if self.case.residual else 1]
        want, got = self.memory.copy(), memory.copy()
        inner = inside(y, want)
        assert np.array_equal(inside(y, got)[..., : self.total], self.expected()), self.case
        inner[...] = inside(y, got)
        assert np.array_equal(want, got), f"{self.case}: bytes outside of the result"


def inside(layout: Layout, memory: Array) -> Array:
    """Return a view of a result's pixels without the halo."""
    rows = layout.height + 2
    whole = memory[: layout.bytes].reshape(rows, layout.width + 2, layout.pixel)
    return whole[1:-1, 1:-1]
