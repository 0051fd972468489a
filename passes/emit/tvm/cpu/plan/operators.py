"""What each operator becomes: steps of vector kernels, or a portable kernel and why."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from passes.emit.tvm.cpu.kernels.copies import FillHalo
from passes.emit.tvm.cpu.kernels.layout import nhwc, plain
from passes.emit.tvm.cpu.kernels.portable import PlainDequantize, Portable
from passes.emit.tvm.cpu.kernels.results import Dequantize, dequantize_numbers
from passes.emit.tvm.cpu.plan import boundaries, codes, layers
from passes.emit.tvm.cpu.plan.context import Context
from passes.emit.tvm.cpu.plan.fusion import Node, separate
from passes.emit.tvm.cpu.plan.own_operators import Copy, Pixels, Select
from passes.emit.tvm.cpu.plan.steps import OUTPUT, Operand, Step
from qtool.core.dialect import (
    Add,
    Average,
    Concat,
    Conv,
    FloatGemm,
    Gemm,
    Lookup,
    MaxPool,
    Mul,
    Op,
    Pad,
    Quantize,
    Reshape,
    Slice,
    Upsample,
)

# Steps, or the reason why there is no vector kernel.
Built = list[Step] | str


@dataclass(frozen=True)
class Fallback:
    """An operator without a vector kernel.

    Args:
        layer: its name.
        operator: its type.
        reason: why.
    """

    layer: str
    operator: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"layer": self.layer, "operator": self.operator, "reason": self.reason}


def steps_of(node: Node, context: Context) -> tuple[list[Step], list[Fallback]]:
    """Return the steps of a node, and what fell back to portable kernels."""
    build = _BUILDERS.get(type(node.op))
    built: Built = _not_vectors(node, context) or "no vector kernel"
    if built == _FITS:
        built = build(node, context) if build else "no vector kernel"
    if not isinstance(built, str):
        return built + _halo(node, context), []
    if node.residual or node.table is not None:
        return _apart(node, context)
    fallback = Fallback(node.op.name, type(node.op).__name__, built)
    return [_portable(node, context)], [fallback]


_FITS = "fits"


def _not_vectors(node: Node, context: Context) -> str:
    """Return `_FITS`, or why the tensors' shapes have no vector layout."""
    names = [n for n in (*node.inputs, node.output) if n != context.program.input_name]
    ranks = {len(context.layouts[n].shape) for n in names if n in context.layouts}
    if any(context.layouts[n].plain for n in names if n in context.layouts):
        return f"tensors of {max(ranks) + 1} dimensions"
    return _FITS


def output_steps(context: Context) -> list[Step]:
    """Return what makes floats of the last codes."""
    program = context.program
    if program.float_output:
        return []
    grid, name = program.output_grid, context.last_tensor()
    layout = context.layouts[name]
    if layout.plain or layout.height * layout.width > 1:
        kernel = PlainDequantize(float(grid.scale), grid.zero_point, layout)
        return [Step(kernel, (context.start(name),), Operand(OUTPUT), (), "output")]
    numbers = dequantize_numbers(grid.scale, grid.zero_point)
    dense = Dequantize(context.unit.name, layout.channels, False)
    return [Step(dense, (context.pixels(name),), Operand(OUTPUT), (numbers,), "output")]


def _apart(node: Node, context: Context) -> tuple[list[Step], list[Fallback]]:
    """Return the steps of a fused node, one after another, through tensors of their own."""
    steps: list[Step] = []
    fallbacks: list[Fallback] = []
    for part in separate(node):
        shape = part.op.shape
        layout = nhwc(shape) if len(shape) in (1, 3) else plain(shape)
        context.layouts.setdefault(part.output, layout)
        found, fallback = steps_of(part, context)
        steps, fallbacks = steps + found, fallbacks + fallback
    return steps, fallbacks


def _portable(node: Node, context: Context) -> Step:
    op = node.op
    # A tensor may have been stored under another name, and there with another rank.
    shapes, ops = context.program.shapes(), context.program.ops
    original = next((o.inputs for o in ops if o.output == op.output), op.inputs)
    inputs = tuple(
        replace(context.layout(name), shape=shapes.get(own, context.layout(name).shape))
        for name, own in zip(op.inputs, original, strict=True)
    )
    output = context.layouts.get(node.output, plain(op.shape))
    kernel = Portable(op, inputs, output, context.halo_codes.get(node.output, 0))
    target = OUTPUT if isinstance(op, FloatGemm) else node.output
    return Step(
        kernel, tuple(context.start(name) for name in op.inputs), Operand(target),
        kernel.constants(), op.name,
    )  # fmt: skip


def _halo(node: Node, context: Context) -> list[Step]:
    """Return what writes the zero point around a result."""
    layout = context.layouts.get(node.output)
    if layout is None or not any(layout.halo):
        return []
    kernel = FillHalo(
        context.unit.name, layout.height, layout.width, layout.pixel, layout.halo
    )
    code = np.full(64, context.halo_codes[node.output], np.uint8)
    return [Step(kernel, (), Operand(node.output), (code,), node.op.name)]


_BUILDERS: dict[type[Op], Callable[[Node, Context], Built]] = {
    Quantize: boundaries.quantize, Conv: layers.layer, Gemm: layers.layer,
    FloatGemm: layers.layer, Reshape: codes.reshape,
    Average: layers.average, MaxPool: layers.max_pool, Add: codes.add, Mul: codes.mul,
    Lookup: codes.look_up, Concat: codes.concat, Slice: codes.cut, Pad: codes.pad,
    Upsample: codes.upsample, Select: codes.select, Copy: codes.copy,
    Pixels: boundaries.pixels,
}  # fmt: skip
