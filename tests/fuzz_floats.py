"""What random networks of integers lack: float islands, and a linear layer with float results.

Drawn apart from `fuzz`'s own steps, so that its networks stay what they are.
"""

import random

import onnx_ir as ir
from fuzz import STEPS, Net, conv

from passes.graph import drop_unused_constants


def smooth(net: Net) -> None:
    """A function that has no table."""
    x = net.draw.choice(net.tensors)
    kind = net.draw.choice(["Gelu", "Softplus", "Erf", "Elu", "Exp"])
    y = net.op(kind, [x.value], x.shape)
    net.quantize(y, x.shape, max(x.top, 1.0))


def float_conv(net: Net) -> None:
    """A convolution whose weights stay float32 or become float16."""
    conv(net, net.draw.choice([32, 16]))


# Beside the others, and often enough that few networks have no island.
ISLAND_STEPS = (*STEPS, smooth, smooth, smooth, float_conv, float_conv)


def has_float_output(seed: int) -> bool:
    """True for every fourth network, about."""
    return random.Random(f"{seed} output").random() < 0.25


def leave_output_float(dialect: ir.Model) -> None:
    """``DequantizeLinear(QGemm(x, ..., y_scale, y_zero))`` -> ``QGemm(x, ...)``, in place."""
    graph, output = dialect.graph, dialect.graph.outputs[0]
    last = output.producer()
    assert last is not None and last.op_type == "DequantizeLinear" and last.inputs[0]
    codes, name, shape = last.inputs[0], str(output.name), output.shape
    layer = codes.producer()
    assert layer is not None and layer.op_type == "QGemm", "classify ends in a linear layer"
    graph.outputs[0] = codes
    graph.remove(last, safe=True)
    layer.resize_inputs(7)
    # All that a file keeps of the layer's name is its result's.
    layer.name = codes.name = name
    codes.type, codes.shape = ir.TensorType(ir.DataType.FLOAT), shape
    drop_unused_constants(graph)
