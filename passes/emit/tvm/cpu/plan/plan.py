"""The whole plan of a program: every kernel call in order, and the layout of every tensor."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from passes.emit.tvm.cpu.kernels.direct import DirectConv
from passes.emit.tvm.cpu.kernels.layout import NO_HALO, Halo, Layout, nhwc, plain
from passes.emit.tvm.cpu.plan.context import Context, only_channels
from passes.emit.tvm.cpu.plan.fusion import Node, fuse
from passes.emit.tvm.cpu.plan.memory import Life, lifetimes
from passes.emit.tvm.cpu.plan.operators import Fallback, output_steps, steps_of
from passes.emit.tvm.cpu.plan.own_operators import Pixels
from passes.emit.tvm.cpu.plan.rewrites import (
    read_pixels,
    renamed,
    select_channels,
    separate_halos,
)
from passes.emit.tvm.cpu.plan.steps import Step
from passes.emit.tvm.cpu.plan.tiles import Choose, by_rule
from passes.emit.tvm.cpu.vectors.base import Vectors
from qtool.core.dialect import Conv, FloatGemm, Gemm, Program, Quantize, Reshape

IMAGE_CHANNELS = 4  # at most: such pixels are stored without a gap


@dataclass(frozen=True)
class Plan:
    """Kernel calls, and what they work on.

    Args:
        steps: in order of execution.
        layouts: of every tensor in the arena.
        output: the tensor in the arena that is needed last.
        result: the tensor whose float values are the output.
        tensors: the program's integer tensors that exist.
        fused: those that do not, because a kernel goes on with them in registers.
        aliases: tensors that are another one under a second name.
        fallbacks: what has no vector kernel: layer, operator, reason.
        packed_weights: layers whose weights are unpacked in registers.
        largest_pair: bytes of the largest input and output of one operator, logical shapes.
    """

    steps: tuple[Step, ...]
    layouts: dict[str, Layout]
    output: str
    result: str
    tensors: tuple[str, ...]
    fused: tuple[str, ...]
    aliases: dict[str, str]
    fallbacks: tuple[dict[str, Any], ...] = field(default=())
    packed_weights: tuple[str, ...] = field(default=())
    largest_pair: int = 0

    def alias(self, name: str) -> str:
        """Return the name under which a tensor is in the arena."""
        return self.aliases.get(name, name)

    def lives(self) -> dict[str, Life]:
        """Return when each tensor of the arena is needed."""
        sizes = {name: layout.bytes for name, layout in self.layouts.items()}
        steps = [(tuple(o.tensor for o in s.inputs), s.output.tensor) for s in self.steps]
        return lifetimes(sizes, steps, self.output)


def make_plan(program: Program, unit: Vectors, choose: Choose = by_rule) -> Plan:
    """Return the plan of `program` for a vector unit; `choose` takes convolutions' kernels."""
    nodes = select_channels(fuse(program, unit.has_table), program.output)
    aliases = _aliases(nodes)
    nodes = [renamed(node, aliases) for node in nodes if node.output not in aliases]
    nodes = separate_halos(read_pixels(program, nodes))
    layouts, codes = _layouts(nodes)
    context = Context(program, unit, layouts, aliases, codes, choose)
    steps: list[Step] = []
    fallbacks: list[Fallback] = []
    for node in nodes:
        found, fallback = steps_of(node, context)
        steps += found
        fallbacks += fallback
    steps += output_steps(context)
    written = {node.output for node in nodes} | set(aliases)
    return Plan(
        tuple(steps), context.layouts, context.last_tensor(), program.output,
        tuple(name for name in program.tensors() if name in written),
        tuple(name for name in program.tensors() if name not in written),
        aliases, tuple(f.to_json() for f in fallbacks), _packed(steps), largest_pair(program),
    )  # fmt: skip


def _packed(steps: Sequence[Step]) -> tuple[str, ...]:
    """Return the layers whose kernels unpack weights in registers."""
    return tuple(
        step.layer
        for step in steps
        if isinstance(step.kernel, DirectConv) and step.kernel.weight_bits < 8
    )


def _aliases(nodes: Sequence[Node]) -> dict[str, str]:
    """Find reshapes that change no byte; between ranks only for layers, which ask for none."""
    found: dict[str, str] = {}
    shapes = {node.output: node.op.shape for node in nodes}
    others = {name for n in nodes if not isinstance(n.op, Conv | Gemm) for name in n.inputs}
    for node in nodes:
        source = found.get(node.inputs[0], node.inputs[0])
        if not isinstance(node.op, Reshape) or source not in shapes:
            continue
        before, after = shapes[source], node.op.shape
        if before == after or (only_channels(before, after) and node.output not in others):
            found[node.output] = source
    return found


def _layouts(nodes: Sequence[Node]) -> tuple[dict[str, Layout], dict[str, int]]:
    """Choose the layout of every tensor: NHWC with the halo that its readers need.

    Returns:
        Layouts, and the code in every halo.
    """
    halos: dict[str, Halo] = {}
    codes: dict[str, int] = {}
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
        if isinstance(node.op, Conv):
            source = node.op.inputs[0]
            wanted = node.op.pads
            if any(wanted):
                codes[source] = node.op.x.zero_point
            halos[source] = tuple(  # type: ignore[assignment]
                max(a, b) for a, b in zip(halos.get(source, NO_HALO), wanted, strict=True)
            )
    layouts = {}
    for node in nodes:
        if isinstance(node.op, FloatGemm):
            continue
        shape, halo = node.op.shape, halos.get(node.output, NO_HALO)
        if len(shape) not in (1, 3):
            layouts[node.output] = plain(shape)
            continue
        pixel = None
        image = isinstance(node.op, Quantize | Pixels)
        if image and _dense_image(shape, readers.get(node.output, ())):
            pixel = shape[0]
        layouts[node.output] = nhwc(shape, halo, pixel)
    return layouts, codes


def _dense_image(shape: tuple[int, ...], readers: Sequence[Node]) -> bool:
    """Return True where only ordinary convolutions read an image of few channels."""
    return shape[0] <= IMAGE_CHANNELS and all(
        isinstance(node.op, Conv) and node.op.groups == 1 and node.op.dilations[1] == 1
        for node in readers
    )


def largest_pair(program: Program) -> int:
    """Return the most bytes that one operator's input and output need together."""
    sizes = Counter({name: prod(shape) for name, shape in program.shapes().items()})
    del sizes[program.input_name]
    return max(
        max(sizes[name] for name in op.inputs)
        + (0 if isinstance(op, Gemm) else sizes[op.output])
        for op in program.ops
    )
