"""A float result -> ``DequantizeLinear(QuantizeLinear(result))`` on an 8-bit grid.

scale = (high - low) / 255, zero point = rint(-low / scale). For models whose last operator
is not quantized and has no integer form with a float result (`qtool import --output-range`).
Leaves outputs alone that are dequantized already.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.conditions import ensure
from passes.graph import add_constant, fresh_name
from qtool.core.numerics import clip_code


@dataclass(frozen=True)
class QuantizeOutput(InPlacePass):
    """Put a grid from `low` to `high` onto a float output.

    Args:
        low: smallest value that the output takes, at most 0.
        high: largest, at least 0.
    """

    low: float
    high: float

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        graph, output = model.graph, model.graph.outputs[0]
        producer = output.producer()
        if producer is None or producer.op_type == "DequantizeLinear":
            return PassResult(model, False)
        step = np.float32((self.high - self.low) / 255)
        scale = add_constant(graph, "output.scale", np.asarray(step))
        code = clip_code(-self.low, step, 0)
        zero = add_constant(graph, "output.zero_point", np.asarray(np.uint8(code)))
        quantize = ir.node("QuantizeLinear", [output, scale, zero], name="output/quantize")
        back = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero])
        graph.extend([quantize, back])
        name, result = output.name, back.outputs[0]
        output.name, result.name = fresh_name(graph, f"{name}/y"), name
        quantize.outputs[0].name = fresh_name(graph, f"{name}/codes")
        quantize.outputs[0].shape = result.shape = output.shape
        result.type, quantize.outputs[0].type = output.type, ir.TensorType(ir.DataType.UINT8)
        graph.outputs[0] = result
        return PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        """The output is dequantized from integers."""
        producer = model.graph.outputs[0].producer()
        if producer is not None and producer.op_type != "DequantizeLinear":
            ensure(self, [f"the output is made by {producer.op_type} {producer.name}"])
