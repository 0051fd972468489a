"""``QuantizeLinear(x: float, 1/255, 0)`` -> ``x: uint8``: the pixels are the codes.

The network's float input is pixel / 255, so its grid is the pixel grid itself; whatever
normalisation follows is an integer operator already. Refuses when the input is read on another
grid: then quantization is more than a copy.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from passes.conditions import ensure
from passes.graph import drop_unused_constants
from qtool.core.dialect import scalar
from qtool.core.errors import UnsupportedError

PIXEL_SCALE = np.float32(1) / np.float32(255)


@dataclass(frozen=True)
class UseRawPixels(InPlacePass):
    """Let a dialect graph take uint8 pixels."""

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite `model` in place."""
        pixels = model.graph.inputs[0]
        if pixels.dtype == ir.DataType.UINT8:
            return PassResult(model, False)
        readers = [usage.node for usage in pixels.uses()]
        for node in readers:
            _require_pixel_grid(node)
        for node in readers:
            codes = node.outputs[0]
            codes.replace_all_uses_with(pixels, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
        pixels.type = ir.TensorType(ir.DataType.UINT8)
        drop_unused_constants(model.graph)
        return PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        """The input is codes, which nothing quantizes."""
        pixels = model.graph.inputs[0]
        if pixels.dtype != ir.DataType.UINT8:
            ensure(self, [f"input {pixels.name} is {pixels.dtype}"])
        readers = (usage.node for usage in pixels.uses())
        left = (node for node in readers if node.op_type == "QuantizeLinear")
        ensure(self, (f"node {node.name} quantizes the codes again" for node in left))


def _require_pixel_grid(node: ir.Node) -> None:
    if node.op_type != "QuantizeLinear":
        raise UnsupportedError(f"{node.op_type} reads the image in floating point")
    scale = scalar(node.inputs[1], "scale of the input")
    zero_point = scalar(node.inputs[2], "zero point of the input")
    clipped = any(usage.node.op_type == "Clip" for usage in node.outputs[0].uses())
    if (np.float32(scale), int(zero_point), clipped) != (PIXEL_SCALE, 0, False):
        raise UnsupportedError(
            f"the input's grid has scale {float(scale):.6g}, zero point {int(zero_point)}"
            f"{' and fewer than 8 bits' if clipped else ''}; raw uint8 pixels need scale "
            "1/255, zero point 0 and 8 bits"
        )
