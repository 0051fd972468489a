"""Kernels for what has no vector kernel: tensor expressions as plain loops, exact anywhere.

`passes.emit.tvm.te_kernels` has a tensor expression for every operator, on logical shapes.
Here it is wrapped in two more: one that reads the input's layout, one that writes the
result's, halo included.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import tvm
from numpy.typing import NDArray
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx.stmt import DeclBuffer

from passes.emit.tvm.cpu.kernels.layout import Layout
from passes.emit.tvm.cpu.kernels.tir import RESULT
from passes.emit.tvm.te_kernels import dequantize, kernel
from qtool.core.dialect import FloatGemm, Grid, Op, Quantize


@dataclass(frozen=True, eq=False)
class Portable:
    """The plain kernel of one operator; no two are shared.

    Args:
        op: the operator.
        inputs: layouts of its inputs.
        output: layout of its result.
        halo: code around the result.
    """

    op: Op
    inputs: tuple[Layout, ...]
    output: Layout
    halo: int

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"plain_{type(self.op).__name__.lower()}"

    def constants(self) -> tuple[NDArray[Any], ...]:
        """Return its weights and numbers."""
        return tuple(kernel(self.op)[0])

    def build(self, name: str) -> Any:
        """Return the function (inputs, result, constants)."""
        arrays, build = kernel(self.op)
        kind = "float32" if isinstance(self.op, Quantize) else "uint8"
        inputs = [_physical(layout, kind, f"x{i}") for i, layout in enumerate(self.inputs)]
        views = [_logical(x, layout) for x, layout in zip(inputs, self.inputs, strict=True)]
        constants = [
            te.placeholder(a.shape, str(a.dtype), f"c{i}") for i, a in enumerate(arrays)
        ]
        result = build(*views, *constants)
        if not isinstance(self.op, FloatGemm):
            result = _stored(result, self.output, self.halo)
        return _of_pointers(te.create_prim_func([*inputs, result, *constants]), name)


@dataclass(frozen=True)
class PlainDequantize:
    """Codes to floats in logical order, the model's output."""

    scale: float
    zero_point: int
    layout: Layout

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return "plain_dequantize"

    def build(self, name: str) -> Any:
        """Return the function (codes, floats)."""
        codes = _physical(self.layout, "uint8", "codes")
        floats = dequantize(Grid(self.scale, self.zero_point))(_logical(codes, self.layout))  # type: ignore[arg-type]
        return _of_pointers(te.create_prim_func([codes, floats]), name)


def _physical(layout: Layout, kind: str, name: str) -> Any:
    return te.placeholder((layout.bytes,), kind, name)


def _logical(x: Any, layout: Layout) -> Any:
    """Return a tensor in its layout as one in its shape, with a batch of 1."""
    strides = layout.strides(layout.shape)

    def element(*index: Any) -> Any:
        place = layout.origin
        for i, stride in zip(index[1:], strides, strict=True):
            place = place + i * stride
        return x[place]

    return te.compute((1, *layout.shape), element, f"{x.op.name}_view")


def _stored(result: Any, layout: Layout, halo: int) -> Any:
    """Return a logical result as it is stored."""
    if layout.plain:
        return _flat(result, layout)
    top, left = layout.halo[:2]
    border = tirx.const(halo, "uint8")

    def byte(place: Any) -> Any:
        row, rest = tirx.floordiv(place, layout.row), tirx.floormod(place, layout.row)
        y, x = row - top, tirx.floordiv(rest, layout.pixel) - left
        c = tirx.floormod(rest, layout.pixel)
        inside = tirx.all(
            y >= 0, y < layout.height, x >= 0, x < layout.width, c < layout.channels
        )
        index = (0, c, y, x)[: len(layout.shape) + 1]
        return tirx.if_then_else(inside, result[index], border)

    return te.compute((layout.bytes,), byte, "stored")


def _flat(result: Any, layout: Layout) -> Any:
    def element(place: Any) -> Any:
        index = []
        for d, size in enumerate(layout.shape):
            stride = prod(layout.shape[d + 1 :])
            index.append(tirx.floormod(tirx.floordiv(place, stride), size))
        return result[(0, *index)]

    return te.compute((layout.bytes,), element, "stored")


def _of_pointers(function: Any, name: str) -> Any:
    """Return a function of buffers as a private one of pointers."""
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name(name)
        T.func_ret(tvm.ir.PrimType(RESULT))
        handles = [
            T.arg(f"{p.name}_pointer", T.handle(str(p.ty.dtype))) for p in function.params
        ]
        # What TVM's lowering of allocations asks for, and adds to public functions itself.
        with T.attr("cpu", "device_id", T.int32(0)), T.attr("cpu", "device_type", T.int32(1)):
            for parameter, handle in zip(function.params, handles, strict=True):
                T.add_to_parent(DeclBuffer(parameter, data=handle))
            T.add_to_parent(function.body)
        T.Return(T.int32(0))
    return builder.get()
