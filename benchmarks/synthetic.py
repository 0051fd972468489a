"""Adaptive graphs of any length, made without torch: what passes are timed on.

A chain of 3x3 convolutions of 8 channels with BatchNorm and ReLU; every fifth is added to what
was there before it, every ninth concatenated with it and brought back to 8 channels.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

CHANNELS, SIZE = 8, 8
FLOAT = ir.TensorType(ir.DataType.FLOAT)


class Chain:
    """An adaptive graph under construction."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.input = ir.Value(name="input", type=FLOAT, shape=self.shape(CHANNELS))

    @staticmethod
    def shape(channels: int) -> ir.Shape:
        """Return (N, channels, SIZE, SIZE)."""
        return ir.Shape(["N", channels, SIZE, SIZE])

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """Return a new initializer."""
        name = f"c{len(self.constants)}"
        self.constants.append(ir.val(name, const_value=ir.tensor(array, name=name)))
        return self.constants[-1]

    def node(
        self, op: str, inputs: list[ir.Value], shape: ir.Shape, **attributes: Any
    ) -> ir.Value:
        """Return the result of a new node."""
        domain = "qtool" if op == "FakeQuant" else ""
        name = f"n{len(self.nodes)}"
        node = ir.node(op, inputs, attributes, domain=domain, name=name)
        node.outputs[0].name, node.outputs[0].type = f"{name}.y", FLOAT
        node.outputs[0].shape = shape
        self.nodes.append(node)
        return node.outputs[0]

    def grid(self, x: ir.Value, role: str, name: str, step: float, signed: int) -> ir.Value:
        """Return `x` behind a FakeQuant with candidates of 8 and 4 bits, glue with 8."""
        bits = [8, 4] if role == "activation" else [8]
        channels = x.shape[0] if role == "weight" else 1
        steps = self.constant(np.full((len(bits), channels), step, np.float32))
        return self.node(
            "FakeQuant", [x, steps], x.shape, name=name, role=role, bits=bits, signed=signed
        )

    def conv(self, x: ir.Value) -> ir.Value:
        """Return ReLU(BatchNorm(Conv(x)))."""
        name, inputs = f"layer{len(self.nodes)}", x.shape[1]
        w = self.rng.standard_normal((CHANNELS, inputs, 3, 3)).astype(np.float32)
        weight = self.grid(self.constant(w), "weight", name, 0.02, 1)
        x = self.grid(x, "activation", name, 0.03, int(x is self.input))
        shape = self.shape(CHANNELS)
        y = self.node("Conv", [x, weight], shape, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        plain = [self.constant(np.full(CHANNELS, v, np.float32)) for v in (1, 0.1, 0, 1)]
        y = self.node("BatchNormalization", [y, *plain], shape)
        return self.node("Relu", [y], shape)

    def glue(self, x: ir.Value, role: str = "glue") -> ir.Value:
        """Return `x` on an 8-bit grid of its own."""
        return self.grid(x, role, f"glue_{len(self.nodes)}", 0.025, 0)

    def model(self, result: ir.Value) -> ir.Model:
        """Return the graph from the input to `result`."""
        graph = ir.Graph(
            [self.input], [result], nodes=self.nodes, initializers=self.constants,
            opset_imports={"": 21, "qtool": 1}, name="chain",
        )  # fmt: skip
        return ir.Model(graph, ir_version=10)


def adaptive_chain(count: int) -> ir.Model:
    """Return an adaptive graph of at least `count` nodes."""
    chain = Chain()
    x, index = chain.input, 0
    x = chain.glue(chain.conv(x))
    while len(chain.nodes) < count - 1:
        index += 1
        y = chain.conv(x)
        if index % 5 == 0:
            y = chain.node("Add", [chain.glue(y), x], chain.shape(CHANNELS))
        elif index % 9 == 0:
            joined = chain.node("Concat", [y, x], chain.shape(2 * CHANNELS), axis=1)
            y = chain.conv(joined)
        x = chain.glue(y)
    return chain.model(chain.grid(x, "output", "glue_output", 0.025, 0))
