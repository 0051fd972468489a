"""The operators of the integer dialect as types.

Suffixes: w_OIHW = (outputs, inputs / groups, kernel height, kernel width), w_OI =
    (outputs, inputs). Shapes leave out the batch dimension.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtool.core.cost import LayerCost, conv_macs
from qtool.core.selection import LayerBits


@dataclass(frozen=True)
class Grid:
    """Affine uint8 grid: value = (code - zero_point) * scale."""

    scale: np.float32
    zero_point: int


@dataclass(frozen=True)
class Op:
    """An operator with one integer result.

    Args:
        name: layer or tensor it belongs to.
        output: name of its result tensor.
        inputs: names of the activation tensors it reads.
        grid: grid of the result, as its producer states it.
        lo, hi: window of the result's codes.
        shape: result shape without the batch dimension.
    """

    name: str
    output: str
    inputs: tuple[str, ...]
    grid: Grid
    lo: int
    hi: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Quantize(Op):
    """Float input to codes."""


@dataclass(frozen=True)
class Conv(Op):
    """Convolution; pads (top, left, bottom, right) are filled with the input's zero point.

    `bits` is None where it stands for an average pool or a per-channel affine, which no one
    counts as a layer.
    """

    x: Grid
    w_OIHW: NDArray[np.int8]
    w_scale: NDArray[np.float32]
    bias: NDArray[np.int32]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    groups: int
    bits: LayerBits | None


@dataclass(frozen=True)
class Gemm(Op):
    """Linear layer."""

    x: Grid
    w_OI: NDArray[np.int8]
    w_scale: NDArray[np.float32]
    bias: NDArray[np.int32]
    bits: LayerBits | None


@dataclass(frozen=True)
class FloatGemm(Gemm):
    """Linear layer with a float result, the model's output: ``f32(acc) * (xs * ws)``.

    Its grid has scale 1, so that the factor is the one of any layer.
    """


@dataclass(frozen=True)
class Add(Op):
    """Sum of two tensors of one shape."""

    a: Grid
    b: Grid


@dataclass(frozen=True)
class Mul(Op):
    """Product of two tensors; dimensions of size 1 are broadcast."""

    a: Grid
    b: Grid


@dataclass(frozen=True)
class Average(Op):
    """Global average over height and width, (N, C, H, W) -> (N, C, 1, 1)."""

    x: Grid
    count: int


@dataclass(frozen=True)
class Lookup(Op):
    """Any function of one tensor: ``table[code]``, 256 answers inside the window."""

    table: NDArray[np.uint8]


@dataclass(frozen=True)
class Island(Op):
    """Floating point between grids: DequantizeLinear of each input, `body`, QuantizeLinear.

    Args:
        x: grid of each input; None where it is the model's float input itself.
        body: a serialised ONNX model, inputs ``x0, x1, ...``, result ``y`` (float32).
        operators: types of its nodes that compute at run time.
        layers: its convolutions and linear layers.
        weight_bytes: of these layers' weights as stored.
    """

    x: tuple[Grid | None, ...]
    body: bytes
    operators: tuple[str, ...]
    layers: tuple[LayerCost, ...]
    weight_bytes: int


@dataclass(frozen=True)
class MaxPool(Op):
    """Maximum over windows; pads never win."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]


@dataclass(frozen=True)
class Reshape(Op):
    """The same codes in the same order, in `shape`."""


@dataclass(frozen=True)
class Transpose(Op):
    """Axes permuted; `perm` counts the batch, which stays first."""

    perm: tuple[int, ...]


@dataclass(frozen=True)
class Concat(Op):
    """Tensors of one grid one after another along `axis` (the batch is axis 0)."""

    axis: int


@dataclass(frozen=True)
class Slice(Op):
    """Every `steps`-th code from `starts` on; one entry a dimension, without the batch."""

    starts: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Pad(Op):
    """Borders filled with `code`; `before` has one entry a dimension, without the batch."""

    before: tuple[int, ...]
    code: int


@dataclass(frozen=True)
class Upsample(Op):
    """Nearest neighbour: every code `factors` times along each dimension but the batch."""

    factors: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """Operators in execution order, from one input to one float output.

    Args:
        input_name, input_shape: the input, shape without batch.
        input_kind: "float32", or "uint8" for pixels that are codes already.
        output_name: the float output, dequantized on `output_grid` from the tensor `output`,
            or the result of a FloatGemm.
        ops: operators.
        metadata: the model's metadata.
    """

    input_name: str
    input_shape: tuple[int, ...]
    input_kind: str
    output_name: str
    output: str
    output_grid: Grid
    ops: tuple[Op, ...]
    metadata: Mapping[str, str]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, the input among them."""
        return {self.input_name: self.input_shape} | {op.output: op.shape for op in self.ops}

    def tensors(self) -> list[str]:
        """Return the names of the integer tensors, in execution order."""
        return [op.output for op in self.ops if not isinstance(op, FloatGemm)]

    @property
    def float_output(self) -> bool:
        """True when the output is the float result of a linear layer, not dequantized."""
        return any(isinstance(op, FloatGemm) for op in self.ops)

    def layers(self) -> list[tuple[Conv | Gemm, LayerBits]]:
        """Return the integer convolutions and linear layers of the user's model, with bits."""
        found = (op for op in self.ops if isinstance(op, Conv | Gemm))
        return [(op, op.bits) for op in found if op.bits is not None]

    def layer_costs(self) -> list[LayerCost]:
        """Return MACs and bits of every convolution and linear layer, in islands too."""
        costs: list[LayerCost] = []
        for op in self.ops:
            if isinstance(op, Island):
                costs += op.layers
            elif isinstance(op, Conv | Gemm) and op.bits is not None:
                macs = conv_macs((1, *op.shape), weight_of(op).shape)
                costs.append(LayerCost(op.name, macs, op.bits))
        return costs

    def islands(self) -> list[Island]:
        """Return what runs in floating point."""
        return [op for op in self.ops if isinstance(op, Island)]

    def digest(self) -> str:
        """Return a hash of what determines the outputs; equal for twin artifacts."""
        state = hashlib.sha256(repr((self.input_kind, self.output, self.output_grid)).encode())
        for op in self.ops:
            state.update(type(op).__name__.encode())
            for item in dataclasses.fields(op):
                value = getattr(op, item.name)
                state.update(item.name.encode())
                state.update(_content(value))
        return state.hexdigest()[:16]


def _content(value: object) -> bytes:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return value if isinstance(value, bytes) else repr(value).encode()


def weight_of(op: Conv | Gemm) -> NDArray[np.int8]:
    """Return the weight codes."""
    return op.w_OIHW if isinstance(op, Conv) else op.w_OI
