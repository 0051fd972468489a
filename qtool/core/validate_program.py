"""Refuse an integer program whose operators do not fit each other, before anything runs it.

Shapes, types and orders within the file are `qtool.export.validate`'s; here the operators are
typed: every tensor read is computed before, in the shape that its reader is for. `CHECKS` has
a rule for every operator of the dialect; one that it does not know is refused.
"""

from collections.abc import Callable, Iterable, Sequence
from math import prod

import numpy as np

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
)
from qtool.core.errors import UnsupportedError, UserError
from qtool.core.numerics import multiplier

Shape = tuple[int, ...]


def check_program(program: Program) -> None:
    """Check `program` as a whole.

    Raises:
        UserError: names the first operator that does not fit.
    """
    shapes = {program.input_name: program.input_shape}
    for op in program.ops:
        if not op.shape or min(op.shape) < 1:
            raise UserError(f"node {op.name}: result of shape {op.shape}")
        if not 0 <= op.lo <= op.hi <= 255:
            raise UserError(f"node {op.name}: window {op.lo} to {op.hi} is empty")
        for position, name in enumerate(op.inputs):
            wants = "float32" if _reads_floats(op, position) else "uint8"
            found = program.input_kind if name == program.input_name else "uint8"
            if name not in shapes or wants != found:
                raise UserError(f"node {op.name}: no operator computes its input {name}")
        _check_shapes(op, [shapes[name] for name in op.inputs])
        shapes[op.output] = op.shape
    if program.output not in shapes:
        raise UserError(f"no operator computes the output {program.output}")


def _reads_floats(op: Op, position: int) -> bool:
    """True for the model's input, as it is before it has a grid."""
    if isinstance(op, Island):
        return position < len(op.x) and op.x[position] is None
    return isinstance(op, Quantize)


def _check_shapes(op: Op, sources: list[Shape]) -> None:
    check = CHECKS.get(type(op))
    if check is None:
        raise UnsupportedError(f"node {op.name}: unknown operator {type(op).__name__}")
    needed = _INPUTS.get(type(op), 1)
    if not sources or (needed and len(sources) != needed):
        raise UserError(
            f"node {op.name}: {len(sources)} inputs; {needed or 'some'} are needed"
        )
    if not check(op, *sources):
        found = " and ".join(map(str, sources))
        raise UserError(f"node {op.name}: result of shape {op.shape} from {found}")


def _same(op: Op, source: Shape) -> bool:
    return op.shape == source


def _conv(op: Conv, source: Shape) -> bool:
    outputs, per_group, *kernel = op.w_OIHW.shape
    _check_channels(op, source[0], per_group * op.groups, outputs)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, op.dilations, strict=True)]
    return len(source) == 3 and op.shape[1:] == _slid(source, reach, op.strides, op.pads)


def _gemm(op: Gemm, source: Shape) -> bool:
    outputs, inputs = op.w_OI.shape
    _check_channels(op, prod(source), inputs, outputs)
    return len(op.shape) == 1


def _check_channels(op: Conv | Gemm, inputs: int, expected: int, outputs: int) -> None:
    """Check a layer's constants against what it reads and makes."""
    if inputs != expected or op.shape[0] != outputs:
        raise UserError(
            f"layer {op.name}: input of {inputs} channels and {op.shape[0]} outputs; its "
            f"weights are for {expected} and {outputs}"
        )
    sizes = {"bias": op.bias.shape, "weight scale": op.w_scale.shape}
    for what, shape in sizes.items():
        if shape not in ((outputs,), (1,)):
            raise UserError(f"layer {op.name}: {what} of shape {shape} for {outputs} outputs")
    if not np.isfinite(multiplier(op.x.scale, op.w_scale, op.grid.scale)).all():
        raise UserError(f"layer {op.name}: its scales overflow float32")


def _slid(
    source: Shape, reach: Iterable[int], strides: Sequence[int], pads: Sequence[int]
) -> Shape:
    """Return height and width of what windows of `reach` leave of a padded (C, H, W)."""
    return tuple(
        (source[i + 1] + pads[i] + pads[i + 2] - r) // strides[i] + 1
        for i, r in enumerate(reach)
    )


def _max_pool(op: MaxPool, source: Shape) -> bool:
    return op.shape == (source[0], *_slid(source, op.kernel, op.strides, op.pads))


def _binary(op: Add | Mul, a: Shape, b: Shape) -> bool:
    """The first operand has the result's shape; dimensions of the second may be 1."""
    fits = len(a) == len(b) and all(m in (1, n) for n, m in zip(a, b, strict=True))
    return fits and op.shape == a


def _average(op: Average, source: Shape) -> bool:
    fits = op.shape == (source[0], *[1] * len(source[1:]))
    return fits and op.count == prod(source[1:])


def _island(op: Island, *sources: Shape) -> bool:
    """What it computes is known to ONNX alone; how many tensors it reads is not."""
    return len(sources) == len(op.x)


def _reshape(op: Reshape, source: Shape) -> bool:
    return prod(op.shape) == prod(source)


def _transpose(op: Transpose, source: Shape) -> bool:
    order = [axis - 1 for axis in op.perm[1:]]
    fits = op.perm[0] == 0 and sorted(order) == list(range(len(source)))
    return fits and op.shape == tuple(source[axis] for axis in order)


def _concat(op: Concat, *sources: Shape) -> bool:
    place = op.axis - 1
    if place < 0 or any(len(source) <= place for source in sources):
        return False
    rest = {(*source[:place], *source[place + 1 :]) for source in sources}
    total = sum(source[place] for source in sources)
    return rest == {(*op.shape[:place], *op.shape[place + 1 :])} and op.shape[place] == total


def _slice(op: Slice, source: Shape) -> bool:
    parts = (op.shape, op.starts, op.steps, source)
    return len({len(part) for part in parts}) == 1 and all(
        start + (count - 1) * step < size
        for count, start, step, size in zip(*parts, strict=True)
    )


def _pad(op: Pad, source: Shape) -> bool:
    parts = (op.shape, op.before, source)
    return len({len(part) for part in parts}) == 1 and all(
        before + size <= total for total, before, size in zip(*parts, strict=True)
    )


def _upsample(op: Upsample, source: Shape) -> bool:
    return len(source) == len(op.factors) and op.shape == tuple(
        size * factor for size, factor in zip(source, op.factors, strict=True)
    )


# How many tensors an operator reads where that is not one; 0 for any number.
_INPUTS: dict[type[Op], int] = {Add: 2, Mul: 2, Concat: 0, Island: 0}

# operator: (operator, shape of each input) -> True where its own shape is what it makes
CHECKS: dict[type[Op], Callable[..., bool]] = {
    Quantize: _same, Conv: _conv, Gemm: _gemm, FloatGemm: _gemm, Add: _binary, Mul: _binary,
    Average: _average, Lookup: _same, Island: _island, MaxPool: _max_pool, Reshape: _reshape,
    Transpose: _transpose, Concat: _concat, Slice: _slice, Pad: _pad, Upsample: _upsample,
}  # fmt: skip
