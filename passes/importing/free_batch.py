"""A model of fixed batch size -> one of any: input ``(1, C, H, W)`` -> ``(N, C, H, W)``.

1. The first dimension of the input becomes "N". 2. Reshape to ``[batch, ...]`` of what depends
on the input becomes one to ``[0, ...]``, which keeps the dimension. 3. All other shapes are
forgotten; inference finds them again.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.conditions import ensure
from passes.graph import add_constant, operand
from qtool.core.dialect import constant


@dataclass(frozen=True)
class FreeBatch(InPlacePass):
    """Make the batch dimension symbolic, and forget every computed shape."""

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        graph, batch = model.graph, None
        for value in graph.inputs:
            if (
                value.shape is not None
                and len(value.shape)
                and isinstance(value.shape[0], int)
            ):
                batch = value.shape[0]
                value.shape = ir.Shape(["N", *list(value.shape)[1:]])
        live: set[ir.Value | None] = set(graph.inputs)
        for node in graph:
            if not live.isdisjoint(node.inputs):
                live.update(node.outputs)
                if node.op_type == "Reshape" and batch is not None:
                    _reshape(graph, node, batch)
            for value in node.outputs:
                value.shape = None
                if not value.is_graph_output():
                    value.type = None
        return PassResult(model, batch is not None)

    def ensures(self, model: ir.Model) -> None:
        """No input has a batch of its own."""
        fixed = (v for v in model.graph.inputs if v.shape and isinstance(v.shape[0], int))
        ensure(self, (f"input {value.name} has the shape {value.shape}" for value in fixed))


def _reshape(graph: ir.Graph, node: ir.Node, batch: int) -> None:
    sizes = constant(operand(node, 1))
    if sizes is None or sizes.size < 2 or sizes[0] != batch:
        return
    if node.attributes.get_int("allowzero", 0):
        node.attributes.pop("allowzero")
    kept = np.array([0, *sizes[1:]], np.int64)
    node.replace_input_with(1, add_constant(graph, f"{node.outputs[0].name}.sizes", kept))
