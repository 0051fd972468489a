"""What passes require and ensure of a graph: a violation is a mistake of qtool's own.

A condition yields a sentence for each node that breaks it, which names the node; none where it
holds. `require` and `ensure` make onnx-ir's errors of the first one, naming the pass.
"""

from collections.abc import Iterable, Iterator

import onnx_ir as ir
from onnx_ir.passes import PassBase, PostconditionError, PreconditionError

from passes.graph import LAYER_KEY, QTOOL, operand
from qtool.core.dialect import ISLAND_KEY, MS, NODE_TYPES, WEIGHT_BITS_KEY, constant


def require(owner: PassBase, broken: Iterable[str]) -> None:
    """Raise `PreconditionError` for the first sentence of `broken`."""
    for text in broken:
        raise PreconditionError(f"{type(owner).__name__} cannot run: {text}")


def ensure(owner: PassBase, broken: Iterable[str]) -> None:
    """Raise `PostconditionError` for the first sentence of `broken`."""
    for text in broken:
        raise PostconditionError(f"{type(owner).__name__} broke its promise: {text}")


def several_widths(model: ir.Model, role: str = "") -> Iterator[str]:
    """Every FakeQuant has one bit-width, one row of steps and at most one zero point.

    Args:
        model: the graph.
        role: of the FakeQuants that are meant; "" for all.
    """
    for name, own, node in _quantizers(model):
        if role not in ("", own):
            continue
        steps = ir.convenience.get_const_tensor(operand(node, 1))
        bits, zero_points = (
            node.attributes.get_ints(kind, ()) for kind in ("bits", "zero_points")
        )
        rows = 0 if steps is None else steps.shape[0]
        counts = (len(bits), rows, max(len(zero_points), 1))
        if counts != (1, 1, 1):
            yield (
                f"FakeQuant {name} has {counts[0]} bit-widths, {counts[1]} steps and "
                f"{counts[2]} zero points; one of each is resolved"
            )


def unpicked_rows(model: ir.Model) -> Iterator[str]:
    """No norm or bias has rows to choose from."""
    for node in model.graph:
        if node.op_type == "Norm" and node.domain == QTOOL:
            yield f"Norm {node.attributes.get_string('name', '')} still has all its rows"


def unfrozen_weights(model: ir.Model) -> Iterator[str]:
    """No weight is quantized at run time."""
    for name, role, _ in _quantizers(model):
        if role == "weight":
            yield f"FakeQuant {name} still quantizes a weight; it is no code yet"


def _quantizers(model: ir.Model) -> Iterator[tuple[str, str, ir.Node]]:
    """Yield name, role and node of every FakeQuant; cheaper than its whole view."""
    for node in model.graph:
        if node.op_type == "FakeQuant" and node.domain == QTOOL:
            attributes = node.attributes
            yield attributes.get_string("name", ""), attributes.get_string("role", ""), node


def broken_codes(model: ir.Model) -> Iterator[str]:
    """Every layer's weight is int8 codes with the layer's name and bits."""
    for node in model.graph:
        props = node.metadata_props
        if node.op_type != "DequantizeLinear" or LAYER_KEY not in props:
            continue
        codes = constant(node.inputs[0])
        kind = "computed" if codes is None else str(codes.dtype)
        bits = props.get(WEIGHT_BITS_KEY, "missing")
        if kind != "int8" or bits == "missing":
            yield f"layer {props[LAYER_KEY]}: weight is {kind}, bits {bits}"


def foreign_nodes(model: ir.Model) -> Iterator[str]:
    """Every node is of the integer dialect, or in a float island; shapes and types known."""
    for node in model.graph:
        if ISLAND_KEY in node.metadata_props:
            continue
        if node.op_type not in NODE_TYPES or node.domain not in ("", MS):
            yield f"node {node.name} ({node.op_type}) is not of the integer dialect"
        for value in node.outputs:
            dims = [None] if value.shape is None else list(value.shape)[1:]
            if value.dtype is None or not all(isinstance(n, int) for n in dims):
                yield f"node {node.name} ({node.op_type}): {value.name} has no shape or type"
