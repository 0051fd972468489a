"""A program -> kernels of a GPU in order, and where each tensor lies.

Fusions are those of CPUs (`passes.emit.tvm.cpu.plan.fusion`): they are exact by construction
and know nothing of a machine. Every operator of the dialect has a line in `KERNELS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from passes.emit.tvm.cpu.kernels.layout import Layout, nhwc, plain
from passes.emit.tvm.cpu.plan.context import only_channels
from passes.emit.tvm.cpu.plan.fusion import Node, fuse, separate
from passes.emit.tvm.cpu.plan.own_operators import Pixels
from passes.emit.tvm.cpu.plan.plan import largest_pair
from passes.emit.tvm.cpu.plan.rewrites import read_pixels, renamed
from passes.emit.tvm.cpu.plan.steps import Kernel
from passes.emit.tvm.cuda.kernels.depthwise import Depthwise
from passes.emit.tvm.cuda.kernels.epilogue import Form
from passes.emit.tvm.cuda.kernels.implicit_gemm import ImplicitGemm, Window
from passes.emit.tvm.cuda.kernels.portable import PlainDequantize, Portable
from passes.emit.tvm.cuda.tiles import choose
from passes.emit.tvm.te_kernels import kernel as te_kernel
from qtool.core.dialect import (
    Add,
    Average,
    Concat,
    Conv,
    FloatGemm,
    Gemm,
    Island,
    Lookup,
    MaxPool,
    Mul,
    Op,
    Pad,
    Program,
    Quantize,
    Reshape,
    Slice,
    Transpose,
    Upsample,
    weight_of,
)
from qtool.core.errors import UnsupportedError

OUTPUT = "<output>"
# Images of so few channels are stored with as many bytes a pixel: a register.
_IMAGE_CHANNELS = 4
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Step:
    """A call of a kernel.

    Args:
        kernel: what to call; equal specifications are one function.
        inputs: tensors, the first before, others behind its constants.
        output: the tensor that it writes.
        constants: weights and numbers, in the order of its arguments.
        layer: name of the operator that it computes.
    """

    kernel: Kernel
    inputs: tuple[str, ...]
    output: str
    constants: tuple[NDArray[Any], ...] = field(default=())
    layer: str = ""


@dataclass(frozen=True)
class Plan:
    """Steps in order, and what they work on.

    Args:
        steps: in order of execution.
        layouts: of every tensor.
        tensors: the program's integer tensors that exist.
        fused: those that do not, because a kernel goes on with them in registers.
        aliases: tensors that are another one under a second name.
        fallbacks: layers without a kernel for registers: layer, operator, reason.
        largest_pair: bytes of the largest input and output of one operator, logical shapes.
    """

    steps: tuple[Step, ...]
    layouts: dict[str, Layout]
    tensors: tuple[str, ...]
    fused: tuple[str, ...]
    aliases: dict[str, str]
    fallbacks: tuple[dict[str, str], ...]
    largest_pair: int

    def alias(self, name: str) -> str:
        """Return the name under which a tensor is stored."""
        return self.aliases.get(name, name)


@dataclass(frozen=True)
class Context:
    """What the making of steps needs to know.

    Args:
        batch: images.
        mma: whether the GPU multiplies int8 on tensor cores.
        program: the dialect.
        layouts: of every tensor.
        read: shapes of an operator's inputs, by its output. A tensor may be stored under
            another name, and there with another rank.
    """

    batch: int
    mma: bool
    program: Program
    layouts: dict[str, Layout]
    read: dict[str, tuple[tuple[int, ...], ...]]

    def layout(self, name: str) -> Layout:
        """Return the layout of a tensor, the program's input among them."""
        if name == self.program.input_name:
            return plain(self.program.input_shape)
        return self.layouts[name]


def make_plan(program: Program, batch: int, mma: bool) -> Plan:
    """Return the plan of `program`.

    Args:
        program: the integer dialect.
        batch: images per call.
        mma: whether the GPU multiplies int8 on tensor cores.

    Raises:
        UnsupportedError: a float island; names it. Tensors of 2^31 bytes.
    """
    for island in program.islands():
        te_kernel(island)  # says why there is none, before the plan is made
    nodes = fuse(program, tables=True)
    shapes = program.shapes()
    ops = [op for node in nodes for op in (node.op, node.residual) if op is not None]
    read = {op.output: tuple(shapes[name] for name in op.inputs) for op in ops}
    aliases = _aliases(nodes)
    nodes = [renamed(node, aliases) for node in nodes if node.output not in aliases]
    nodes = read_pixels(program, nodes)
    layouts = {node.output: _layout(node) for node in nodes}
    _refuse_large(layouts, batch)
    context = Context(batch, mma, program, layouts, read)
    steps = [step for node in nodes for step in KERNELS[type(node.op)](node, context)]
    if not program.float_output:
        steps.append(_dequantize(context, aliases.get(program.output, program.output)))
    written = {node.output for node in nodes} | set(aliases)
    return Plan(
        tuple(steps), layouts,
        tuple(name for name in program.tensors() if name in written),
        tuple(name for name in program.tensors() if name not in written),
        aliases, _fallbacks(program, steps), largest_pair(program),
    )  # fmt: skip


def _refuse_large(layouts: dict[str, Layout], batch: int) -> None:
    """Refuse tensors whose bytes kernels could not count in int32."""
    for name, layout in layouts.items():
        if layout.bytes * batch > _INT32_MAX:
            raise UnsupportedError(
                f"tensor {name} has {layout.bytes * batch:,} bytes at --batch {batch}; a GPU "
                f"module counts to {_INT32_MAX:,}: choose a smaller batch"
            )


def _fallbacks(program: Program, steps: list[Step]) -> tuple[dict[str, str], ...]:
    """Return the layers that are computed byte by byte."""
    kinds = {op.name: type(op).__name__ for op in program.ops if isinstance(op, Conv | Gemm)}
    reason = "groups of several channels"
    return tuple(
        {"layer": step.layer, "operator": kinds[step.layer], "reason": reason}
        for step in steps
        if isinstance(step.kernel, Portable) and isinstance(step.kernel.op, Conv | Gemm)
    )


def _aliases(nodes: list[Node]) -> dict[str, str]:
    """Find reshapes between (C, 1, 1) and (C), which change no byte."""
    found: dict[str, str] = {}
    shapes = {node.output: node.op.shape for node in nodes}
    for node in nodes:
        source = found.get(node.inputs[0], node.inputs[0])
        if isinstance(node.op, Reshape) and source in shapes:
            if only_channels(shapes[source], node.op.shape):
                found[node.output] = source
    return found


def _layout(node: Node) -> Layout:
    """Return NHWC, or a plain layout where the shape has none."""
    shape = node.op.shape
    if len(shape) not in (1, 3) or isinstance(node.op, FloatGemm):
        return plain(shape)
    narrow = len(shape) == 3 and shape[0] <= _IMAGE_CHANNELS
    return nhwc(shape, pixel=_IMAGE_CHANNELS if narrow else None)


def _layer(node: Node, context: Context) -> list[Step]:
    """Return the step of a convolution or linear layer."""
    op = node.op
    if not isinstance(op, Conv | Gemm):
        raise TypeError(f"{op.name}: {type(op).__name__} is no layer")
    x, y = context.layout(op.inputs[0]), context.layouts[node.output]
    groups = op.groups if isinstance(op, Conv) else 1
    depthwise = groups > 1 and groups == x.channels == len(weight_of(op))
    other = y if node.residual is None else context.layout(node.inputs[-1])
    if (groups > 1 and not depthwise) or other.bytes != y.bytes:
        alone = node.residual is None and node.table is None
        return _plain(node, context) if alone else _apart(node, context)
    form = Form.of(node)
    output = OUTPUT if form.floats else node.output
    kernel: Depthwise | ImplicitGemm = Depthwise(context.batch, x, y, Window.of(op), form)
    if not depthwise:
        products = choose(context.mma, context.batch * y.height * y.width, y.channels)
        kernel = ImplicitGemm(context.batch, x, y, Window.of(op), products, form)
    return [Step(kernel, node.inputs, output, kernel.constants(node), op.name)]


def _apart(node: Node, context: Context) -> list[Step]:
    """Return the steps of a fused node, one after another, through tensors of their own."""
    steps = []
    for part in separate(node):
        context.layouts.setdefault(part.output, _layout(part))
        steps += KERNELS[type(part.op)](part, context)
    return steps


def _plain(node: Node, context: Context) -> list[Step]:
    """Return the step of an operator that is computed byte by byte."""
    op = node.op
    stored = tuple(map(context.layout, op.inputs))
    shapes = context.read.get(op.output, tuple(layout.shape for layout in stored))
    inputs = tuple(replace(x, shape=s) for x, s in zip(stored, shapes, strict=True))
    kernel = Portable(context.batch, op, inputs, context.layouts[node.output])
    return [Step(kernel, op.inputs, node.output, kernel.constants(), op.name)]


def _pixels(node: Node, context: Context) -> list[Step]:
    """Return the step that brings raw pixels into their layout: a copy."""
    op = node.op
    move = Transpose(
        op.name, op.output, op.inputs, op.grid, op.lo, op.hi, op.shape,
        tuple(range(len(op.shape) + 1)),
    )  # fmt: skip
    return _plain(Node(move, node.output), context)


def _dequantize(context: Context, name: str) -> Step:
    grid, layout = context.program.output_grid, context.layouts[name]
    shaped = replace(layout, shape=context.program.shapes()[context.program.output])
    kernel = PlainDequantize(context.batch, float(grid.scale), grid.zero_point, shaped)
    return Step(kernel, (name,), OUTPUT, (), "output")


KERNELS: dict[type[Op], Callable[[Node, Context], list[Step]]] = {
    Quantize: _plain, Conv: _layer, Gemm: _layer, FloatGemm: _layer, Add: _plain,
    Mul: _plain, Average: _plain, Lookup: _plain, Island: _plain, MaxPool: _plain,
    Reshape: _plain, Transpose: _plain, Concat: _plain, Slice: _plain, Pad: _plain,
    Upsample: _plain, Pixels: _pixels,
}  # fmt: skip
