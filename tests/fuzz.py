"""Random adaptive graphs, step by step from a seed; ``tests/fuzz.py SEED [STEPS [UNIT]]``.

UNIT is one of TVM's vector units, or "mma" or "dp4a" of a GPU's kernels; "islands" is for the
networks that have some.

A network is a list of steps, each drawn from its own random state: the first k steps of a seed
are the same network cut short, which is how a failing case is made small.
"""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from passes.graph import add_constant

F32 = np.float32
PIXEL = float(F32(1) / F32(255))


@dataclass(frozen=True)
class Tensor:
    """A tensor on a grid: its shape without batch, and about its largest magnitude."""

    value: ir.Value
    shape: tuple[int, ...]
    top: float


@dataclass
class Net:
    """A graph under construction; `draw` is the random state of the present step."""

    graph: ir.Graph
    draw: random.Random
    rng: np.random.Generator
    tensors: list[Tensor] = field(default_factory=list)
    count: int = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def const(self, array, name: str = "k") -> ir.Value:
        return add_constant(self.graph, self.name(name), np.asarray(array))

    def op(self, op_type, inputs, shape, attributes=None, domain="") -> ir.Value:
        node = ir.node(
            op_type, inputs, attributes or {}, domain=domain, name=self.name(op_type)
        )
        self.graph.append(node)
        result = node.outputs[0]
        result.name, result.type = node.name, ir.TensorType(ir.DataType.FLOAT)
        result.shape = ir.Shape([ir.SymbolicDim("N"), *shape])
        return result

    def image(self) -> Tensor:
        """A tensor of three dimensions."""
        return self.draw.choice([t for t in self.tensors if len(t.shape) == 3])

    def chance(self, share: float) -> bool:
        return self.draw.random() < share

    def step_size(self, top: float, levels: int) -> float:
        step = max(top, 1e-3) / max(levels, 1) * self.draw.uniform(0.4, 2.0)
        # Powers of two make ties of rounding frequent.
        return float(F32(2.0 ** round(np.log2(step)) if self.chance(0.4) else step))

    def quantize(self, value, shape, top, role="glue") -> Tensor:
        """Put a grid of random bits, sign and zero point behind `value`."""
        bits, kind = self.draw.choice([8, 8, 8, 6, 4, 3, 2, 1]), self.draw.randrange(3)
        levels = (1 << bits) - 1
        zero_points = [self.draw.randint(0, levels)] if kind == 2 else []
        step = self.step_size(top, levels if kind == 0 else max(levels // 2, 1))
        return self.grid(value, shape, top, step, bits, int(kind > 0), zero_points, role)

    def grid(self, value, shape, top, step, bits, signed, zero_points, role="glue") -> Tensor:
        name = self.name("glue_t" if role == "glue" else "t")
        attributes = {
            "name": name, "role": role, "bits": [bits], "signed": signed,
            "zero_points": ir.AttrInt64s("zero_points", zero_points),
        }  # fmt: skip
        steps = self.const(np.full((1, 1), step, F32), "step")
        result = self.op("FakeQuant", [value, steps], shape, attributes, "qtool")
        tensor = Tensor(result, shape, min(top, step * (1 << bits)))
        self.tensors.append(tensor)
        return tensor

    def weight(self, shape, bits: int = 0) -> tuple[ir.Value, float]:
        """A weight of `bits`, random ones unless given; returns it and its magnitude."""
        bits = bits or self.draw.choice([8, 8, 4, 4, 3, 2, 1, 5, 6, 7])
        limit = max((1 << (bits - 1)) - 1, 1)
        channels = shape[0] if self.chance(0.7) else 1
        steps = self.rng.uniform(0.5, 1.5, (1, channels)) * 0.4 / limit
        steps = 2.0 ** np.rint(np.log2(steps)) if self.chance(0.4) else steps
        name = self.name("layer")
        attributes = {"name": name, "role": "weight", "bits": [bits], "signed": 1}
        floats = self.const((self.rng.standard_normal(shape) * 0.2).astype(F32), "w")
        inputs = [floats, self.const(steps.astype(F32), "step")]
        result = self.op("FakeQuant", inputs, (), attributes, "qtool")
        result.shape = ir.Shape(shape)
        return result, 0.2


def conv(net: Net, bits: int = 0) -> None:
    x = net.image()
    channels, height, width = x.shape
    groups = net.draw.choice([1, 1, channels, 2 if channels % 2 == 0 else 1])
    outputs = groups * net.draw.randint(1, max(1, 12 // groups))
    kernel = [net.draw.choice([1, 3, 3, 2, 5]) for _ in range(2)]
    dilation, stride = net.draw.choice([1, 1, 2]), net.draw.choice([1, 1, 2, 3])
    reach = [(k - 1) * dilation + 1 for k in kernel]
    pads = [net.draw.randint(0, (reach[i % 2] + 1) // 2) for i in range(4)]
    sizes = enumerate((height, width))
    size = [(n + pads[i] + pads[i + 2] - reach[i]) // stride + 1 for i, n in sizes]
    if min(size) < 1:
        return
    w, scale = net.weight((outputs, channels // groups, *kernel), bits)
    fan = channels // groups * kernel[0] * kernel[1]
    top = x.top * scale * fan**0.5 + 0.1
    shape = (outputs, *size)
    bias = [net.const((net.rng.standard_normal(outputs) * top / 3).astype(F32))]
    attributes = {
        "kernel_shape": kernel, "strides": [stride] * 2, "pads": pads,
        "dilations": [dilation] * 2, "group": groups,
    }  # fmt: skip
    y = net.op("Conv", [x.value, w, *(bias if net.chance(0.5) else [])], shape, attributes)
    if net.chance(0.5):
        y = norm(net, y, shape, top)
    net.quantize(activation(net, y, shape), shape, top)


def norm(net: Net, y: ir.Value, shape, top: float) -> ir.Value:
    gamma = net.rng.standard_normal(shape[0]) * top
    gamma[net.rng.random(shape[0]) < 0.15] *= net.draw.choice([0.0, 1e-4])
    beta, mean = net.rng.standard_normal((2, shape[0])) * top / 3
    var = net.rng.uniform(0.2, 2, shape[0]) * top**2
    values = [net.const(v.astype(F32)) for v in (gamma, beta, mean, var)]
    return net.op("BatchNormalization", [y, *values], shape)


def activation(net: Net, y: ir.Value, shape) -> ir.Value:
    kind = net.draw.randrange(4)
    if kind == 0:
        return net.op("Relu", [y], shape)
    if kind == 1:
        bounds = [net.const(F32(0)), net.const(F32(net.draw.choice([6.0, 0.7])))]
        return net.op("Clip", [y, *bounds], shape)
    return y


def affine(net: Net) -> None:
    x = net.image()
    y = activation(net, norm(net, x.value, x.shape, max(x.top, 0.1)), x.shape)
    net.quantize(y, x.shape, max(x.top, 0.1))


def add(net: Net) -> None:
    a = net.image()
    fits = [t for t in net.tensors if t.shape in (a.shape, (a.shape[0], 1, 1))]
    b = net.draw.choice(fits)
    if int(np.prod(a.shape)) == 1:
        return
    pair = [a.value, b.value] if net.chance(0.5) else [b.value, a.value]
    y = activation(net, net.op("Add", pair, a.shape), a.shape)
    net.quantize(y, a.shape, a.top + b.top)


def mul(net: Net) -> None:
    a = net.image()
    fits = [t for t in net.tensors if t.shape in (a.shape, (a.shape[0], 1, 1))]
    b = net.draw.choice(fits)
    net.quantize(net.op("Mul", [a.value, b.value], a.shape), a.shape, a.top * b.top)


def squeeze(net: Net) -> None:
    x = net.image()
    shape = (x.shape[0], 1, 1)
    net.quantize(net.op("GlobalAveragePool", [x.value], shape), shape, x.top / 2)


def function(net: Net) -> None:
    x = net.draw.choice(net.tensors)
    kind = net.draw.choice(["Sigmoid", "HardSigmoid", "Swish", "LeakyRelu", "Hardswish"])
    if kind == "Hardswish":
        gate = net.op("HardSigmoid", [x.value], x.shape, {"alpha": 1 / 6})
        gate = net.grid(gate, x.shape, 1.0, PIXEL, 8, 0, []).value
        y = net.op("Mul", [x.value, gate], x.shape)
    elif kind == "Swish":
        y = net.op("Mul", [x.value, net.op("Sigmoid", [x.value], x.shape)], x.shape)
    else:
        known = {"HardSigmoid": {"alpha": 1 / 6}, "LeakyRelu": {"alpha": 0.1}}
        y = net.op(kind, [x.value], x.shape, known.get(kind))
    if kind.endswith("igmoid") and net.chance(0.5):
        net.grid(y, x.shape, 1.0, PIXEL, 8, 0, [])
    else:
        net.quantize(y, x.shape, 1.0 if kind.endswith("igmoid") else x.top)


def pool(net: Net) -> None:
    x = net.image()
    channels, *size = x.shape
    kernel, stride = net.draw.choice([2, 3]), net.draw.choice([1, 2])
    pads = [net.draw.randint(0, kernel // 2) for _ in range(4)]
    size = [(n + pads[i] + pads[i + 2] - kernel) // stride + 1 for i, n in enumerate(size)]
    if min(size) < 1:
        return
    attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
    shape = (channels, *size)
    if net.chance(0.5):
        attributes["count_include_pad"] = 1
        net.quantize(net.op("AveragePool", [x.value], shape, attributes), shape, x.top)
    else:
        net.tensors.append(
            Tensor(net.op("MaxPool", [x.value], shape, attributes), shape, x.top)
        )


def concat(net: Net) -> None:
    x = net.image()
    others = [t for t in net.tensors if t.shape[1:] == x.shape[1:]]
    parts = [x, *net.draw.choices(others, k=net.draw.randint(1, 2))]
    shape = (sum(t.shape[0] for t in parts), *x.shape[1:])
    if shape[0] > 24:
        return
    y = net.op("Concat", [t.value for t in parts], shape, {"axis": 1})
    net.quantize(y, shape, max(t.top for t in parts))


def move(net: Net) -> None:
    x = net.image()
    channels, height, width = x.shape
    kind = net.draw.choice(["pad", "slice", "shuffle", "upsample", "split", "transpose"])
    if kind == "pad":
        ends = [net.draw.randint(0, 2) for _ in range(6)]
        pads = [0, *ends[:3], 0, *ends[3:]]
        shape = tuple(n + pads[i + 1] + pads[i + 5] for i, n in enumerate(x.shape))
        y = net.op("Pad", [x.value, net.const(np.int64(pads))], shape)
    elif kind == "slice":
        start, step = net.draw.randint(0, height - 1), net.draw.randint(1, 3)
        shape = (channels, len(range(start, height, step)), width)
        bounds = [net.const(np.int64([n])) for n in (start, 2**62, 2, step)]
        y = net.op("Slice", [x.value, *bounds], shape)
    elif kind == "shuffle":
        parts = 2 if channels % 2 == 0 else 1
        wide = (parts, channels // parts, height, width)
        y = net.op("Reshape", [x.value, net.const(np.int64([0, *wide]))], wide)
        turned = (wide[1], wide[0], height, width)
        y = net.op("Transpose", [y], turned, {"perm": [0, 2, 1, 3, 4]})
        shape = x.shape
        y = net.op("Reshape", [y, net.const(np.int64([0, *shape]))], shape)
    elif kind == "upsample" and height * width <= 64:
        factors = [net.draw.randint(1, 2), net.draw.randint(1, 3)]
        shape = (channels, height * factors[0], width * factors[1])
        attributes = {
            "mode": "nearest", "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        }  # fmt: skip
        scales = net.const(F32([1, 1, *factors]))
        y = net.op("Resize", [x.value, None, scales], shape, attributes)
    elif kind == "split" and channels > 1:
        cut = net.draw.randint(1, channels - 1)
        sizes = net.const(np.int64([cut, channels - cut]))
        inputs, name = [x.value, sizes], net.name("Split")
        node = ir.node("Split", inputs, {"axis": 1}, num_outputs=2, name=name)
        net.graph.append(node)
        for out, size in zip(node.outputs, (cut, channels - cut), strict=True):
            out.name, out.type = net.name("part"), ir.TensorType(ir.DataType.FLOAT)
            out.shape = ir.Shape([ir.SymbolicDim("N"), size, height, width])
            net.tensors.append(Tensor(out, (size, height, width), x.top))
        return
    else:
        shape = (channels, width, height)
        y = net.op("Transpose", [x.value], shape, {"perm": [0, 1, 3, 2]})
    net.tensors.append(Tensor(y, shape, x.top))


def regrid(net: Net) -> None:
    x = net.draw.choice(net.tensors)
    net.quantize(activation(net, x.value, x.shape), x.shape, x.top)


STEPS = (
    conv, conv, conv, affine, add, add, mul, squeeze, function, function, pool, concat, move,
    move, regrid,
)  # fmt: skip


def classify(net: Net) -> None:
    """Flatten or average the last tensor, a linear layer, the output."""
    x = net.tensors[-1]
    if len(x.shape) == 3 and net.chance(0.5):
        shape = (x.shape[0], 1, 1)
        x = net.quantize(net.op("GlobalAveragePool", [x.value], shape), shape, x.top)
    inputs = int(np.prod(x.shape))
    flat = net.op("Flatten", [x.value], (inputs,), {"axis": 1})
    outputs = net.draw.randint(1, 5)
    w, scale = net.weight((outputs, inputs))
    if net.chance(0.3):
        turned = net.op("Transpose", [w], (), {"perm": [1, 0]})
        turned.shape = ir.Shape([inputs, outputs])
        y = net.op("MatMul", [flat, turned], (outputs,))
    else:
        bias = net.const((net.rng.standard_normal(outputs) * x.top).astype(F32))
        y = net.op("Gemm", [flat, w, bias], (outputs,), {"transB": 1})
    top = x.top * scale * inputs**0.5 + 0.1
    net.grid(y, (outputs,), top, net.step_size(top, 127), 8, 1, [], "output")


def make(
    seed: int, steps: int | None = None, kinds: Sequence[Callable[[Net], None]] = STEPS
) -> tuple[ir.Model, tuple[int, ...], bool]:
    """Return an adaptive graph, its image shape, and whether it can take raw pixels.

    Args:
        seed: determines it.
        steps: how many, at most; None for as many as the seed says.
        kinds: what a step may be.
    """
    draw = random.Random(seed)
    shape = (draw.randint(1, 5), draw.randint(1, 9), draw.randint(1, 9))
    total, raw = draw.randint(3, 9), draw.random() < 0.3
    x = ir.Value(
        name="x", type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([ir.SymbolicDim("N"), *shape]),
    )  # fmt: skip
    graph = ir.Graph([x], [], nodes=[], name="fuzz", opset_imports={"": 21, "qtool": 1})
    net = Net(graph, draw, np.random.default_rng(seed))
    if raw:
        net.grid(x, shape, 1.0, PIXEL, 8, 0, [], "activation")
    else:
        net.quantize(x, shape, 2.0, "input")
    for index in range(total if steps is None else min(steps, total)):
        net.draw = random.Random(f"{seed} {index}")
        net.rng = np.random.default_rng([seed, index])
        net.draw.choice(kinds)(net)
    net.draw, net.rng = random.Random(f"{seed} end"), np.random.default_rng([seed, 99])
    classify(net)
    graph.outputs.append(net.tensors[-1].value)
    return ir.Model(graph, ir_version=10), shape, raw


def images(seed: int, shape: tuple[int, ...], batch: int) -> np.ndarray:
    """Floats inside and outside the input's range."""
    return np.random.default_rng([seed, 1]).normal(0.5, 1.0, (batch, *shape)).astype(F32)


if __name__ == "__main__":
    from fuzz_check import check

    seed, steps, unit = (*sys.argv[1:], "99", "")[:3]
    sys.stdout.write(f"{check(int(seed), int(steps), unit) or 'no mismatch'}\n")
