"""``ReduceMean(x, axes=(2, 3), keepdims=1)`` -> ``GlobalAveragePool(x)``.

Cases:
1. ReduceMean over height and width of a 4-D tensor, dimensions kept: GlobalAveragePool.
2. Reshape of (N, C, ...) to (N, rest), by whatever shape arithmetic: ``Flatten(x, axis=1)``.

So that later passes meet one spelling of each. Anything else is left as it is.
"""

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.graph import operand, replace_node
from qtool.dialect import constant


@dataclass(frozen=True)
class Canonicalize(InPlacePass):
    """One spelling for global pooling and flattening."""

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        modified = False
        for node in list(model.graph):
            target = _target(node)
            if target is not None:
                replace_node(node, target)
                modified = True
        return PassResult(model, modified)


def _target(node: ir.Node) -> ir.Node | None:
    if node.domain:
        return None
    if node.op_type == "ReduceMean" and _is_global(node):
        return ir.node("GlobalAveragePool", [operand(node, 0)], name=node.name)
    if node.op_type == "Reshape" and _keeps_batch(node):
        return ir.node("Flatten", [operand(node, 0)], {"axis": 1}, name=node.name)
    return None


def _is_global(node: ir.Node) -> bool:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    shape = operand(node, 0).shape
    if axes is None or shape is None or len(shape) != 4:
        return False
    return {int(a) % 4 for a in axes} == {2, 3} and node.attributes.get_int("keepdims", 1) == 1


def _keeps_batch(node: ir.Node) -> bool:
    before, after = operand(node, 0).shape, node.outputs[0].shape
    return (
        before is not None and after is not None and len(after) == 2
        and not isinstance(before[0], int) and before[0] == after[0]
    )  # fmt: skip
