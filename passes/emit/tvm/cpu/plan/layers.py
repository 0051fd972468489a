"""Convolutions, linear layers and pools -> steps."""

import numpy as np

from passes.emit.tvm.cpu.kernels.average import GlobalAverage
from passes.emit.tvm.cpu.kernels.copies import CopyRegion
from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.epilogue import Window, form, record
from passes.emit.tvm.cpu.kernels.layout import plain
from passes.emit.tvm.cpu.kernels.max_pool import MaxPool, supports
from passes.emit.tvm.cpu.kernels.runs import Region
from passes.emit.tvm.cpu.plan.context import Context, large, place
from passes.emit.tvm.cpu.plan.convolution import Sites, convolution, float_layer
from passes.emit.tvm.cpu.plan.fusion import Node
from passes.emit.tvm.cpu.plan.steps import OUTPUT, Operand, Step
from qtool.core import numerics
from qtool.core.dialect import Average, Conv, FloatGemm, Gemm
from qtool.core.dialect import MaxPool as MaxPoolOp


def layer(node: Node, context: Context) -> list[Step] | str:
    """Return the step of a convolution or linear layer."""
    if isinstance(node.op, FloatGemm):
        return _floats(node.op, context)
    if not isinstance(node.op, Conv | Gemm):
        return "not a layer"
    x, y = context.layout(node.op.inputs[0]), context.layouts[node.output]
    other = context.layout(node.inputs[-1]) if node.residual is not None else None
    return [convolution(node, Sites(x, y, other), context.unit, context.choose)]


def _floats(op: FloatGemm, context: Context) -> list[Step]:
    """Return the steps of a linear layer with a float result.

    Whole vectors are written, so it goes to memory of its own and is copied from there.
    """
    own = f"{op.output} (floats)"
    step, size = float_layer(op, context.layouts[op.inputs[0]], context.unit, own)
    context.layouts[own] = plain((size,))
    flat = Place(0, 0)
    copy = CopyRegion(
        context.unit.name, Region(1, 1, 4 * op.shape[0]), flat, flat, (1, 1), False
    )
    return [step, Step(copy, (Operand(own),), Operand(OUTPUT), (), op.name)]


def average(node: Node, context: Context) -> list[Step] | str:
    """Return the step of a global average."""
    op = node.op
    if not isinstance(op, Average):
        return "not a global average"
    x, lanes = context.layouts[op.inputs[0]], context.unit.lanes
    factor = numerics.average_factor(op.x.scale, op.grid.scale, op.count)
    window = Window(op.grid.zero_point, op.lo, op.hi)
    shape = form(window, 255.0 * op.count * float(factor))
    kernel = GlobalAverage(
        context.unit.name, x.height, x.width, x.pixel, place(x), large(x), shape
    )
    constants = (
        np.full(lanes, -op.count * op.x.zero_point, np.int32),
        np.full(lanes, factor, np.float32),
        record(window),
    )
    inputs = (context.pixels(op.inputs[0]),)
    return [Step(kernel, inputs, context.pixels(node.output), constants, op.name)]


def max_pool(node: Node, context: Context) -> list[Step] | str:
    """Return the step of a max pooling."""
    op = node.op
    if not isinstance(op, MaxPoolOp):
        return "not a max pooling"
    x, y = context.layouts[op.inputs[0]], context.layouts[node.output]
    kernel = MaxPool(
        context.unit.name, (x.height, x.width), y.height, y.width, y.pixel, op.kernel,
        op.strides, (1, 1), op.pads[:2], place(x), place(y), large(y),
    )  # fmt: skip
    if not supports(kernel):
        return f"kernel {op.kernel} with pads {op.pads}"
    inputs = (context.pixels(op.inputs[0]),)
    return [Step(kernel, inputs, context.pixels(node.output), (), op.name)]
