"""What both ONNX flavours share: packed weights, metadata, versions."""

import json
from collections.abc import Mapping

import onnx_ir as ir

from passes.graph import drop_unused_constants
from passes.packing.packing import code_width, pack, required_versions, stored_width
from qtool.core.dialect import (
    ACTIVATION_BITS_KEY,
    BITS_KEY,
    ISLAND_KEY,
    ISLANDS_KEY,
    MS,
    WEIGHT_BITS_KEY,
    constant,
)

Bits = dict[str, list[int]]


def pack_weights(graph: ir.Graph) -> Bits:
    """Store every weight in as few bits as it has; return {layer: [weight, activation]}."""
    bits: Bits = {}
    for node in list(graph):
        if ISLAND_KEY in node.metadata_props and WEIGHT_BITS_KEY in node.metadata_props:
            bits[node.metadata_props[ISLAND_KEY]] = _bits(node)
        if node.op_type not in ("QLinearConv", "QGemm"):
            continue
        codes, props, name = constant(node.inputs[3]), node.metadata_props, str(node.name)
        if codes is None:
            continue
        width = code_width(codes)
        if WEIGHT_BITS_KEY in props:
            bits[name] = _bits(node)
            width = stored_width(codes, bits[name][0])
        if width < 8:
            node.replace_input_with(3, pack(graph, node, f"{name}.w{width}", codes, width))
    return bits


def _bits(node: ir.Node) -> list[int]:
    return [int(node.metadata_props[key]) for key in (WEIGHT_BITS_KEY, ACTIVATION_BITS_KEY)]


def finish(
    graph: ir.Graph, bits: Bits, metadata: Mapping[str, str], operator_form: bool
) -> ir.Model:
    """Return the model of `graph`, with metadata and the lowest versions that it needs."""
    drop_unused_constants(graph)
    opset, ir_version = required_versions(graph)
    islands = list(
        dict.fromkeys(
            n.metadata_props[ISLAND_KEY] for n in graph if ISLAND_KEY in n.metadata_props
        )
    )
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
    if islands:
        model.metadata_props[ISLANDS_KEY] = json.dumps(islands, separators=(",", ":"))
    return model


def _strip(node: ir.Node) -> None:
    """Drop what the file can do without: shape inference and the tensor names say it again.

    Not so for float islands, whose shape arithmetic no inference sees through.
    """
    is_inside = ISLAND_KEY in node.metadata_props
    node.metadata_props.clear()
    node.name = None
    for value in node.outputs:
        if not value.is_graph_output() and not is_inside:
            value.shape = value.type = None
