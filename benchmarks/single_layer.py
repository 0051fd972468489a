"""One layer of a program as a program of its own, so that a whole module times one kernel.

The layer's codes come in as they are (uint8), and its result is read at a single pixel only: a
layer in a network is not dequantized either. The program holds the layer several times, which
leaves what is done once, such as bringing the image into the kernels' layout, out of the
difference between two numbers of copies. Every copy has weights of its own, as layers have.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.core.cost import conv_macs
from qtool.core.dialect import Add, Conv, Gemm, Op, Program, weight_of

Layer = Conv | Gemm


@dataclass(frozen=True)
class Site:
    """Layers of one shape.

    Args:
        op: the first of them.
        input_shape: of its input, without batch.
        names: of all of them.
    """

    op: Layer
    input_shape: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one of them."""
        return conv_macs((1, *self.op.shape), weight_of(self.op).shape)

    @property
    def geometry(self) -> str:
        """``64x56x56 3x3/1 -> 64x56x56``, with the number of groups where there are more."""
        ends = ["x".join(map(str, shape)) for shape in (self.input_shape, self.op.shape)]
        if not isinstance(self.op, Conv):
            return f"{ends[0]} -> {ends[1]}"
        kernel = "x".join(map(str, self.op.w_OIHW.shape[2:]))
        groups = f" groups {self.op.groups}" if self.op.groups > 1 else ""
        return f"{ends[0]} {kernel}/{self.op.strides[0]}{groups} -> {ends[1]}"


def sites(program: Program) -> list[Site]:
    """Return the convolutions and linear layers of `program`, one entry a shape."""
    shapes = program.shapes()
    found: dict[Any, list[Layer]] = {}
    for op, _ in program.layers():
        key: tuple[Any, ...] = (shapes[op.inputs[0]], op.shape, weight_of(op).shape)
        if isinstance(op, Conv):
            key += (op.strides, op.pads, op.dilations)
        found.setdefault(key, []).append(op)
    return [
        Site(ops[0], shapes[ops[0].inputs[0]], tuple(op.name for op in ops))
        for ops in found.values()
    ]


def repeated(site: Site, copies: int) -> Program:
    """Return a program that computes the layer `copies` times from one uint8 input."""
    ops = list(_ops(site, copies))
    return Program(
        "input", site.input_shape, "uint8", "output", ops[-1].output, ops[-1].grid,
        tuple(ops), {},
    )  # fmt: skip


def _ops(site: Site, copies: int) -> Iterator[Op]:
    """Yield every copy, what reads a pixel of it, and the sum so far."""
    total: Op | None = None
    for index in range(copies):
        last: Op = _copy(site.op, index)
        yield last
        if last.shape[1:] not in ((), (1, 1)):
            last = _pixel(last)
            yield last
        if total is not None:
            last = _add(total, last)
            yield last
        total = last


def _copy(op: Layer, index: int) -> Layer:
    """Return the layer with its output channels rotated by `index`, named after it."""
    kind = Conv if isinstance(op, Conv) else Gemm  # also of a linear layer with float result
    fields = {item.name: getattr(op, item.name) for item in dataclasses.fields(kind)}
    weight = "w_OIHW" if isinstance(op, Conv) else "w_OI"
    for name in (weight, "w_scale", "bias"):
        if len(fields[name]) > 1:
            fields[name] = np.roll(fields[name], index, axis=0)
    layer: Layer = kind(**fields | {"output": f"copy{index}", "inputs": ("input",)})
    return layer


def _pixel(op: Op) -> Conv:
    """Return a convolution of 16 outputs that reads one pixel of `op`."""
    channels, height, width = op.shape
    outputs = 16
    return Conv(
        name=f"{op.output}.pixel", output=f"{op.output}.pixel", inputs=(op.output,),
        grid=op.grid, lo=0, hi=255, shape=(outputs, 1, 1), x=op.grid,
        w_OIHW=np.ones((outputs, channels, 1, 1), np.int8),
        w_scale=np.full(outputs, 1 / channels, np.float32), bias=np.zeros(outputs, np.int32),
        strides=(height, width), pads=(0, 0, 0, 0), dilations=(1, 1), groups=1, bits=None,
    )  # fmt: skip


def _add(a: Op, b: Op) -> Add:
    return Add(
        name=f"{b.output}.sum", output=f"{b.output}.sum", inputs=(a.output, b.output),
        grid=b.grid, lo=0, hi=255, shape=b.shape, a=a.grid, b=b.grid,
    )  # fmt: skip
