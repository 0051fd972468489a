"""The reference runtime: the integer dialect in numpy, on `qtool.core.numerics`.

It defines the numbers, but for float islands: theirs are ONNX Runtime's (`runtimes.islands`).
It is written to be read, and fast enough for a test set. Suffixes: N batch, C channels, H and
W height and width, O outputs.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from qtool.core import numerics
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
from qtool.core.errors import UserError
from qtool.core.numerics import Accumulators, Codes, Floats
from runtimes.base import Artifact, Inputs

# From here on not every integer is a float32.
_EXACT_FLOAT32 = 1 << 24


class ReferenceRuntime:
    """Executes a `Program` operator by operator."""

    @classmethod
    def require(cls, artifact: Artifact | None) -> None:
        """Numpy is always here."""

    @classmethod
    def open(cls, artifact: Artifact, threads: int) -> Self:
        """Execute the program of an ONNX file; numpy chooses its threads itself."""
        if artifact.program is None:
            raise UserError(f"{artifact.path}: the reference needs the program of the file")
        return cls(artifact.program)

    def __init__(self, program: Program) -> None:
        self.program = program

    def run(self, x: Inputs) -> Floats:
        """Return dequantized outputs."""
        codes: Any = dict(self._execute(x))[self.program.output]
        if self.program.float_output:
            return np.asarray(codes, np.float32)
        grid = self.program.output_grid
        return numerics.dequantize(codes, grid.scale, grid.zero_point)

    def intermediates(self, x: Inputs) -> dict[str, Codes]:
        """Return every operator's result."""
        tensors = dict(self._execute(x))
        return {name: tensors[name] for name in self.program.tensors()}

    def float_ops(self) -> Counter[str]:
        """Count the operators in float islands; the dialect has no others."""
        return Counter(kind for op in self.program.islands() for kind in op.operators)

    def _execute(self, x: Inputs) -> Iterator[tuple[str, Codes]]:
        tensors: dict[str, Any] = {self.program.input_name: x}
        for op in self.program.ops:
            result = execute(op, [tensors[name] for name in op.inputs])
            tensors[op.output] = result
            yield op.output, result


def execute(op: Op, inputs: list[Codes]) -> Any:
    """Return one operator's result on integer `inputs`: codes; floats of a FloatGemm.

    The inputs of a Quantize are floats.
    """
    run = OPERATORS.get(type(op))
    if run is None:
        raise TypeError(f"{op.name}: {type(op).__name__} has no reference")
    return run(op, inputs)


def gemm_accumulate(op: Gemm, x_NI: Codes) -> Accumulators:
    """Return ``(x - zx) @ w.T + bias`` as int32 (N, O)."""
    kind = _exact_type(op.w_OI)
    centred = (x_NI.astype(np.int16) - op.x.zero_point).astype(kind)
    acc: Accumulators = (centred @ op.w_OI.T.astype(kind)).astype(np.int32) + op.bias
    return acc


def conv_accumulate(op: Conv, x_NCHW: Codes) -> Accumulators:
    """Return the int32 accumulators (N, O, H', W'), bias included."""
    kind = _exact_type(op.w_OIHW)
    top, left, bottom, right = op.pads
    # Padding is 0 in real terms: the zero point, which centring makes 0.
    centred = np.pad(
        (x_NCHW.astype(np.int16) - op.x.zero_point).astype(kind),
        ((0, 0), (0, 0), (top, bottom), (left, right)),
    )
    weight = op.w_OIHW.astype(kind)
    outputs, _, kh, kw = weight.shape
    (sy, sx), (dy, dx) = op.strides, op.dilations
    height = (centred.shape[2] - (kh - 1) * dy - 1) // sy + 1
    width = (centred.shape[3] - (kw - 1) * dx - 1) // sx + 1
    total = np.zeros((len(x_NCHW), outputs, height, width), kind)
    for i, j in np.ndindex(kh, kw):
        rows = slice(i * dy, i * dy + sy * (height - 1) + 1, sy)
        columns = slice(j * dx, j * dx + sx * (width - 1) + 1, sx)
        total += _product(centred[:, :, rows, columns], weight[:, :, i, j], op.groups)
    acc: Accumulators = total.astype(np.int32) + op.bias.reshape(1, -1, 1, 1)
    return acc


def _product(x_NCHW: NDArray[Any], w_OI: NDArray[Any], groups: int) -> NDArray[Any]:
    """Multiply one kernel position: (N, C, H, W) x (O, C / groups) -> (N, O, H, W)."""
    batch, channels, height, width = x_NCHW.shape
    outputs, per_group = w_OI.shape
    if per_group == 1 and outputs == channels:
        scaled: NDArray[Any] = x_NCHW * w_OI.reshape(1, -1, 1, 1)
        return scaled
    x = x_NCHW.reshape(batch, groups, per_group, height * width)
    w = w_OI.reshape(1, groups, outputs // groups, per_group)
    product: NDArray[Any] = (w @ x).reshape(batch, outputs, height, width)
    return product


def _exact_type(weight: NDArray[np.int8]) -> type[np.float32] | type[np.float64]:
    """float32 where every partial sum is below 2^24 and so exact, else float64."""
    flat = np.abs(weight.astype(np.int64)).reshape(len(weight), -1)
    return np.float32 if 255 * int(flat.sum(1).max()) < _EXACT_FLOAT32 else np.float64


def _quantize(op: Quantize, inputs: list[Any]) -> Codes:
    return numerics.quantize(inputs[0], op.grid.scale, op.grid.zero_point, op.lo, op.hi)


def _conv(op: Conv, inputs: list[Codes]) -> Codes:
    return _requantize(op, conv_accumulate(op, inputs[0]))


def _gemm(op: Gemm, inputs: list[Codes]) -> Codes:
    return _requantize(op, gemm_accumulate(op, inputs[0]))


def _requantize(op: Conv | Gemm, acc: Accumulators) -> Codes:
    return numerics.requantize(acc, _factor(op), op.grid.zero_point, op.lo, op.hi)


def _float_gemm(op: FloatGemm, inputs: list[Codes]) -> Floats:
    return numerics.scale_accumulators(gemm_accumulate(op, inputs[0]), _factor(op))


def _factor(op: Conv | Gemm) -> Floats:
    return numerics.multiplier(op.x.scale, op.w_scale, op.grid.scale)


def _add(op: Add, inputs: list[Codes]) -> Codes:
    return _binary(numerics.add, op, inputs)


def _mul(op: Mul, inputs: list[Codes]) -> Codes:
    return _binary(numerics.multiply, op, inputs)


def _binary(formula: Callable[..., Codes], op: Add | Mul, inputs: list[Codes]) -> Codes:
    a, b = inputs
    return formula(
        a, op.a.scale, op.a.zero_point, b, op.b.scale, op.b.zero_point,
        op.grid.scale, op.grid.zero_point, op.lo, op.hi,
    )  # fmt: skip


def _average(op: Average, inputs: list[Codes]) -> Codes:
    centred = inputs[0].astype(np.int32) - op.x.zero_point
    total = centred.sum((2, 3), keepdims=True, dtype=np.int32)
    zero, lo, hi = op.grid.zero_point, op.lo, op.hi
    return numerics.average(total, op.x.scale, op.grid.scale, op.count, zero, lo, hi)


def _lookup(op: Lookup, inputs: list[Codes]) -> Codes:
    return op.table[inputs[0]]


def _island(op: Island, inputs: list[Codes]) -> Codes:
    # Networks without islands need no ONNX Runtime here.
    from runtimes.islands import run_island

    return run_island(op, inputs)


def _max_pool(op: MaxPool, inputs: list[Codes]) -> Codes:
    top, left, bottom, right = op.pads
    border = ((0, 0), (0, 0), (top, bottom), (left, right))
    padded = np.pad(inputs[0], border, constant_values=0)
    windows = sliding_window_view(padded, op.kernel, axis=(2, 3))
    (sy, sx) = op.strides
    result: Codes = windows[:, :, ::sy, ::sx].max((4, 5))
    return result


def _reshape(op: Reshape, inputs: list[Codes]) -> Codes:
    return inputs[0].reshape(len(inputs[0]), *op.shape)


def _transpose(op: Transpose, inputs: list[Codes]) -> Codes:
    return inputs[0].transpose(op.perm)


def _concat(op: Concat, inputs: list[Codes]) -> Codes:
    return np.concatenate(inputs, op.axis)


def _slice(op: Slice, inputs: list[Codes]) -> Codes:
    ends = (a + n * s for a, n, s in zip(op.starts, op.shape, op.steps, strict=True))
    bounds = zip(op.starts, ends, op.steps, strict=True)
    return inputs[0][:, *(slice(*bound) for bound in bounds)]


def _pad(op: Pad, inputs: list[Codes]) -> Codes:
    sizes = zip(op.before, op.shape, inputs[0].shape[1:], strict=True)
    widths = [(before, total - size - before) for before, total, size in sizes]
    return np.pad(inputs[0], [(0, 0), *widths], constant_values=op.code)


def _upsample(op: Upsample, inputs: list[Codes]) -> Codes:
    x = inputs[0]
    for axis, factor in enumerate(op.factors, 1):
        x = x.repeat(factor, axis)
    return x


OPERATORS: dict[type[Op], Callable[[Any, list[Any]], Any]] = {
    Quantize: _quantize, Conv: _conv, Gemm: _gemm, FloatGemm: _float_gemm, Add: _add,
    Mul: _mul, Average: _average, Lookup: _lookup, Island: _island, MaxPool: _max_pool,
    Reshape: _reshape, Transpose: _transpose, Concat: _concat, Slice: _slice, Pad: _pad,
    Upsample: _upsample,
}  # fmt: skip
