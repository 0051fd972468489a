"""Constant sizes instead of the shape arithmetic that torch's exporter leaves behind.

Only the batch dimension of a traced network is symbolic, so that every size is known:
1. ``Reshape(x, Concat(Shape(x)[0], ...))`` -> ``Reshape(x, [-1, ...])``.
2. ``Resize(x, sizes=Concat(...))`` -> ``Resize(x, scales=[1, 1, h, w])``.
3. ``Squeeze(x)``, ``Unsqueeze(x)``: ``Reshape``, which every target has.
4. ``Slice(x)`` that keeps everything: nothing.
What has no static size is left as it is, for the passes to refuse.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def simplify_shapes(model: ir.Model) -> None:
    """Rewrite `model`, just traced, in place."""
    for node in list(model.graph):
        if node.domain:
            continue
        if node.op_type in ("Reshape", "Squeeze", "Unsqueeze"):
            _fix_reshape(model.graph, node)
        elif node.op_type == "Resize":
            _fix_resize(model.graph, node)
        elif node.op_type == "Slice":
            _drop_slice(model.graph, node)
    RemoveUnusedNodesPass()(model)


def _fix_reshape(graph: ir.Graph, node: ir.Node) -> None:
    result, source = node.outputs[0], node.inputs[0]
    shape = result.shape
    sizes = [] if shape is None else [d if isinstance(d, int) else -1 for d in shape]
    if shape is None or sizes.count(-1) > 1 or 0 in sizes:
        return
    if result.dtype != ir.DataType.FLOAT:
        return
    target = _constant(graph, node, "shape", np.array(sizes, np.int64))
    new = ir.node("Reshape", [source, target], name=node.name)
    new.outputs[0].shape, new.outputs[0].type = shape, result.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], [result], new.outputs)


def _fix_resize(graph: ir.Graph, node: ir.Node) -> None:
    before = None if node.inputs[0] is None else node.inputs[0].shape
    after = node.outputs[0].shape
    if len(node.inputs) < 4 or node.inputs[3] is None or before is None or after is None:
        return
    pairs = list(zip(before, after, strict=True))[2:]
    if not all(isinstance(b, int) and isinstance(a, int) for b, a in pairs):
        return
    scales = [1.0, 1.0, *(int(str(a)) / int(str(b)) for b, a in pairs)]
    node.replace_input_with(2, _constant(graph, node, "scales", np.array(scales, np.float32)))
    node.replace_input_with(3, None)
    node.resize_inputs(3)


def _drop_slice(graph: ir.Graph, node: ir.Node) -> None:
    source, result = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or source.shape != result.shape:
        return
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    if steps is not None:
        array = ir.convenience.get_const_tensor(steps)
        if array is None or np.any(array.numpy() != 1):
            return
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _constant(
    graph: ir.Graph,
    node: ir.Node,
    what: str,
    array: np.ndarray[tuple[int], np.dtype[np.generic]],
) -> ir.Value:
    tensor = ir.tensor(array, name=f"{node.outputs[0].name}.{what}")
    value = ir.Value(
        name=tensor.name,
        const_value=tensor,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(array.shape),
    )
    graph.register_initializer(value)
    return value
