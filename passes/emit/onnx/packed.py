"""What both ONNX flavours share: packed weights, metadata, versions."""

import json
from collections.abc import Mapping

import onnx_ir as ir

from passes.graph import drop_unused_constants
from passes.packing.nesting import Nested, Width, place
from passes.packing.packing import code_width, required_versions, stored_width
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


def pack_weights(graph: ir.Graph, nested: Mapping[str, Nested]) -> Bits:
    """Store every weight in as few bits as it has; return {layer: [weight, activation]}.

    Args:
        graph: of the dialect, rewritten in place.
        nested: how weights are held that several files share, by layer.
    """
    bits: Bits = {}
    for node in list(graph):
        if ISLAND_KEY in node.metadata_props and WEIGHT_BITS_KEY in node.metadata_props:
            bits[node.metadata_props[ISLAND_KEY]] = _bits(node)
        elif (width := weight_width(node)) is not None:
            name = str(node.name)
            if WEIGHT_BITS_KEY in node.metadata_props:
                bits[name] = _bits(node)
            held = nested.get(name, width.alone)
            if held.bits < 8 or held.table is not None:
                stored = f"{name}.w{held.bits}"
                node.replace_input_with(3, place(graph, node, stored, held))
    return bits


def weight_width(node: ir.Node) -> Width | None:
    """Return the codes of a layer and the bits that it has, None for other nodes."""
    codes = constant(node.inputs[3]) if node.op_type in ("QLinearConv", "QGemm") else None
    if codes is None:
        return None
    width = code_width(codes)
    if WEIGHT_BITS_KEY in node.metadata_props:
        width = _bits(node)[0]
    return Width(codes, stored_width(codes, width), width)


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
