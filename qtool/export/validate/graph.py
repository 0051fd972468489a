"""A model that has passed `onnx.checker`, node by node."""

import onnx

from qtool.core.dialect import MS
from qtool.core.errors import UnsupportedError, UserError
from qtool.export.validate.facts import Facts, attribute, input_at, place
from qtool.export.validate.grids import check_grids
from qtool.export.validate.operators import check_operator
from qtool.export.validate.storage import check_shape

DOMAINS = ("", "ai.onnx", MS)
# layer: positions of its weight and bias
_LAYERS = {"Conv": (1, 2), "QLinearConv": (3, 8), "Gemm": (1, 2), "QGemm": (3, 6)}


def check_graph(model: onnx.ModelProto) -> None:
    """Check a model that has passed `onnx.checker` and has inferred shapes.

    Raises:
        UserError: the first violation found; names node or tensor.
    """
    facts = Facts(model)
    for name, shape in facts.shapes.items():
        check_shape(name, shape)
    for index, node in enumerate(model.graph.node):
        where = place(node, index)
        if node.domain not in DOMAINS:
            raise UnsupportedError(f"{where}: unknown operator domain {node.domain!r}")
        check_operator(node, facts, where)
        check_grids(node, facts, where)
        if node.op_type in _LAYERS:
            _check_layer(node, facts, where)


def _check_layer(node: onnx.NodeProto, facts: Facts, where: str) -> None:
    """Check channels against the weight, and the bias against the outputs."""
    weight, bias = (input_at(node, position) for position in _LAYERS[node.op_type])
    x_shape, w_shape = facts.shapes.get(node.input[0]), facts.shapes.get(weight)
    if not w_shape or len(w_shape) < 2:
        return
    if x_shape is not None and len(x_shape) != len(w_shape):
        raise UserError(f"{where}: weight of shape {w_shape} for an input of {x_shape}")
    is_conv, axis = node.op_type.endswith("Conv"), int(not attribute(node, "transB", 0))
    outputs, inputs = (
        (w_shape[0], w_shape[1]) if is_conv else (w_shape[axis], w_shape[1 - axis])
    )
    groups = attribute(node, "group", 1)
    if groups < 1 or (outputs is not None and outputs % groups):
        raise UserError(f"{where}: {outputs} outputs in {groups} groups")
    channels = x_shape[1] if x_shape is not None and len(x_shape) > 1 else None
    expected = None if inputs is None else inputs * groups
    if channels is not None and expected is not None and channels != expected:
        raise UserError(f"{where}: input of {channels} channels, weight for {expected}")
    shape = facts.shapes.get(bias)
    if bias and shape is not None and shape[-2:] not in ((outputs,), (1, outputs)):
        raise UserError(f"{where}: bias of shape {shape} for {outputs} outputs")
