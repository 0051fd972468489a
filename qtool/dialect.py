"""The integer dialect as typed operators: what passes emit and runtimes execute.

On disk and between passes the dialect is an `onnx_ir.Model` of standard operators
(QuantizeLinear, QLinearConv, com.microsoft QLinearAdd, ...; see README, "The integer
dialect"). `read_program` turns such a graph into a list of the operators below, each with its
constants as numpy arrays and with the b-bit clip that follows it folded into its output
window.

Suffixes: w_OIHW = (outputs, inputs / groups, kernel height, kernel width), w_OI =
    (outputs, inputs).
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtool.cost import LayerCost, conv_macs
from qtool.errors import UnsupportedError
from qtool.qspec import LayerBits

MS = "com.microsoft"
WEIGHT_BITS_KEY = "qtool.weight_bits"
ACTIVATION_BITS_KEY = "qtool.activation_bits"


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
        grid: grid of the result.
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
    """Convolution; pads (top, left, bottom, right) are filled with the input's zero point."""

    x: Grid
    w_OIHW: NDArray[np.int8]
    w_scale: NDArray[np.float32]
    bias: NDArray[np.int32]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    groups: int
    bits: LayerBits


@dataclass(frozen=True)
class Gemm(Op):
    """Linear layer."""

    x: Grid
    w_OI: NDArray[np.int8]
    w_scale: NDArray[np.float32]
    bias: NDArray[np.int32]
    bits: LayerBits


@dataclass(frozen=True)
class Add(Op):
    """Sum of two tensors of one shape."""

    a: Grid
    b: Grid


@dataclass(frozen=True)
class Average(Op):
    """Global average over height and width, (N, C, H, W) -> (N, C, 1, 1)."""

    x: Grid
    count: int


@dataclass(frozen=True)
class Rescale(Op):
    """The same values on another grid."""

    x: Grid


@dataclass(frozen=True)
class Flatten(Op):
    """(N, C, H, W) -> (N, C * H * W)."""


@dataclass(frozen=True)
class MaxPool(Op):
    """Maximum over windows; pads never win."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]


@dataclass(frozen=True)
class Program:
    """Operators in execution order, from one float input to one float output.

    Args:
        input_name, input_shape: the float input, shape without batch.
        output_name: the float output, dequantized from the last tensor in `output`.
        output: name of the integer tensor that the output dequantizes.
        ops: operators.
        metadata: the model's metadata.
    """

    input_name: str
    input_shape: tuple[int, ...]
    output_name: str
    output: str
    ops: tuple[Op, ...]
    metadata: Mapping[str, str]

    @property
    def output_grid(self) -> Grid:
        """Grid of the output codes."""
        return next(op.grid for op in self.ops if op.output == self.output)

    def layer_costs(self) -> list[LayerCost]:
        """Return MACs and bits of every convolution and linear layer."""
        return [
            LayerCost(op.name, conv_macs((1, *op.shape), _weight(op).shape), op.bits)
            for op in self.ops
            if isinstance(op, Conv | Gemm)
        ]

    def digest(self) -> str:
        """Return a hash of what determines the outputs; equal for twin artifacts."""
        state = hashlib.sha256()
        for op in self.ops:
            for item in dataclasses.fields(op):
                value = getattr(op, item.name)
                is_array = isinstance(value, np.ndarray)
                state.update(item.name.encode())
                state.update(value.tobytes() if is_array else repr(value).encode())
        return state.hexdigest()[:16]

    def weight_bytes(self) -> int:
        """Bytes of all weights, packed at 4 bits where 4 or fewer are used, else at 8."""
        layers = [op for op in self.ops if isinstance(op, Conv | Gemm)]
        return sum(
            (_weight(op).size * container_bits(op.bits.weight) + 7) // 8 for op in layers
        )


def _weight(op: Conv | Gemm) -> NDArray[np.int8]:
    return op.w_OIHW if isinstance(op, Conv) else op.w_OI


def container_bits(bits: int) -> int:
    """Bits per weight on disk: INT4 holds 2 to 4 bits, INT8 the others."""
    return 4 if bits <= 4 else 8


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the array of an initializer or Constant node, None if `value` is computed."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None, what: str) -> Any:
    """Return a constant of one element as a numpy scalar."""
    array = constant(value)
    if array is None or array.size != 1:
        raise UnsupportedError(f"{what}: expected a constant scalar")
    return array.reshape(())[()]


def read_program(model: ir.Model) -> Program:
    """Return the typed operators of a dialect graph.

    Raises:
        UnsupportedError: a node is not of the dialect; names it.
    """
    return _Reader(model).read()


class _Reader:
    """Reads nodes one by one; a Clip narrows the operator before it."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.ops: dict[str, Op] = {}

    def read(self) -> Program:
        graph = self.model.graph
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise UnsupportedError(
                f"graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; "
                "one of each is supported"
            )
        source, sink = graph.inputs[0], graph.outputs[0]
        final = sink.producer()
        if final is None or final.op_type != "DequantizeLinear":
            raise UnsupportedError("the graph's output is not dequantized from integers")
        for node in graph:
            if node is not final:
                self._read_node(node)
        self._require_inputs(final)
        output = self.ops.get(_name(final.inputs[0]))
        if output is None or output.grid != self._grid(final, 1):
            raise UnsupportedError("the graph's output is dequantized on another grid")
        return Program(
            str(source.name), static_shape(source), str(sink.name), _name(final.inputs[0]),
            tuple(self.ops.values()), dict(self.model.metadata_props),
        )  # fmt: skip

    def _read_node(self, node: ir.Node) -> None:
        if node.op_type == "Clip":
            self._require_inputs(node)
            self._narrow(node)
            return
        readers = {
            "QuantizeLinear": self._quantize, "QLinearConv": self._conv, "QGemm": self._gemm,
            "QLinearAdd": self._add, "QLinearGlobalAveragePool": self._average,
            "QLinearLeakyRelu": self._rescale, "Flatten": self._flatten,
            "MaxPool": self._max_pool,
        }  # fmt: skip
        self._require_inputs(node)
        reader = readers.get(node.op_type)
        if reader is None:
            raise UnsupportedError(
                f"node {node.name}: {node.op_type} is not in the integer dialect"
            )
        op = reader(node)
        self.ops[op.output] = op

    def _require_inputs(self, node: ir.Node) -> None:
        needed = _INPUTS.get(node.op_type, 1)
        if len(node.inputs) < needed:
            raise UnsupportedError(
                f"node {node.name}: {node.op_type} with {len(node.inputs)} inputs; "
                f"{needed} are needed"
            )

    def _source(self, node: ir.Node) -> Op:
        """Return the operator whose codes `node` moves or clips."""
        name = _name(node.inputs[0])
        if name not in self.ops:
            raise UnsupportedError(f"node {node.name}: no operator computes its input {name}")
        return self.ops[name]

    def _narrow(self, node: ir.Node) -> None:
        lo, hi = (int(scalar(value, f"{node.name}: bound")) for value in node.inputs[1:])
        op = self._source(node)
        del self.ops[op.output]
        self.ops[_name(node.outputs[0])] = dataclasses.replace(
            op, output=_name(node.outputs[0]), lo=max(lo, op.lo), hi=min(hi, op.hi)
        )

    def _common(self, node: ir.Node, inputs: tuple[int, ...], grid: Grid) -> dict[str, Any]:
        return {
            "name": str(node.name), "output": _name(node.outputs[0]),
            "inputs": tuple(_name(node.inputs[i]) for i in inputs), "grid": grid,
            "lo": 0, "hi": 255, "shape": static_shape(node.outputs[0]),
        }  # fmt: skip

    def _grid(self, node: ir.Node, index: int) -> Grid:
        scale = scalar(node.inputs[index], f"node {node.name}: scale")
        zero_point = scalar(node.inputs[index + 1], f"node {node.name}: zero point")
        if zero_point.dtype != np.uint8:
            raise UnsupportedError(
                f"node {node.name}: {zero_point.dtype} activations; uint8 is supported"
            )
        return Grid(np.float32(scale), int(zero_point))

    def _quantize(self, node: ir.Node) -> Op:
        return Quantize(**self._common(node, (0,), self._grid(node, 1)))

    def _layer(self, node: ir.Node, x: int, w: int, bias: int, y: int) -> dict[str, Any]:
        weight, scale = constant(node.inputs[w]), constant(node.inputs[w + 1])
        offset = constant(node.inputs[bias])
        if weight is None or scale is None or offset is None:
            raise UnsupportedError(
                f"node {node.name}: weight, scale and bias must be constants"
            )
        zero = constant(node.inputs[w + 2])
        if zero is None or np.any(zero):
            raise UnsupportedError(f"node {node.name}: weights must have zero point 0")
        bits = _layer_bits(node)
        return self._common(node, (x,), self._grid(node, y)) | {
            "x": self._grid(node, x + 1), "w_scale": scale.astype(np.float32).reshape(-1),
            "bias": offset.astype(np.int32), "bits": bits,
            "w": weight.astype(np.int8),
        }  # fmt: skip

    def _conv(self, node: ir.Node) -> Op:
        require_plain(node, f"node {node.name}")
        fields = self._layer(node, 0, 3, 8, 6)
        weight = fields.pop("w")
        spatial = weight.ndim - 2
        if spatial != 2:
            raise UnsupportedError(
                f"layer {node.name}: {spatial}-D convolution; 2-D is supported"
            )
        return Conv(
            **fields, w_OIHW=weight,
            strides=ints(node, "strides", (1, 1)), pads=ints(node, "pads", (0, 0, 0, 0)),
            dilations=ints(node, "dilations", (1, 1)),
            groups=node.attributes.get_int("group", 1),
        )  # fmt: skip

    def _gemm(self, node: ir.Node) -> Op:
        require_plain(node, f"node {node.name}")
        fields = self._layer(node, 0, 3, 6, 7)
        weight = fields.pop("w")
        return Gemm(**fields, w_OI=weight)

    def _add(self, node: ir.Node) -> Op:
        common = self._common(node, (0, 3), self._grid(node, 6))
        return Add(**common, a=self._grid(node, 1), b=self._grid(node, 4))

    def _average(self, node: ir.Node) -> Op:
        require_plain(node, f"node {node.name}")
        _, height, width = static_shape(node.inputs[0])
        common = self._common(node, (0,), self._grid(node, 3))
        return Average(**common, x=self._grid(node, 1), count=height * width)

    def _rescale(self, node: ir.Node) -> Op:
        if node.attributes.get_float("alpha", 0.01) != 1.0:
            raise UnsupportedError(
                f"node {node.name}: QLinearLeakyRelu is a Rescale at alpha 1 only"
            )
        return Rescale(**self._common(node, (0,), self._grid(node, 3)), x=self._grid(node, 1))

    def _flatten(self, node: ir.Node) -> Op:
        require_plain(node, f"node {node.name}")
        return Flatten(**self._moved(node))

    def _max_pool(self, node: ir.Node) -> Op:
        require_plain(node, f"node {node.name}")
        return MaxPool(
            **self._moved(node), kernel=ints(node, "kernel_shape", ()),
            strides=ints(node, "strides", (1, 1)), pads=ints(node, "pads", (0, 0, 0, 0)),
        )  # fmt: skip

    def _moved(self, node: ir.Node) -> dict[str, Any]:
        source = self._source(node)
        return self._common(node, (0,), source.grid) | {"lo": source.lo, "hi": source.hi}


def _layer_bits(node: ir.Node) -> LayerBits:
    keys = (WEIGHT_BITS_KEY, ACTIVATION_BITS_KEY)
    weight, activation = (node.metadata_props.get(key, "none") for key in keys)
    if not {weight, activation} <= set("12345678"):
        found = f"{weight} and {activation}"[:40]
        raise UnsupportedError(f"layer {node.name}: bits {found}; 1 to 8 are supported")
    return LayerBits(int(weight), int(activation))


# Inputs that the reader takes by position; ONNX leaves some of them optional.
_INPUTS = {
    "Clip": 3, "QuantizeLinear": 3, "DequantizeLinear": 3, "QLinearConv": 9, "QGemm": 9,
    "QLinearAdd": 8, "QLinearGlobalAveragePool": 5, "QLinearLeakyRelu": 5,
}  # fmt: skip

# Attributes that change what an operator computes, and the only value the dialect knows.
_PLAIN = {
    "auto_pad": "NOTSET", "ceil_mode": 0, "storage_order": 0, "alpha": 1.0, "beta": 1.0,
    "transA": 0, "transB": 1, "channels_last": 0, "axis": 1,
}  # fmt: skip


def require_plain(node: ir.Node, where: str) -> None:
    """Refuse a MaxPool, Conv or Gemm whose attributes ask for more than the dialect has."""
    for name, attribute in node.attributes.items():
        got = attribute.value
        if name in _PLAIN and got != _PLAIN[name]:
            raise UnsupportedError(
                f"{where}: {node.op_type} with {name} {got}; {_PLAIN[name]} is supported"
            )
    if node.op_type in ("Gemm", "QGemm") and "transB" not in node.attributes:
        raise UnsupportedError(f"{where}: {node.op_type} with transB 0; 1 is supported")
    if node.op_type == "MaxPool" and set(ints(node, "dilations", (1,))) != {1}:
        raise UnsupportedError(f"{where}: dilated MaxPool; dilation 1 is supported")


def ints(node: ir.Node, name: str, default: tuple[int, ...]) -> Any:
    """Return an INTS attribute as a tuple."""
    return tuple(node.attributes.get_ints(name, default))


def static_shape(value: ir.Value | None) -> tuple[int, ...]:
    """Return the shape of `value` without its batch dimension.

    Raises:
        UnsupportedError: unknown or symbolic dimensions other than the batch.
    """
    shape = value.shape if value is not None else None
    if shape is None or any(not isinstance(n, int) for n in list(shape)[1:]):
        raise UnsupportedError(f"tensor {_name(value)}: shape {shape} is not static")
    return tuple(int(n) for n in list(shape)[1:])  # type: ignore[arg-type]


def _name(value: ir.Value | None) -> str:
    return "?" if value is None or value.name is None else value.name
