"""Data movement, float or on codes: ``move(DQ(q))`` -> ``DQ(move(q))``."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from passes.lower.integer_builder import IntegerBuilder, Quantized
from qtool.core.dialect import constant, is_plain, label, moves, require_plain, scalar
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
        return is_plain(move)
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
    build: IntegerBuilder,
    node: ir.Node,
    xs: Sequence[Quantized],
    name: str,
    lift: int | None = None,
) -> Quantized:
    """Return the result of the same movement on codes.

    Args:
        build: gets the node.
        node: moves floats, or codes already.
        xs: what it moves.
        name: of the result.
        lift: how far codes that it moves already have been lifted to become uint8; None for
            floats. Pad fills up with 0 of one or the other.

    Raises:
        UnsupportedError: the inputs are on different grids, or a form the dialect lacks.
    """
    x = xs[0]
    require_plain(node)
    if node.op_type in ALIASES:
        return x
    if any(other.grid != x.grid for other in xs[1:]):
        raise UnsupportedError(f"tensor {name}: {node.op_type} of tensors on different grids")
    name = build.unique(name)
    indices = range(len(xs), 2 if node.op_type == "Pad" else len(node.inputs))
    constants = [_operand(build, node, index) for index in indices]
    if node.op_type == "Pad":
        constants.append(build.constant(np.uint8(code := _fill(node, x, lift)), f"z{code}"))
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


def _fill(node: ir.Node, x: Quantized, lift: int | None) -> int:
    """Return the code that Pad fills up with."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    what = f"{label(node)}: pad value"
    number = 0 if value is None else scalar(value, what)
    if lift is not None:
        return int(number) + lift
    if number != 0:
        raise UnsupportedError(f"{label(node)}: Pad with {number}; 0 is supported")
    return x.grid.zero_point


def _operand(build: IntegerBuilder, node: ir.Node, index: int) -> ir.Value | None:
    """Return a constant operand."""
    value = node.inputs[index]
    if value is None:
        return None
    array = constant(value)
    if array is None:
        raise UnsupportedError(
            f"{label(node)}: {node.op_type} with operands computed at run time"
        )
    return build.constant(array, f"{value.name}")
