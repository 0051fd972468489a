"""Depthwise convolutions: a thread computes four channels of one pixel.

Weights are (rows, columns, channels), so that a register holds a tap's weights of four
channels as one of the input holds their codes; products are added up channel by channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.script.ir_builder import tirx as T

from passes.emit.tvm.cpu.kernels.layout import Layout
from passes.emit.tvm.cpu.plan.fusion import Node
from passes.emit.tvm.cuda.kernels import tir
from passes.emit.tvm.cuda.kernels.epilogue import Epilogue, Form, record
from passes.emit.tvm.cuda.kernels.implicit_gemm import Window
from passes.emit.tvm.cuda.kernels.tir import REGISTER, Argument, Buffer, Expr
from qtool.core import numerics
from qtool.core.dialect import Conv

# Threads of a block: a few warps, so that a small layer still has several blocks.
THREADS = 128


@dataclass(frozen=True)
class Depthwise:
    """Specification of a depthwise convolution's kernel; arguments as `ImplicitGemm`."""

    batch: int
    x: Layout
    y: Layout
    window: Window
    form: Form

    def name(self) -> str:
        """Return a readable part of the function's name."""
        kh, kw = self.window.taps
        return f"depthwise{kh}x{kw}"

    def constants(self, node: Node) -> tuple[NDArray[Any], ...]:
        """Return weights, bias, factors, numbers and, if there is one, the table."""
        op = node.op
        if not isinstance(op, Conv):
            raise TypeError(f"{op.name}: {type(op).__name__} is no convolution")
        channels = len(op.w_OIHW)
        weights = np.zeros((*self.window.taps, self.x.pixel), np.int8)
        weights[..., :channels] = op.w_OIHW[:, 0].transpose(1, 2, 0)
        bias = np.zeros(self.x.pixel, np.int32)
        factor = np.zeros(self.x.pixel, np.float32)
        bias[:channels] = op.bias
        factor[:channels] = numerics.multiplier(op.x.scale, op.w_scale, op.grid.scale)
        table = () if node.table is None else (node.table,)
        return weights.reshape(-1), bias, factor, record(node, op.x.zero_point), *table

    def build(self, name: str) -> Any:
        """Return the function (x, other?, weights, bias, factor, numbers, table?, y)."""
        taps = self.window.taps[0] * self.window.taps[1]
        arguments = self.form.arguments(
            Argument("x", tir.stored_shape(self.batch, self.x)),
            Argument("w", (taps * self.x.pixel,), "int8"),
            self.x.pixel, Argument("y", tir.stored_shape(self.batch, self.y)),
        )  # fmt: skip
        return tir.function(name, arguments, lambda *found: _Body(self, found).write())


class _Body:
    """Writes the loops of a `Depthwise`."""

    def __init__(self, spec: Depthwise, buffers: Sequence[Buffer]) -> None:
        self.spec = spec
        self.epilogue = Epilogue(spec.form, buffers)
        self.x = tir.view(self.epilogue.x, "uint32")
        self.w = tir.view(self.epilogue.w, "uint32")

    def write(self) -> None:
        """Write the kernel."""
        spec = self.spec
        quads = spec.y.pixel // REGISTER
        pixels = spec.y.height * spec.y.width
        count = spec.batch * pixels * quads
        with tir.blocks(-(-count // THREADS)) as block, tir.threads(THREADS) as t:
            sums = tir.registers(REGISTER)
            number = tir.let(block * THREADS + t)
            with tir.where(None if count % THREADS == 0 else number < count):
                channel, pixel = tir.let(number % quads * REGISTER), tir.let(number // quads)
                image, place = tir.let(pixel // pixels), tir.let(pixel % pixels)
                for i in range(REGISTER):
                    tir.store(sums, self.epilogue.bias[channel + i], i)
                self._taps(sums, image, place, channel)
                for i in range(REGISTER):
                    at = pixel * spec.y.pixel + channel + i
                    self.epilogue.write(sums[i], at, channel + i)

    def _taps(self, sums: Buffer, image: Expr, place: Expr, channel: Expr) -> None:
        """Add the products of every tap that is inside the image."""
        spec, window = self.spec, self.spec.window
        (sy, sx), (dy, dx), (top, left) = window.strides, window.dilations, window.pads
        zero = tir.let(self.epilogue.code())
        rows, columns = window.taps
        with T.serial(0, rows) as i, T.serial(0, columns) as j:
            y = tir.let(place // spec.y.width * sy + i * dy - top)
            x = tir.let(place % spec.y.width * sx + j * dx - left)
            inside = T.And(T.And(y >= 0, y < spec.x.height), T.And(x >= 0, x < spec.x.width))
            with tir.where(inside):
                at = image * spec.x.bytes + y * spec.x.row + x * spec.x.pixel + channel
                codes = tir.let(self.x[at // REGISTER])
                weights = tir.let(
                    self.w[((i * columns + j) * spec.x.pixel + channel) // REGISTER]
                )
                for c in range(REGISTER):
                    code = T.cast(_byte(codes, c), "int32") - zero
                    weight = T.cast(T.reinterpret("int8", _byte(weights, c)), "int32")
                    tir.store(sums, sums[c] + code * weight, c)


def _byte(word: Expr, index: int) -> Expr:
    return T.cast(word >> T.uint32(8 * index), "uint8")
