"""The input: floats or pixels in planes -> codes in pixels."""

from passes.emit.kernels.images import CopyInput, QuantizeInput, quantize_numbers
from passes.emit.kernels.layout import Layout
from passes.emit.plan.context import Context, large, place
from passes.emit.plan.fusion import Node
from passes.emit.plan.steps import INPUT, Operand, Step
from qtool.dialect import Quantize


def quantize(node: Node, context: Context) -> list[Step] | str:
    """Return the step of a Quantize on the program's input."""
    op, y = node.op, context.layouts[node.output]
    if not isinstance(op, Quantize) or op.inputs[0] != context.program.input_name:
        return "quantizes what is not the input"
    numbers = quantize_numbers(op.grid.scale, op.grid.zero_point, op.lo, op.hi)
    kernel = QuantizeInput(
        context.unit.name, y.channels, y.height, y.width, place(y), large(y)
    )
    return [Step(kernel, (Operand(INPUT),), context.pixels(node.output), (numbers,), op.name)]


def pixels(name: str, y: Layout, context: Context) -> Step:
    """Return the step that brings a uint8 input into pixels, as the tensor `name`."""
    kernel = CopyInput(context.unit.name, y.channels, y.height, y.width, place(y), large(y))
    return Step(kernel, (Operand(INPUT),), Operand(name, y.origin), (), "input")
