"""Small QDQ models, one per pattern that qtool emits, with random codes as their inputs.

``Qdq`` builds them tensor by tensor; a tensor is uint8 codes with a scale and a zero point.
`PATTERNS` are spelled as `passes.emit.onnx.onnx_qdq` spells them; `BEFORE_ADD` are other
spellings of the one that OpenVINO does not round as written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

F32, U8 = np.float32, np.uint8
IMAGE = (4, 16, 14, 14)


@dataclass(frozen=True)
class Tensor:
    """Codes `name` on a grid."""

    name: str
    scale: np.float32
    zero: int


class Qdq:
    """A QDQ model under construction.

    Args:
        rng: draws weights, scales, zero points and input codes.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.feeds = rng, dict[str, NDArray[Any]]()
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, value: Any) -> str:
        """Return the name of a new initializer."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Return the name of the result of a new node."""
        name = f"t{len(self._nodes)}"
        self._nodes.append(onnx.helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def zero_point(self) -> int:
        """Draw a zero point as qtool has them: 0 behind a ReLU, else 128."""
        return int(self.rng.choice([0, 128]))

    def input(self, shape: tuple[int, ...] = IMAGE) -> Tensor:
        """Return a graph input with random codes."""
        name = f"input_{len(self.feeds)}"
        self.feeds[name] = self.rng.integers(0, 256, shape).astype(U8)
        return Tensor(name, F32(self.rng.uniform(0.01, 0.05)), self.zero_point())

    def real(self, x: Tensor) -> str:
        """Dequantize."""
        return self.node(
            "DequantizeLinear", x.name, self.constant(x.scale), self.constant(U8(x.zero))
        )

    def quantize(self, real: str, scale: Any, zero: int) -> Tensor:
        """Quantize a float tensor."""
        name = self.node(
            "QuantizeLinear", real, self.constant(F32(scale)), self.constant(U8(zero))
        )
        return Tensor(name, F32(scale), zero)

    def codes(self, x: Tensor, op_type: str, *inputs: str, **attributes: Any) -> Tensor:
        """Return the result of an operator on codes, on the grid of `x`."""
        return Tensor(self.node(op_type, x.name, *inputs, **attributes), x.scale, x.zero)

    def clip(self, x: Tensor, bits: int = 4) -> Tensor:
        """Clip codes to the window of `bits` around the zero point."""
        lo = 0 if x.zero == 0 else x.zero - 2 ** (bits - 1)
        bounds = (self.constant(U8(lo)), self.constant(U8(lo + 2**bits - 1)))
        return self.codes(x, "Clip", *bounds)

    def layer(
        self, x: Tensor, kernel: int = 3, groups: int = 1, stride: int = 1, zero: int = -1
    ) -> Tensor:
        """Convolution with bias, 16 channels; fully connected where `kernel` is 0."""
        shape = (16, 16 // groups, kernel, kernel) if kernel else (16, 784)
        w = self.rng.integers(-127, 128, shape).astype(np.int8)
        step = self.rng.uniform(0.001, 0.02, 16).astype(F32)
        bias = self.rng.integers(-3000, 3000, 16).astype(np.int32)
        weight = (self.constant(w), self.constant(step), self.constant(np.zeros(16, np.int8)))
        weight_real = self.node("DequantizeLinear", *weight, axis=0)
        unit = self.constant((x.scale * step).astype(F32))
        bias_real = self.node("DequantizeLinear", self.constant(bias), unit, axis=0)
        reads = (self.real(x), weight_real, bias_real)
        if kernel:
            y = self.node(
                "Conv", *reads, group=groups, pads=[kernel // 2] * 4, strides=[stride] * 2
            )
        else:
            y = self.node("Gemm", *reads, transB=1)
        # About four standard deviations of the result on 256 codes.
        spread = np.sqrt(w[0].size) * 73 * 90 * float(x.scale) * 0.01
        scale = self.rng.uniform(0.8, 1.2) * spread / 32
        return self.quantize(y, scale, self.zero_point() if zero < 0 else zero)

    def apply(self, op_type: str, *inputs: Tensor, **attributes: Any) -> Tensor:
        """Return ``Q(op(DQ(x), ...))`` on a grid that the result about fills."""
        y = self.node(op_type, *(self.real(x) for x in inputs), **attributes)
        if op_type in ("Sigmoid", "HardSigmoid"):
            return self.quantize(y, 1 / 255, 0)
        scale = float(max(x.scale for x in inputs))
        if op_type == "Mul":
            scale = 60 * float(inputs[0].scale * inputs[1].scale)
        return self.quantize(y, scale * self.rng.uniform(0.7, 1.6), self.zero_point())

    def model(self, *results: Tensor) -> bytes:
        """Return the serialized model whose outputs are the codes `results`."""
        info, kind = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype
        inputs = [info(name, kind(x.dtype), x.shape) for name, x in self.feeds.items()]
        outputs = [info(result.name, onnx.TensorProto.UINT8, None) for result in results]
        graph = onnx.helper.make_graph(self._nodes, "g", inputs, outputs, self._constants)
        opset = [onnx.helper.make_opsetid("", 21)]
        proto = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
        data: bytes = proto.SerializeToString()
        return data


Build = Callable[[Qdq], Tensor | tuple[Tensor, ...]]


def _input(b: Qdq, step: float, ties: bool) -> tuple[str, np.float32]:
    """Return a float graph input and its scale; with `ties` all its values are ties."""
    scale = F32(step or b.rng.uniform(0.01, 0.05))
    codes = b.rng.integers(-128, 127, IMAGE) + F32(0.5) if ties else None
    drawn = b.rng.uniform(-128, 127, IMAGE) if codes is None else codes
    b.feeds["input_0"] = drawn.astype(F32) * scale
    return "input_0", scale


def _quantized_input(step: float = 0, ties: bool = False) -> Build:
    return lambda b: b.quantize(*_input(b, step, ties), 128)


def _divided_input(b: Qdq) -> Tensor:
    x, scale = _input(b, 0, ties=True)
    return b.quantize(b.node("Div", x, b.constant(scale)), 1, 128)


def rescale(b: Qdq, x: Tensor) -> Tensor:
    """Change the grid."""
    return b.apply("LeakyRelu", x, alpha=1.0)


PATTERNS: dict[str, Build] = {
    "Q of the float input": _quantized_input(),
    "Q of the float input, every value a tie": _quantized_input(ties=True),
    "Conv 3x3": lambda b: b.layer(b.input()),
    "Conv 3x3, Clip to 4 bits": lambda b: b.clip(b.layer(b.input())),
    "Conv 1x1": lambda b: b.layer(b.input(), 1),
    "Conv depthwise": lambda b: b.layer(b.input(), groups=16),
    "Conv 1x1, stride 2": lambda b: b.layer(b.input(), 1, stride=2),
    "change of grid, Conv 1x1, stride 2": lambda b: b.layer(
        rescale(b, b.input()), 1, stride=2
    ),
    "changes of grid from one tensor to Conv 1x1, stride 2, and Conv": lambda b: _two(b),
    "Gemm": lambda b: b.layer(b.input((64, 784)), 0),
    "Add": lambda b: b.apply("Add", b.input(), b.input()),
    "Conv, Add": lambda b: b.apply("Add", b.layer(b.input()), b.input()),
    "Conv, Add, change of grid": lambda b: rescale(
        b, b.apply("Add", b.layer(b.input()), b.input())
    ),
    "change of grid": lambda b: rescale(b, b.input()),
    "change of grid, Clip to 4 bits": lambda b: b.clip(rescale(b, b.input())),
    "Conv, change of grid": lambda b: rescale(b, b.layer(b.input())),
    "Conv, change of grid, Clip, Conv": lambda b: b.layer(
        b.clip(rescale(b, b.layer(b.input())))
    ),
    "Conv, MaxPool on codes, Conv": lambda b: b.layer(
        b.codes(b.layer(b.input()), "MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    ),
    "GlobalAveragePool": lambda b: b.apply("GlobalAveragePool", b.input()),
    "Conv, GlobalAveragePool": lambda b: b.apply("GlobalAveragePool", b.layer(b.input())),
    "AveragePool": lambda b: b.apply(
        "AveragePool", b.input(), kernel_shape=[2, 2], strides=[2, 2]
    ),
    "Mul": lambda b: b.apply("Mul", b.input(), b.input()),
    "Conv, Mul": lambda b: b.apply("Mul", b.layer(b.input()), b.input()),
    "Mul by a gate per channel": lambda b: b.apply("Mul", b.input(), b.input((4, 16, 1, 1))),
    "LeakyRelu, alpha 0.1": lambda b: b.apply("LeakyRelu", b.input(), alpha=0.1),
    "Sigmoid": lambda b: b.apply("Sigmoid", b.input()),
    "HardSigmoid": lambda b: b.apply("HardSigmoid", b.input()),
}


def _two(b: Qdq) -> tuple[Tensor, ...]:
    x = b.apply("Add", b.input(), b.input())
    return b.layer(rescale(b, x), 1, stride=2), b.layer(rescale(b, x), 3, stride=2)


def _add_after(change: Callable[[Qdq, Tensor], Tensor]) -> Build:
    return lambda b: b.apply("Add", change(b, b.layer(b.input())), b.input())


def _look_up(b: Qdq, x: Tensor) -> Tensor:
    index = b.node("Cast", x.name, to=onnx.TensorProto.INT32)
    name = b.node("Gather", b.constant(np.arange(256, dtype=U8)), index)
    return Tensor(name, x.scale, x.zero)


def _with_output(b: Qdq) -> tuple[Tensor, ...]:
    branch = b.layer(b.input())
    return b.apply("Add", branch, b.input()), branch


BEFORE_ADD: dict[str, Build] = {
    "as emitted": PATTERNS["Conv, Add"],
    "operands of Add swapped": lambda b: b.apply("Add", b.input(), b.layer(b.input())),
    "Identity": _add_after(lambda b, x: b.codes(x, "Identity")),
    "Clip(0, 255) on codes": _add_after(
        lambda b, x: b.codes(x, "Clip", b.constant(U8(0)), b.constant(U8(255)))
    ),
    "Max(0) on codes": _add_after(lambda b, x: b.codes(x, "Max", b.constant(U8(0)))),
    "MaxPool 1x1 on codes": _add_after(
        lambda b, x: b.codes(x, "MaxPool", kernel_shape=[1, 1])
    ),
    "change to the same grid": _add_after(
        lambda b, x: b.quantize(b.node("LeakyRelu", b.real(x), alpha=1.0), x.scale, x.zero)
    ),
    "Cast, Gather": _add_after(_look_up),
    "the Conv's codes as a further output": _with_output,
}

DIVISIONS: dict[str, Build] = {
    "Q of the float input, ties, as emitted": _quantized_input(ties=True),
    "Q of the float input, ties, step 2^-6": _quantized_input(2.0**-6, ties=True),
    "Div by the step, Q with step 1, ties": _divided_input,
    "Sigmoid, as emitted": PATTERNS["Sigmoid"],
    "Sigmoid, result on step 1/256": lambda b: b.quantize(
        b.node("Sigmoid", b.real(b.input())), 1 / 256, 0
    ),
    "Sigmoid as a table: Cast, Gather": lambda b: _look_up(b, b.input()),
}
