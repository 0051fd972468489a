"""What each operator becomes: steps of vector kernels, or a portable kernel and why."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.emit.kernels.layout import Layout, nhwc, plain
from passes.emit.kernels.portable import PlainDequantize, Portable
from passes.emit.kernels.vectors import Vectors
from passes.emit.plan.convolution import Sites, convolution
from passes.emit.plan.fusion import Node
from passes.emit.plan.steps import INPUT, OUTPUT, Operand, Step
from qtool.dialect import Conv, FloatGemm, Gemm, Lookup, Op, Program

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


@dataclass
class Context:
    """What the making of steps needs to know.

    Args:
        program: the dialect.
        unit: the vector unit.
        layouts: of every tensor.
        aliases: tensors that are another one.
        halo_codes: what is around each tensor that has a halo.
    """

    program: Program
    unit: Vectors
    layouts: dict[str, Layout]
    aliases: dict[str, str]
    halo_codes: dict[str, int]

    def operand(self, name: str, offset: int = 0) -> Operand:
        """Return a pointer into a tensor, the program's input among them."""
        if name == self.program.input_name:
            return Operand(INPUT, offset)
        return Operand(name, offset)

    def layout(self, name: str) -> Layout:
        """Return the layout of a tensor."""
        if name == self.program.input_name:
            return plain(self.program.input_shape)
        return self.layouts[name]

    def last_tensor(self) -> str:
        """Return the tensor that is needed last."""
        name = self.program.output
        return name if self.program.float_output else self.aliases.get(name, name)

    def output_steps(self) -> list[Step]:
        """Return what makes floats of the last codes."""
        program = self.program
        if program.float_output:
            return []
        grid = program.output_grid
        kernel = PlainDequantize(
            float(grid.scale), grid.zero_point, self.layout(self.last_tensor())
        )
        return [
            Step(kernel, (self.operand(self.last_tensor()),), Operand(OUTPUT), (), "output")
        ]


def steps_of(node: Node, context: Context) -> tuple[list[Step], list[Fallback]]:
    """Return the steps of a node, and what fell back to portable kernels."""
    build = _BUILDERS.get(type(node.op))
    built: Built = build(node, context) if build else "no vector kernel"
    if isinstance(built, str) and (node.residual or node.table is not None):
        return _apart(node, context)
    if isinstance(built, str):
        found = [_portable(node, context)]
        return found, [Fallback(node.op.name, type(node.op).__name__, built)]
    return built + _halo(node, context), []


def _apart(node: Node, context: Context) -> tuple[list[Step], list[Fallback]]:
    """Return the steps of a fused node, one after another, through tensors of their own."""
    parts, op = [], node.op
    if node.residual is not None:
        parts, op = [*parts, op], node.residual
    if node.table is not None:
        parts.append(op)
        op = Lookup(
            op.name, node.output, (op.output,), op.grid, op.lo, op.hi, op.shape, node.table
        )
    steps: list[Step] = []
    fallbacks: list[Fallback] = []
    for part in [*parts, op]:
        output = node.output if part is op else part.output
        context.layouts.setdefault(
            output, nhwc(part.shape) if len(part.shape) in (1, 3) else plain(part.shape)
        )
        found, fallback = steps_of(Node(part, output), context)
        steps, fallbacks = steps + found, fallbacks + fallback
    return steps, fallbacks


def _portable(node: Node, context: Context) -> Step:
    op = node.op
    inputs = tuple(context.layout(name) for name in op.inputs)
    output = context.layouts.get(node.output, plain(op.shape))
    kernel = Portable(op, inputs, output, context.halo_codes.get(node.output, 0))
    target = OUTPUT if isinstance(op, FloatGemm) else node.output
    return Step(
        kernel, tuple(context.operand(name) for name in op.inputs), Operand(target),
        kernel.constants(), op.name,
    )  # fmt: skip


def _halo(node: Node, context: Context) -> list[Step]:
    return []


def _layer(node: Node, context: Context) -> Built:
    op = node.op
    if isinstance(op, Conv) and op.groups > 1:
        return "groups"
    x, y = context.layout(op.inputs[0]), context.layouts[node.output]
    if x.plain or y.plain or any(y.halo):
        return "not stored as NHWC"
    other = context.layout(node.inputs[-1]) if node.residual is not None else None
    return [convolution(node, Sites(x, y, other), context.unit)]


_BUILDERS: dict[type[Op], Callable[[Node, Context], Built]] = {Conv: _layer, Gemm: _layer}
