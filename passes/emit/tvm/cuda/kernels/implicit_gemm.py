"""Convolutions and linear layers as a product of matrices that is never written out.

    D[m, n] = sum over k of A[m, k] B[n, k]      m: pixel of any image, n: output channel
                                                 k: (row, column, input channel) of the window

A block has a tile of pixels x channels. Step by step along K its threads bring A's codes (16
or 4 bytes of one pixel at a time; the zero point where the window leaves the image) and B's
weights into shared memory; `Products` multiplies. The batch is part of m, so that small images
of a large batch fill tiles, and every block has work.

The zero point is taken out of the sums before: ``sum (x - z) w = sum x w - z sum w``, the
second part of which is in the bias. Borders hold z, so it is the same everywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.layout import Layout, round_up
from passes.emit.tvm.cpu.plan.fusion import Node
from passes.emit.tvm.cuda.kernels import tir
from passes.emit.tvm.cuda.kernels.epilogue import Epilogue, Form, record
from passes.emit.tvm.cuda.kernels.products import Products
from passes.emit.tvm.cuda.kernels.tir import REGISTER, Argument, Buffer, Expr
from qtool.core import numerics
from qtool.core.dialect import Conv, Gemm

# Bytes of K in shared memory at a time: two tiles of mma.
STEP = 64
# Registers between rows in shared memory: 16 bytes stay aligned, and eight rows of four
# registers, as an instruction of a warp reads them, lie in different banks.
_STRIDE = STEP // REGISTER + 4
# Bytes that a thread brings at once, where a pixel has as many.
_PIECE = 16


@dataclass(frozen=True)
class Window:
    """Where a convolution reads: a linear layer reads one pixel, once.

    Args:
        taps, strides, dilations: (rows, columns).
        pads: (top, left).
    """

    taps: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, op: Conv | Gemm) -> "Window":
        """Return the window of a layer."""
        if not isinstance(op, Conv):
            return cls()
        kh, kw = op.w_OIHW.shape[2:]
        return cls((kh, kw), op.strides, op.dilations, op.pads[:2])


@dataclass(frozen=True)
class ImplicitGemm:
    """Specification of a layer's kernel.

    Args:
        batch: images.
        x, y: layouts of input and result.
        window: where it reads.
        products: how tiles are multiplied.
        form: of the epilogue.
    """

    batch: int
    x: Layout
    y: Layout
    window: Window
    products: Products
    form: Form

    @property
    def channels(self) -> int:
        """Channels of the result that are written: all that are stored."""
        return self.y.channels if self.form.floats else self.y.pixel

    @property
    def padded(self) -> int:
        """Channels of whole tiles."""
        return round_up(self.channels, self.products.columns)

    @property
    def depth(self) -> int:
        """Bytes of K, of whole steps."""
        return round_up(prod(self.window.taps) * self.x.pixel, STEP)

    def name(self) -> str:
        """Return a readable part of the function's name."""
        kh, kw = self.window.taps
        return f"gemm{kh}x{kw}_{self.products.name()}"

    def constants(self, node: Node) -> tuple[NDArray[Any], ...]:
        """Return weights, bias, factors, numbers and, if there is one, the table."""
        op = node.op
        if not isinstance(op, Conv | Gemm):
            raise TypeError(f"{op.name}: {type(op).__name__} is no layer")
        w_OIHW = op.w_OIHW if isinstance(op, Conv) else op.w_OI[:, :, None, None]
        outputs, inputs, kh, kw = w_OIHW.shape
        packed = np.zeros((self.padded, kh, kw, self.x.pixel), np.int8)
        packed[:outputs, ..., :inputs] = w_OIHW.transpose(0, 2, 3, 1)
        weights = np.zeros((self.padded, self.depth), np.int8)
        weights[:, : kh * kw * self.x.pixel] = packed.reshape(self.padded, -1)
        taken = op.x.zero_point * w_OIHW.astype(np.int64).sum((1, 2, 3))
        bias, factor = np.zeros(self.padded, np.int32), np.zeros(self.padded, np.float32)
        bias[:outputs] = op.bias - taken
        factor[:outputs] = numerics.multiplier(op.x.scale, op.w_scale, op.grid.scale)
        table = () if node.table is None else (node.table,)
        return weights.reshape(-1), bias, factor, record(node, op.x.zero_point), *table

    def build(self, name: str) -> Any:
        """Return the function (x, other?, weights, bias, factor, numbers, table?, y)."""
        kind = "float32" if self.form.floats else "uint8"
        arguments = self.form.arguments(
            Argument("x", tir.stored_shape(self.batch, self.x)),
            Argument("w", (self.padded * self.depth,), "int8"),
            self.padded, Argument("y", tir.stored_shape(self.batch, self.y), kind),
        )  # fmt: skip
        return tir.function(name, arguments, lambda *found: _Body(self, found).write())


class _Body:
    """Writes the loops of an `ImplicitGemm`."""

    def __init__(self, spec: ImplicitGemm, buffers: Sequence[Buffer]) -> None:
        self.spec, self.products = spec, spec.products
        self.epilogue = Epilogue(spec.form, buffers)
        self.x = tir.view(self.epilogue.x, "uint32")
        self.w = tir.view(self.epilogue.w, "int32")
        self.pixels = spec.y.height * spec.y.width

    def write(self) -> None:
        """Write the kernel."""
        spec, products = self.spec, self.products
        across = spec.padded // products.columns
        down = -(-spec.batch * self.pixels // products.rows)
        with tir.blocks(across * down) as block:
            row, column = block // across * products.rows, block % across * products.columns
            sums = tir.registers(products.sums)
            x = tir.shared(products.rows * _STRIDE, "uint32")
            w = tir.shared(products.columns * _STRIDE, "int32")
            with tir.threads(products.threads) as t, T.unroll(0, products.sums) as n:
                tir.store(sums, self.epilogue.bias[column + products.place(t, n)[1]], n)
            with T.serial(0, spec.depth // STEP) as step:
                with tir.threads(products.threads) as t:
                    self._load_x(x, row, step * STEP, t)
                    self._load_w(w, column, step * STEP, t)
                products.add(sums, x, w, _STRIDE, STEP // REGISTER)
            with tir.threads(products.threads) as t, T.unroll(0, products.sums) as n:
                i, j = products.place(t, n)
                self._write(sums[n], row + i, column + j)

    def _pieces(
        self, rows: int, size: int, thread: Expr, copy: Callable[[Expr, Expr], None]
    ) -> None:
        """Call ``copy(row, byte)`` for every piece of `size` bytes of a tile's step."""
        across = STEP // size
        count, threads = rows * across, self.products.threads
        for turn in range(-(-count // threads)):
            piece = tir.let(thread + turn * threads)
            with tir.where(None if count % threads == 0 else piece < count):
                copy(piece // across, piece % across * size)

    def _load_w(self, w: Buffer, column: Expr, start: Expr, thread: Expr) -> None:
        lanes = _PIECE // REGISTER

        def copy(row: Expr, byte: Expr) -> None:
            at = ((column + row) * self.spec.depth + start + byte) // REGISTER
            into = tir.span(row * _STRIDE + byte // REGISTER, lanes)
            tir.store(w, self.w[tir.span(at, lanes)], into)

        self._pieces(self.products.columns, _PIECE, thread, copy)

    def _load_x(self, x: Buffer, first: Expr, start: Expr, thread: Expr) -> None:
        size = _PIECE if self.spec.x.pixel % _PIECE == 0 else REGISTER
        lanes = size // REGISTER

        def copy(row: Expr, byte: Expr) -> None:
            into = tir.span(row * _STRIDE + byte // REGISTER, lanes)
            inside, at = self._source(first + row, start + byte)
            with T.If(inside):
                with T.Then():
                    tir.store(x, self.x[tir.span(at, lanes)], into)
                with T.Else():
                    tir.store(x, tir.spread(self.epilogue.border(), lanes), into)

        self._pieces(self.products.rows, size, thread, copy)

    def _source(self, pixel: Expr, k: Expr) -> tuple[Expr, Expr]:
        """Return whether an element of A is inside the image, and its register there."""
        spec, window = self.spec, self.spec.window
        pixel, k = tir.let(pixel), tir.let(k)
        image, place = pixel // self.pixels, pixel % self.pixels
        tap, channel = k // spec.x.pixel, k % spec.x.pixel
        tap_y, tap_x = tap // window.taps[1], tap % window.taps[1]
        (sy, sx), (dy, dx), (top, left) = window.strides, window.dilations, window.pads
        y = tir.let(place // spec.y.width * sy + tap_y * dy - top)
        x = tir.let(place % spec.y.width * sx + tap_x * dx - left)
        inside = T.And(
            T.And(pixel < spec.batch * self.pixels, tap < prod(window.taps)),
            T.And(T.And(y >= 0, y < spec.x.height), T.And(x >= 0, x < spec.x.width)),
        )
        at = image * spec.x.bytes + y * spec.x.row + x * spec.x.pixel + channel
        return inside, at // REGISTER

    def _write(self, total: Expr, pixel: Expr, channel: Expr) -> None:
        spec = self.spec
        exists = pixel < spec.batch * self.pixels
        if spec.padded > spec.channels:
            exists = T.And(exists, channel < spec.channels)
        with tir.where(exists):
            stride = spec.y.channels if spec.form.floats else spec.y.pixel
            self.epilogue.write(total, pixel * stride + channel, channel)
