"""What both ONNX flavours share: packed weights, metadata, versions."""

import json
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph import drop_unused_constants
from passes.packing import pack, required_versions
from qtool.dialect import ACTIVATION_BITS_KEY, BITS_KEY, MS, WEIGHT_BITS_KEY, constant

Bits = dict[str, list[int]]


def pack_weights(graph: ir.Graph) -> Bits:
    """Store every weight in as few bits as it has; return {layer: [weight, activation]}."""
    bits: Bits = {}
    for node in list(graph):
        if node.op_type not in ("QLinearConv", "QGemm"):
            continue
        codes, props, name = constant(node.inputs[3]), node.metadata_props, str(node.name)
        if codes is None:
            continue
        width = code_width(codes)
        if WEIGHT_BITS_KEY in props:
            bits[name] = [int(props[WEIGHT_BITS_KEY]), int(props[ACTIVATION_BITS_KEY])]
            width = bits[name][0] if holds(codes, bits[name][0]) else width
        if width < 8:
            node.replace_input_with(3, pack(graph, node, f"{name}.w{width}", codes, width))
    return bits


def holds(codes: NDArray[np.int8], bits: int) -> bool:
    """True when `bits` bits hold the codes: two's complement, or all odd (+-1, DoReFa's).

    A channel that BatchNorm turned off has the code 0, and one that it flipped may have
    2^(b-1): those layers take a bit more in the file.
    """
    odd = bool(np.all(codes & 1)) and int(np.abs(codes.astype(np.int16)).max(initial=0))
    return code_width(codes) <= bits or 0 < odd < 1 << bits


def code_width(codes: NDArray[np.int8]) -> int:
    """Return the smallest signed width that holds `codes`."""
    top, bottom = int(codes.max(initial=0)), int(~codes.min(initial=0))
    return max(top.bit_length(), bottom.bit_length()) + 1


def finish(
    graph: ir.Graph, bits: Bits, metadata: Mapping[str, str], operator_form: bool
) -> ir.Model:
    """Return the model of `graph`, with metadata and the lowest versions that it needs."""
    drop_unused_constants(graph)
    opset, ir_version = required_versions(graph)
    for node in graph:
        _strip(node)
    # ONNX Runtime refuses newer IR versions than it knows.
    model = ir.Model(graph, ir_version=ir_version, producer_name="qtool")
    model.graph.opset_imports.clear()
    model.opset_imports[""] = opset
    if operator_form:
        model.opset_imports[MS] = 1
    model.metadata_props.update(metadata)
    model.metadata_props[BITS_KEY] = json.dumps(bits, separators=(",", ":"))
    return model


def _strip(node: ir.Node) -> None:
    """Drop what the file can do without: shape inference and the tensor names say it again."""
    node.metadata_props.clear()
    node.name = None
    for value in node.outputs:
        if not value.is_graph_output():
            value.shape = value.type = None
