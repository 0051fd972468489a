"""Operators on single codes, and those that only move codes -> steps."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from passes.emit.tvm.cpu.kernels.channels import ShuffleChannels, channel_places
from passes.emit.tvm.cpu.kernels.copies import CopyRegion, FillRegion
from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.elementwise import (
    AddCodes,
    MulCodes,
    Operands,
    product_numbers,
    sum_numbers,
)
from passes.emit.tvm.cpu.kernels.epilogue import ROUND_LIMIT
from passes.emit.tvm.cpu.kernels.layout import Layout
from passes.emit.tvm.cpu.kernels.runs import Region
from passes.emit.tvm.cpu.kernels.tables import LookUp
from passes.emit.tvm.cpu.plan.context import Context, large, only_channels, place, region
from passes.emit.tvm.cpu.plan.fusion import Node
from passes.emit.tvm.cpu.plan.own_operators import Select
from passes.emit.tvm.cpu.plan.steps import Operand, Step
from qtool.core import numerics
from qtool.core.dialect import Add, Concat, Lookup, Mul, Op, Pad, Slice, Upsample

Built = list[Step] | str


def add(node: Node, context: Context) -> Built:
    """Return the step of a sum."""
    op = node.op
    if not isinstance(op, Add):
        return "not a sum"
    ra, rb, c = numerics.add_coefficients(
        op.a.scale, op.a.zero_point, op.b.scale, op.b.zero_point, op.grid.scale,
        op.grid.zero_point,
    )  # fmt: skip
    largest = 255.0 * (float(ra) + float(rb)) + abs(float(c))
    operands = _operands(op, node.output, context, largest)
    return _binary(AddCodes(operands), node, context, sum_numbers(ra, rb, c, op.lo, op.hi))


def mul(node: Node, context: Context) -> Built:
    """Return the step of a product."""
    op = node.op
    if not isinstance(op, Mul):
        return "not a product"
    factor = numerics.multiply_factor(op.a.scale, op.b.scale, op.grid.scale)
    if context.layouts[op.inputs[0]].shape != context.layouts[node.output].shape:
        return "the first operand is broadcast"
    numbers = product_numbers(
        factor, op.a.zero_point, op.b.zero_point, op.grid.zero_point, op.lo, op.hi
    )
    operands = _operands(op, node.output, context, 255.0**2 * float(factor) + 255)
    return _binary(MulCodes(operands), node, context, numbers)


def _operands(op: Op, output: str, context: Context, largest: float) -> Operands:
    y = context.layouts[output]
    a, b = (_broadcast(context.layouts[name], y) for name in op.inputs)
    return Operands(
        context.unit.name, region(y), a, b, place(y), (op.lo, op.hi) != (0, 255),
        largest >= ROUND_LIMIT, large(y),
    )  # fmt: skip


def _broadcast(x: Layout, y: Layout) -> Place:
    """Return the strides of an operand, 0 along what it is repeated over."""
    found = place(x)
    if x.width == 1 and y.width > 1:
        found = replace(found, pixel=0)
    if x.height == 1 and y.height > 1:
        found = replace(found, row=0)
    return found


def _binary(
    kernel: AddCodes | MulCodes, node: Node, context: Context, numbers: np.ndarray
) -> Built:
    inputs = tuple(context.pixels(name) for name in node.op.inputs)
    if any(context.layouts[name].channels == 1 for name in node.op.inputs) and (
        context.layouts[node.output].channels > 1
    ):
        return "channels are broadcast"
    return [Step(kernel, inputs, context.pixels(node.output), (numbers,), node.op.name)]


def look_up(node: Node, context: Context) -> Built:
    """Return the step of a table of 256 answers."""
    op = node.op
    if not isinstance(op, Lookup):
        return "not a look-up"
    x, y = context.layouts[op.inputs[0]], context.layouts[node.output]
    kernel = LookUp(context.unit.name, context.vbmi, region(y), place(x), place(y), large(y))
    inputs = (context.pixels(op.inputs[0]),)
    return [Step(kernel, inputs, context.pixels(node.output), (op.table,), op.name)]


def _copy_all(
    op: Op, name: str, output: str, context: Context, offset: int = 0,
    repeat: tuple[int, int] = (1, 1),
) -> Step:  # fmt: skip
    """Return the copy of all of a tensor into another one, `offset` bytes behind its start."""
    x, y = context.layouts[name], context.layouts[output]
    kernel = CopyRegion(
        context.unit.name, Region(x.height, x.width, x.channels), place(x), place(y), repeat,
        large(x if repeat == (1, 1) else y),
    )  # fmt: skip
    return Step(
        kernel, (context.pixels(name),), Operand(output, y.origin + offset), (), op.name
    )


def concat(node: Node, context: Context) -> Built:
    """Return the steps of tensors put side by side: a copy each."""
    op = node.op
    if not isinstance(op, Concat):
        return "not a concatenation"
    y = context.layouts[node.output]
    strides = (1, y.row, y.pixel)
    steps, done = [], 0
    for name in op.inputs:
        offset = done * strides[op.axis - 1]
        steps.append(_copy_all(op, name, node.output, context, offset))
        done += context.layouts[name].shape[op.axis - 1]
    return steps


def cut(node: Node, context: Context) -> Built:
    """Return the step of a slice."""
    op = node.op
    if not isinstance(op, Slice):
        return "not a slice"
    x, y = context.layouts[op.inputs[0]], context.layouts[node.output]
    starts, steps = _padded(op.starts, 0), _padded(op.steps, 1)
    if steps[0] != 1:
        return "channels are sliced with a step"
    offset = starts[0] + starts[1] * x.row + starts[2] * x.pixel
    kernel = CopyRegion(
        context.unit.name, Region(y.height, y.width, y.channels),
        Place(steps[1] * x.row, steps[2] * x.pixel), place(y), (1, 1), large(y),
    )  # fmt: skip
    source = Operand(op.inputs[0], x.origin + offset)
    return [Step(kernel, (source,), context.pixels(node.output), (), op.name)]


def _padded(values: Sequence[int], default: int) -> tuple[int, int, int]:
    """Return one value a dimension of (C, H, W)."""
    c, h, w = (*values, default, default)[:3]
    return c, h, w


def pad(node: Node, context: Context) -> Built:
    """Return the steps of padding: its code everywhere, then a copy inside."""
    op = node.op
    if not isinstance(op, Pad):
        return "not a padding"
    y, before = context.layouts[node.output], _padded(op.before, 0)
    offset = before[0] + before[1] * y.row + before[2] * y.pixel
    fill = FillRegion(context.unit.name, region(y), place(y), large(y))
    code = np.full(64, op.code, np.uint8)
    return [
        Step(fill, (), context.pixels(node.output), (code,), op.name),
        _copy_all(op, op.inputs[0], node.output, context, offset),
    ]


def upsample(node: Node, context: Context) -> Built:
    """Return the step of repeating pixels."""
    op = node.op
    if not isinstance(op, Upsample):
        return "not an upsampling"
    factors = _padded(op.factors, 1)
    if factors[0] != 1:
        return "channels are repeated"
    return [_copy_all(op, op.inputs[0], node.output, context, repeat=factors[1:])]


def copy(node: Node, context: Context) -> Built:
    """Return the step of a copy."""
    return [_copy_all(node.op, node.op.inputs[0], node.output, context)]


def reshape(node: Node, context: Context) -> Built:
    """Return the step of a reshape that changes no byte."""
    if only_channels(context.layouts[node.op.inputs[0]].shape, node.op.shape):
        return copy(node, context)
    return "pixels become channels, or channels pixels"


def select(node: Node, context: Context) -> Built:
    """Return the step of a selection of channels."""
    op = node.op
    if not isinstance(op, Select):
        return "not a selection"
    x, y = context.layouts[op.inputs[0]], context.layouts[node.output]
    kernel = ShuffleChannels(
        context.unit.name, context.vbmi, x.channels, y.channels, y.height, y.width, place(x),
        place(y), large(y),
    )  # fmt: skip
    inputs, places = (context.pixels(op.inputs[0]),), channel_places(op.index)
    return [Step(kernel, inputs, context.pixels(node.output), (places,), op.name)]
