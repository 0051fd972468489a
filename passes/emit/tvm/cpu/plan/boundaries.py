"""The input: floats or pixels in planes -> codes in pixels."""

from passes.emit.tvm.cpu.kernels.direct import Place
from passes.emit.tvm.cpu.kernels.images import CopyInput, QuantizeInput, quantize_numbers
from passes.emit.tvm.cpu.kernels.layout import Layout
from passes.emit.tvm.cpu.plan.context import Context, large, place
from passes.emit.tvm.cpu.plan.fusion import Node
from passes.emit.tvm.cpu.plan.steps import INPUT, Operand, Step
from qtool.core.dialect import Quantize


def quantize(node: Node, context: Context) -> list[Step] | str:
    """Return the step of a Quantize on the program's input."""
    op, y = node.op, context.layouts[node.output]
    if not isinstance(op, Quantize) or op.inputs[0] != context.program.input_name:
        return "quantizes what is not the input"
    numbers = quantize_numbers(op.grid.scale, op.grid.zero_point, op.lo, op.hi)
    kernel = QuantizeInput(context.unit.name, *_planes(y), large(y))
    return [Step(kernel, (Operand(INPUT),), context.pixels(node.output), (numbers,), op.name)]


def pixels(node: Node, context: Context) -> list[Step]:
    """Return the step that brings a uint8 input into pixels."""
    y = context.layouts[node.output]
    kernel = CopyInput(context.unit.name, *_planes(y), large(y))
    return [Step(kernel, (Operand(INPUT),), context.pixels(node.output), (), "input")]


def _planes(y: Layout) -> tuple[int, int, int, Place]:
    """Return C, H, W and the strides of the result; features are a row of one plane."""
    if y.height == y.width == 1:
        return 1, 1, y.channels, Place(0, 1)
    return y.channels, y.height, y.width, place(y)
