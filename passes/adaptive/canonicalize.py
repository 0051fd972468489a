"""Several spellings of one thing -> the one that later passes know.

Cases:
1. ReduceMean over height and width of a 4-D tensor: ``GlobalAveragePool(x)``, and a Flatten
   behind it where the dimensions are dropped.
2. Reshape of (N, C, ...) to (N, rest), by whatever shape arithmetic: ``Flatten(x, axis=1)``;
   to other shapes that keep the batch: ``Reshape(x, [0, ...])`` with constant sizes.
3. ``Mul(x, Sigmoid(x))``: ``Swish(x)``.
4. Split: one Slice for each result that is read.
5. Resize to sizes or scales that are whole multiples: constant scales.
Anything else is left as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.graph import add_constant, drop_unused_constants, fresh_name, operand, replace_node
from qtool.core.dialect import constant, is_plain


@dataclass(frozen=True)
class Canonicalize(InPlacePass):
    """One spelling for pooling, shapes, SiLU, splitting and upsampling."""

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        modified = False
        for node in list(model.graph):
            rewrite = _REWRITES.get(node.op_type)
            if rewrite is not None and not node.domain:
                modified |= rewrite(model.graph, node)
        if modified:
            _drop_dead(model.graph)
        return PassResult(model, modified)


def _mean(graph: ir.Graph, node: ir.Node) -> bool:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    shape = operand(node, 0).shape
    if axes is None or shape is None or len(shape) != 4:
        return False
    if {int(a) % 4 for a in axes.reshape(-1)} != {2, 3}:
        return False
    pool = ir.node("GlobalAveragePool", [operand(node, 0)], name=node.name)
    if node.attributes.get_int("keepdims", 1):
        replace_node(node, pool)
        return True
    graph.insert_before(node, pool)
    pooled = pool.outputs[0]
    pooled.shape, pooled.type = ir.Shape([*list(shape)[:2], 1, 1]), node.outputs[0].type
    pooled.name = fresh_name(graph, f"{node.outputs[0].name}/pooled")
    replace_node(node, ir.node("Flatten", [pooled], {"axis": 1}, name=f"{node.name}/flatten"))
    return True


def _reshape(graph: ir.Graph, node: ir.Node) -> bool:
    before, after = operand(node, 0).shape, node.outputs[0].shape
    if before is None or after is None or not _same_batch(before[0], after[0]):
        return False
    sizes = list(after)[1:]
    if len(sizes) == 1 and isinstance(sizes[0], int):
        flat = ir.node("Flatten", [operand(node, 0)], {"axis": 1}, name=node.name)
        replace_node(node, flat)
        return True
    wanted = np.array([0, *sizes]) if all(isinstance(n, int) for n in sizes) else None
    if wanted is None or node.attributes.get_int("allowzero", 0) != 0:
        return False
    known = constant(node.inputs[1])
    if known is not None and np.array_equal(known, wanted):
        return False
    shape = add_constant(graph, f"{node.outputs[0].name}.shape", wanted.astype(np.int64))
    node.replace_input_with(1, shape)
    return True


def _same_batch(before: object, after: object) -> bool:
    return not isinstance(before, int) and before == after


def _swish(_graph: ir.Graph, node: ir.Node) -> bool:
    for x, gate in (node.inputs, node.inputs[::-1]):
        sigmoid = gate.producer() if gate is not None else None
        alone = sigmoid is not None and len(list(sigmoid.outputs[0].uses())) == 1
        if sigmoid is not None and alone and sigmoid.op_type == "Sigmoid":
            if sigmoid.inputs[0] is x:
                replace_node(node, ir.node("Swish", [x], name=node.name))
                return True
    return False


def _split(graph: ir.Graph, node: ir.Node) -> bool:
    shape, parts = operand(node, 0).shape, len(node.outputs)
    if shape is None or node.attributes.get_int("num_outputs", parts) != parts:
        return False
    axis, start = node.attributes.get_int("axis", 0) % len(shape), 0
    sizes = _split_sizes(node, shape[axis], axis)
    if sizes is None:
        return False
    for index, (out, size) in enumerate(zip(list(node.outputs), sizes, strict=True)):
        if out.uses() or out.is_graph_output():
            piece = _piece(graph, out, (start, start + size, axis), f"{node.name}/{index}")
            out.replace_all_uses_with(piece, replace_graph_outputs=True)
        start += size
    graph.remove(node, safe=True)
    return True


def _split_sizes(node: ir.Node, whole: object, axis: int) -> list[int] | None:
    """Return how much of `axis` each result is: by its shape, which an unread one may lack."""
    known = [list(out.shape)[axis] if out.shape is not None else None for out in node.outputs]
    sizes = [size for size in known if isinstance(size, int)]
    if len(sizes) == len(known):
        return sizes
    stated = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if stated is not None:
        return [int(size) for size in stated.reshape(-1)]
    if not isinstance(whole, int) or len(node.inputs) > 1 or "split" in node.attributes:
        return None
    size = -(-whole // len(known))
    return [min(size, whole - start) for start in range(0, size * len(known), size)]


def _piece(
    graph: ir.Graph, out: ir.Value, bounds: tuple[int, int, int], name: str
) -> ir.Value:
    """Return the part of a Split's input that is `out`: from, to and along (`bounds`)."""
    split = out.producer()
    if split is None:
        raise ValueError(f"{out.name} is no result")
    constants = [
        add_constant(graph, f"{out.name}.{what}", np.array([value], np.int64))
        for what, value in zip(("start", "end", "axis"), bounds, strict=True)
    ]
    piece = ir.node("Slice", [operand(split, 0), *constants], name=name)
    graph.insert_before(split, piece)
    result = piece.outputs[0]
    result.shape, result.type = out.shape, out.type
    result.name = fresh_name(graph, f"{out.name}/piece")
    return result


def _resize(graph: ir.Graph, node: ir.Node) -> bool:
    before, after = operand(node, 0).shape, node.outputs[0].shape
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if (scales is not None and scales.size) or not is_plain(node):
        return False
    if before is None or after is None:
        return False
    pairs = list(zip(list(before)[1:], list(after)[1:], strict=True))
    whole = all(isinstance(a, int) and isinstance(b, int) and b % a == 0 for a, b in pairs)
    if not whole or not _same_batch(before[0], after[0]):
        return False
    factors = [1.0, *(b / a for a, b in pairs)]
    node.resize_inputs(3)
    name = f"{node.outputs[0].name}.scales"
    node.replace_input_with(2, add_constant(graph, name, np.array(factors, np.float32)))
    return True


_REWRITES: dict[str, Callable[[ir.Graph, ir.Node], bool]] = {
    "ReduceMean": _mean, "Reshape": _reshape, "Mul": _swish, "Split": _split,
    "Resize": _resize,
}  # fmt: skip


def _drop_dead(graph: ir.Graph) -> None:
    """Remove the shape arithmetic and Sigmoids that nothing reads any more."""
    for node in reversed(list(graph)):
        if not any(out.uses() or out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
    drop_unused_constants(graph)
