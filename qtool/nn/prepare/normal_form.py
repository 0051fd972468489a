"""One spelling for each operator of a traced network, before quantizers are put into it.

1. ``x.mul_(g)``, ``x.relu()``, ``x.clamp(0, 6)``: the functions of the same meaning.
2. ``x.mean((2, 3))``: ``adaptive_avg_pool2d(x, 1)``, flattened where dimensions are dropped.
3. ``adaptive_avg_pool2d(x, n)``, n > 1: ``avg_pool2d`` with the window that divides x.
4. Hardswish, and ``x * relu6(x + 3) / 6``: ``x * hardsigmoid(x)``, whose gate has a grid.
   ``x * sigmoid(x)``: ``silu(x)``, one table.
5. ``relu(move(x))``: ``move(relu(x))``, so that the clamp joins the operator before it.
6. ``pad(x, p)``: the 0 it pads with is written out, since on codes it is the zero point.
7. ``x * gate.expand_as(x)``: ``x * gate``.
A nearest resize by something else than a whole factor is marked as one that computes.
Refuses adaptive pools whose size is unknown or does not divide their input's.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional

from qtool.core.errors import UnsupportedError
from qtool.nn.capture.operators import Kind, argument
from qtool.nn.prepare.graph_view import FLOAT, GraphView

Sizes = Callable[[fx.Node], tuple[int, ...] | None]
_METHODS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "add_": operator.add, "mul": operator.mul, "mul_": operator.mul,
    "relu": functional.relu, "relu_": functional.relu, "sigmoid": torch.sigmoid,
    "sigmoid_": torch.sigmoid,
}  # fmt: skip
_CLAMPS: tuple[Any, ...] = ("clamp", "clamp_", torch.clamp, torch.clamp_, "clip", torch.clip)
_SUMS: tuple[Any, ...] = (torch.add, torch.mul, torch.multiply)
_MEANS: tuple[Any, ...] = ("mean", torch.mean)
_RESIZES: tuple[Any, ...] = (functional.interpolate, functional.upsample)
_EXPANDS: tuple[Any, ...] = ("expand", "expand_as", torch.broadcast_to)


def normalise(view: GraphView, sizes: Sizes) -> None:
    """Rewrite the graph of `view` in place; `sizes` gives a node's result size if known."""
    refusals = []
    for node in view.nodes:
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        _rename(node)
        if not _expand(view, node, sizes):
            for rule in (_mean, _double_mean, _pad, _gate, _hardswish, _silu):
                if rule(view, node):
                    break
        _resize(view, node, sizes)
        try:
            _adaptive(view, node, sizes)
        except UnsupportedError as error:
            refusals.append(str(error))
    if refusals:
        raise UnsupportedError("; ".join(refusals))
    for node in view.nodes:
        _clamp_first(view, node)


def _become(node: fx.Node, function: Callable[..., Any], *args: Any) -> None:
    """Turn `node` into another call; its name and readers stay."""
    node.op, node.target, node.args, node.kwargs = "call_function", function, args, {}


def _call_before(node: fx.Node, function: Callable[..., Any], *args: Any) -> fx.Node:
    graph = node.graph
    with graph.inserting_before(node):
        return graph.call_function(function, args)


def _rename(node: fx.Node) -> None:
    same = {operator.iadd: operator.add, operator.imul: operator.mul}
    if node.target in _SUMS and node.kwargs.keys() <= {"input", "other"}:
        names = ("input", "other")
        given = (*node.args, *(node.kwargs[name] for name in names if name in node.kwargs))
        _become(node, cast(Any, node.target), *given)
    elif node.op == "call_method" and node.target in _METHODS and not node.kwargs:
        if len(node.args) <= 2:
            _become(node, _METHODS[str(node.target)], *node.args)
    elif node.op == "call_function" and node.target in same:
        node.target = same[cast(Any, node.target)]
    elif node.op != "call_module" and node.target in _CLAMPS and "out" not in node.kwargs:
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
        if low == 0 and high is None:
            _become(node, functional.relu, node.args[0])
        elif isinstance(low, int | float) and isinstance(high, int | float):
            _become(node, functional.hardtanh, node.args[0], float(low), float(high))


def _mean(view: GraphView, node: fx.Node) -> bool:
    if not _is_mean(node) or _axes(node) != {2, 3}:
        return False
    _pool(node, view.source(node), argument(node, 2, "keepdim", False))
    return True


def _double_mean(view: GraphView, node: fx.Node) -> bool:
    """``x.mean(3).mean(2)``, as in older MobileNets."""
    inner = node.args[0] if node.args else None
    if not _is_mean(node) or not isinstance(inner, fx.Node):
        return False
    keeps = (argument(n, 2, "keepdim", False) for n in (inner, node))
    if not _is_mean(inner) or len(inner.users) != 1 or any(keeps):
        return False
    rows_left = {2, -1} if argument(inner, 1, "dim") in (3, -1) else {2, -1, -2}
    if (
        argument(inner, 1, "dim") not in (2, 3, -1)
        or argument(node, 1, "dim") not in rows_left
    ):
        return False
    _pool(node, view.source(inner), False)
    node.graph.erase_node(inner)
    return True


def _is_mean(node: fx.Node) -> bool:
    """True for means of floats in float32 that make a new tensor."""
    given = (node.kwargs.get(name) for name in ("dtype", "out"))
    return node.target in _MEANS and all(value is None for value in given)


def _axes(node: fx.Node) -> set[int]:
    axes = argument(node, 1, "dim")
    whole = isinstance(axes, tuple | list) and all(isinstance(axis, int) for axis in axes)
    return {axis % 4 for axis in axes} if whole else set()


def _pool(node: fx.Node, source: fx.Node, keepdim: bool) -> None:
    if keepdim:
        _become(node, functional.adaptive_avg_pool2d, source, 1)
    else:
        pooled = _call_before(node, functional.adaptive_avg_pool2d, source, 1)
        _become(node, torch.flatten, pooled, 1)


def _pad(view: GraphView, node: fx.Node) -> bool:
    if node.target is not functional.pad or view.kind(node) is not Kind.MOVE:
        return False
    _become(node, functional.pad, view.source(node), argument(node, 1, "pad"), "constant", 0.0)
    return True


def _expand(view: GraphView, node: fx.Node, sizes: Sizes) -> bool:
    if node.target not in _EXPANDS:
        return False
    for user in node.users:
        others = [other for other in user.all_input_nodes if other is not node]
        if view.kind(user) not in (Kind.MUL, Kind.ADD) or len(others) != 1:
            return False
        if sizes(others[0]) != sizes(user):  # the other operand has the size of the result
            return False
    node.replace_all_uses_with(view.source(node))
    node.graph.erase_node(node)
    return True


def _gate(view: GraphView, node: fx.Node) -> bool:
    """``relu6(x + 3) / 6`` and ``x * relu6(x + 3) / 6``."""
    if node.target is not operator.truediv or node.args[1] != 6:
        return False
    above = cast(fx.Node, node.args[0])
    source = _below_shifted_relu6(view, above)
    if source is not None:
        _become(node, functional.hardsigmoid, source)
        return True
    if view.kind(above) is not Kind.MUL or len(above.users) != 1:
        return False
    for x, clamped in (above.args[:2], above.args[1::-1]):
        source = _below_shifted_relu6(view, clamped)
        if source is not None:
            gate = _call_before(node, functional.hardsigmoid, source)
            _become(node, operator.mul, x, gate)
            return True
    return False


def _below_shifted_relu6(view: GraphView, node: Any) -> fx.Node | None:
    """Return x if `node` is relu6(x + 3), read once."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return None
    if view.bounds(node) != (0.0, 6.0):
        return None
    shifted = view.source(node)
    if view.kind(shifted) is not Kind.ADD or len(shifted.users) != 1:
        return None
    a, b = shifted.args[:2]
    source = a if b == 3 else b if a == 3 else None
    return source if isinstance(source, fx.Node) else None


def _hardswish(view: GraphView, node: fx.Node) -> bool:
    if view.kind(node) is not Kind.HARDSWISH:
        return False
    source = view.source(node)
    gate = _call_before(node, functional.hardsigmoid, source)
    _become(node, operator.mul, source, gate)
    return True


def _silu(view: GraphView, node: fx.Node) -> bool:
    if view.kind(node) is not Kind.MUL:
        return False
    for x, gate in (node.args[:2], node.args[1::-1]):
        if not isinstance(gate, fx.Node) or len(gate.users) != 1:
            continue
        plain = gate.target in (torch.sigmoid, functional.sigmoid)
        if (plain or isinstance(view.module(gate), nn.Sigmoid)) and view.source(gate) is x:
            _become(node, functional.silu, x)
            return True
    return False


def _resize(view: GraphView, node: fx.Node, sizes: Sizes) -> None:
    """Mark a resize by something else than a whole factor as an operator of its own."""
    if node.target not in _RESIZES and not isinstance(view.module(node), nn.Upsample):
        return
    before, after = sizes(view.source(node)), sizes(node)
    if before is None or after is None or view.kind(node) is Kind.OTHER:
        return
    if any(a % b for b, a in zip(before[-2:], after[-2:], strict=True)):
        before_x, after_x = ("x".join(map(str, size[-2:])) for size in (before, after))
        node.meta[FLOAT] = f"from {before_x} to {after_x}, no whole multiple"


def _adaptive(view: GraphView, node: fx.Node, sizes: Sizes) -> None:
    """Give an adaptive pool to more than one position its window."""
    module = view.module(node)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        wanted: Any = module.output_size
    elif node.target is functional.adaptive_avg_pool2d:
        wanted = argument(node, 1, "output_size")
    else:
        return
    pair = wanted if isinstance(wanted, tuple | list) else (wanted, wanted)
    if tuple(pair) == (1, 1):
        return
    what = f"layer {node.target if module else node.name}: AdaptiveAvgPool2d to {wanted}"
    size = sizes(view.source(node))
    if size is None:
        raise UnsupportedError(f"{what}: needs the image size; pass input_shape to prepare()")
    found = tuple(size[-2:])
    goal = tuple(f if w is None else w for f, w in zip(found, pair, strict=True))
    if any(f % w for f, w in zip(found, goal, strict=True)):
        raise UnsupportedError(
            f"{what}: does not divide its {found[0]}x{found[1]} input; choose another image "
            "size"
        )
    window = tuple(f // w for f, w in zip(found, goal, strict=True))
    _become(node, functional.avg_pool2d, view.source(node), window)


def _clamp_first(view: GraphView, node: fx.Node) -> None:
    """Move a clamp before the data movement that it alone reads."""
    bounds = view.bounds(node)
    if bounds is None or not bounds[0] <= 0 <= bounds[1] or math.isnan(sum(bounds)):
        return
    while True:
        move = view.source(node)
        if len(move.users) != 1 or move.target is operator.getitem:
            return
        kind = view.kind(move)
        if kind is Kind.CONCAT:
            _clamp_parts(view, node, move)
            return
        if kind is not Kind.MOVE:
            return
        source = view.source(move)
        node.replace_all_uses_with(move)
        node.replace_input_with(move, source)
        move.prepend(node)
        move.replace_input_with(source, node)


def _clamp_parts(view: GraphView, node: fx.Node, concat: fx.Node) -> None:
    node.replace_all_uses_with(concat)
    for source in concat.all_input_nodes:
        with concat.graph.inserting_before(concat):
            clamped = concat.graph.node_copy(node, lambda _, s=source: s)  # type: ignore[misc]
        concat.replace_input_with(source, clamped)
        _clamp_first(view, clamped)
    concat.graph.erase_node(node)
