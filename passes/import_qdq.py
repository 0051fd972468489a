"""ONNX in QDQ form -> integer dialect: what `passes.emit.onnx_qdq` wrote, read back.

``Clip(Q(op(DQ(x), ...)))`` -> the integer operator, exactly as runtimes fuse it:

1. Q of the graph input. 2. Q(Conv(DQ(x), DQ(W), DQ(b))) and Q(Gemm(...)). 3. Q(Add(DQ, DQ)).
4. Q(GlobalAveragePool(DQ)). 5. Q(LeakyRelu(DQ), alpha 1). 6. Flatten, MaxPool on codes.
7. DQ to the graph output. INT4 weights behind a Cast are unpacked.
Refuses any operator that would run in floating point, naming it; a bias whose scale is not
``xs * ws``; weights with a zero point.
"""

import json
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult

from passes.emit.onnx_qdq import BITS_KEY
from passes.graph import finish_dialect, operand
from passes.integer_builder import IntegerBuilder, Layer, Quantized, conv_attributes
from qtool.dialect import MS, Grid, constant, require_plain, scalar
from qtool.errors import UnsupportedError, UserError
from qtool.numerics import bias_scale
from qtool.qspec import Window

FULL = Window(0, 0, 255)


@dataclass(frozen=True)
class ImportQDQ(InPlacePass):
    """Fuse every DQ -> operator -> Q group into one integer operator."""

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        if MS in model.opset_imports or not any(
            n.op_type == "QuantizeLinear" for n in model.graph
        ):
            return PassResult(model, False)
        importer = _Importer(model)
        old = list(model.graph)
        finish_dialect(model, old, importer.run(old))
        return PassResult(model, True)


class _Importer:
    """Maps the file's uint8 tensors to the dialect's."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.build = IntegerBuilder(model.graph)
        self.bits = _read_bits(model)
        self.codes: dict[ir.Value, Quantized] = {}

    def run(self, nodes: list[ir.Node]) -> list[ir.Value]:
        for node in nodes:
            if node.op_type == "QuantizeLinear":
                self._quantize(node)
            elif node.op_type in ("Flatten", "MaxPool"):
                self._move(node)
        outputs = []
        for value in self.graph.outputs:
            final = value.producer()
            if final is None or final.op_type != "DequantizeLinear":
                raise UnsupportedError(f"output {value.name} is not dequantized from integers")
            outputs.append(self.build.dequantize(self._operand(final, 0, final), value))
        return outputs

    def _quantize(self, node: ir.Node) -> None:
        """Lower the group that ends in `node`."""
        result, window = _window(node)
        grid = _grid(node)
        name = str(result.name)
        value = self._core(node, grid, window, name)
        bits = (window.hi - window.lo).bit_length()
        self.codes[result] = self.codes[node.outputs[0]] = Quantized(value, grid, bits)

    def _core(self, node: ir.Node, grid: Grid, window: Window, name: str) -> ir.Value:
        source = operand(node, 0)
        if source.is_graph_input():
            return self.build.quantize(source, grid, window, name)
        core = source.producer()
        if core is None:
            raise UnsupportedError(f"node {node.name}: quantizes a constant at run time")
        like = core.outputs[0]
        if core.op_type in ("Conv", "Gemm"):
            require_plain(core, f"tensor {name}")
        if core.op_type == "Conv":
            x, kept = self._input(core, 0), conv_attributes(core)
            return self.build.conv(*self._layer(core, x, name), grid, window, like, kept)
        if core.op_type == "Gemm":
            x = self._input(core, 0)
            return self.build.gemm(*self._layer(core, x, name), grid, window, like)
        if core.op_type == "Add":
            a, b = self._input(core, 0), self._input(core, 1)
            return self.build.add(a, b, grid, window, like, name)
        if core.op_type == "GlobalAveragePool":
            return self.build.average(self._input(core, 0), grid, window, like, name)
        if core.op_type == "LeakyRelu" and core.attributes.get_float("alpha", 0.01) == 1.0:
            return self.build.rescale(self._input(core, 0), grid, window, like, name)
        raise UnsupportedError(
            f"tensor {name}: operator {core.op_type} would run in floating point"
        )

    def _input(self, core: ir.Node, index: int) -> Quantized:
        dequantize = operand(core, index).producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            raise UnsupportedError(
                f"{core.op_type} reads {operand(core, index).name} in floating point"
            )
        return self._operand(dequantize, 0, core)

    def _operand(self, dequantize: ir.Node, index: int, reader: ir.Node) -> Quantized:
        value = operand(dequantize, index)
        if value not in self.codes:
            raise UnsupportedError(
                f"{reader.op_type} reads {value.name}, which is not quantized"
            )
        found = self.codes[value]
        if found.grid != _grid(dequantize):
            raise UnsupportedError(
                f"tensor {value.name}: quantized on one grid, read on another"
            )
        return found

    def _layer(self, core: ir.Node, x: Quantized, name: str) -> tuple[Quantized, Layer]:
        codes, scale = _weight(core, name)
        bias = np.zeros(len(scale), np.float64)
        if len(core.inputs) > 2 and core.inputs[2] is not None:
            bias = _bias(core, x.grid.scale, scale, name)
        bits = self.bits.get(name, [_width(codes), x.bits])
        limit = 1 << (bits[0] - 1)
        if codes.size and (codes.min() < -limit or codes.max() >= limit):
            raise UserError(
                f"layer {name}: weights exceed the {bits[0]} bits that the file states"
            )
        marked = Quantized(x.value, x.grid, bits[1])
        return marked, Layer(name, codes, scale, bias, bits[0])

    def _move(self, node: ir.Node) -> None:
        x = self.codes.get(operand(node, 0))
        if x is None:
            raise UnsupportedError(f"{node.op_type} works in floating point")
        value = self.build.move(node, x, str(node.outputs[0].name))
        self.codes[node.outputs[0]] = Quantized(value, x.grid, x.bits)


def _window(node: ir.Node) -> tuple[ir.Value, Window]:
    """Return the tensor behind Q and its clip, and the window."""
    result = node.outputs[0]
    users = [usage.node for usage in result.uses()]
    if len(users) == 1 and users[0].op_type == "Clip":
        clip = users[0]
        bounds = (operand(clip, 1), operand(clip, 2))
        lo, hi = (int(scalar(v, f"Clip behind {result.name}")) for v in bounds)
        return clip.outputs[0], Window(0, lo, hi)
    return result, FULL


def _grid(node: ir.Node) -> Grid:
    scale = scalar(node.inputs[1], f"scale of {node.outputs[0].name}")
    zero_point = scalar(operand(node, 2), f"zero point of {node.outputs[0].name}")
    if zero_point.dtype != np.uint8:
        raise UnsupportedError(
            f"tensor {node.inputs[0]}: {zero_point.dtype}; uint8 is supported"
        )
    return Grid(np.float32(scale), int(zero_point))


def _weight(core: ir.Node, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    dequantize = operand(core, 1).producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        raise UnsupportedError(f"layer {name}: {core.op_type} has float weights")
    source = operand(dequantize, 0)
    cast = source.producer()
    if cast is not None and cast.op_type == "Cast":
        source = operand(cast, 0)
    codes, scale = constant(source), constant(dequantize.inputs[1])
    zero = constant(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    if codes is None or scale is None or (zero is not None and np.any(zero)):
        raise UnsupportedError(f"layer {name}: weights must be constant with zero point 0")
    if codes.dtype not in (np.int8, ml_dtypes.int4, ml_dtypes.int2):
        raise UnsupportedError(f"layer {name}: {codes.dtype} weights; int8 is supported")
    spread = np.broadcast_to(scale.astype(np.float32), (codes.shape[0],))
    return codes.astype(np.int8), np.ascontiguousarray(spread)


def _bias(
    core: ir.Node, x_scale: np.float32, w_scale: NDArray[np.float32], name: str
) -> NDArray[np.float64]:
    """Return the bias in real units, so that rounding it again gives the file's int32."""
    dequantize = operand(core, 2).producer()
    codes = None if dequantize is None else constant(dequantize.inputs[0])
    unit = None if dequantize is None else constant(dequantize.inputs[1])
    if codes is None or codes.dtype != np.int32 or unit is None:
        raise UnsupportedError(f"layer {name}: bias is not int32 behind DequantizeLinear")
    expected = bias_scale(x_scale, w_scale)
    if not np.array_equal(unit.reshape(-1), expected):
        raise UnsupportedError(f"layer {name}: bias scale is not input scale * weight scale")
    return codes.astype(np.float64) * expected.astype(np.float64)


def _width(codes: NDArray[Any]) -> int:
    """Smallest signed width that holds `codes`."""
    return (
        max(int(codes.max(initial=0)).bit_length(), int(~codes.min(initial=0)).bit_length())
        + 1
    )


def _read_bits(model: ir.Model) -> dict[str, list[int]]:
    text = model.metadata_props.get(BITS_KEY, "{}")
    try:
        value: dict[str, list[int]] = json.loads(text)
        if all(
            len(pair) == 2 and all(type(b) is int and 1 <= b <= 8 for b in pair)
            for pair in value.values()
        ):
            return value
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(f"the file's {BITS_KEY} metadata is damaged: {text[:60]!r}")
