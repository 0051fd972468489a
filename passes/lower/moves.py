"""Data movement, float or on codes: ``move(DQ(q))`` -> ``DQ(move(q))``."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from passes.lower.integer_builder import IntegerBuilder, Quantized
from qtool.core.dialect import constant, moves
from qtool.core.errors import UnsupportedError
from qtool.core.grids import FULL, Window

ALIASES = ("Identity", "Dropout")
MOVES = (*moves.MOVES, *ALIASES)


def is_move(node: ir.Node | None) -> bool:
    """True for a node that copies values, or takes their maximum."""
    return node is not None and not node.domain and node.op_type in MOVES


def has_integer_form(move: ir.Node) -> bool:
    """True when `lower_move` accepts the form of a movement; a linear Resize computes."""
    if move.op_type in ALIASES:
        return True
    try:
        moves.read(move)
    except UnsupportedError:
        return False
    fill = constant(move.inputs[2]) if move.op_type == "Pad" and len(move.inputs) > 2 else None
    return fill is None or not np.any(fill)


def sources(node: ir.Node) -> list[ir.Value]:
    """Return the activations that a move reads."""
    values = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [value for value in values if value is not None]


def lower_move(
    build: IntegerBuilder, node: ir.Node, xs: Sequence[Quantized], name: str
) -> Quantized:
    """Return the result of the same movement on codes.

    Raises:
        UnsupportedError: the inputs are on different grids, or a form the dialect lacks.
    """
    x = xs[0]
    if node.op_type in ALIASES:
        return x
    if any(other.grid != x.grid for other in xs[1:]):
        raise UnsupportedError(f"tensor {name}: {node.op_type} of tensors on different grids")
    name = build.unique(name)
    constants = [_operand(build, node, i, x) for i in range(len(xs), len(node.inputs))]
    if node.op_type == "Pad" and len(constants) < 2:  # by default with 0: the zero point
        constants.append(build.constant(np.uint8(x.grid.zero_point), f"z{x.grid.zero_point}"))
    kept = list(node.attributes.values())
    new = ir.Node("", node.op_type, [*(q.value for q in xs), *constants], kept, name=name)
    result = new.outputs[0]
    result.name, result.shape = name, node.outputs[0].shape
    result.type = ir.TensorType(ir.DataType.UINT8)
    moves.read(new)
    build.nodes.append(new)
    return Quantized(result, x.grid, max(q.bits for q in xs), _window(node, xs))


def _window(node: ir.Node, xs: Sequence[Quantized]) -> Window:
    """Return the window of a movement's result; Pad may bring a code from outside."""
    if node.op_type == "Pad":
        return FULL
    lo, hi = min(x.window.lo for x in xs), max(x.window.hi for x in xs)
    return Window(xs[0].window.zero_point, lo, hi)


def _operand(
    build: IntegerBuilder, node: ir.Node, index: int, x: Quantized
) -> ir.Value | None:
    """Return a constant operand; the value of Pad as a code."""
    value = node.inputs[index]
    if value is None:
        return None
    array = constant(value)
    if array is None:
        raise UnsupportedError(
            f"node {node.name}: {node.op_type} with operands computed at run time"
        )
    if node.op_type == "Pad" and index == 2:
        if array.dtype.kind == "f" and np.any(array):
            raise UnsupportedError(f"node {node.name}: Pad with {array}; 0 is supported")
        code = np.uint8(x.grid.zero_point) if array.dtype.kind == "f" else array
        return build.constant(code, f"z{int(code)}")
    return build.constant(array, f"{value.name}")
