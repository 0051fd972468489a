"""Programs of the dialect written operator by operator, and all their integers in TVM."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from arrays import random_weights

from passes.emit.tvm.compile import compile_program
from passes.emit.tvm.cpu.plan.plan import Plan, make_plan
from passes.emit.tvm.cpu.vectors.units import vectors
from passes.emit.tvm.cpu_target import CpuTarget
from qtool.core import numerics
from qtool.core.dialect import (
    Add,
    Average,
    Concat,
    Conv,
    FloatGemm,
    Gemm,
    Grid,
    Lookup,
    MaxPool,
    Mul,
    Op,
    Pad,
    Program,
    Quantize,
    Reshape,
    Slice,
    Transpose,
    Upsample,
)
from qtool.core.selection import LayerBits
from runtimes.compare import Parity
from runtimes.reference import ReferenceRuntime
from runtimes.tvm import TvmRuntime

F32 = np.float32
BITS = LayerBits(8, 8)
UNIT = "avx512_vbmi"


@dataclass
class Net:
    """A program under construction: every method adds an operator, returns its tensor.

    Tensors are called t0, t1, ... in order of execution. With `wild`, results also have
    windows, zero points at either end and sums far out of range.
    """

    shape: tuple[int, ...]
    raw: bool = True
    seed: int = 0
    wild: bool = False
    ops: list[Op] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.shapes = {"x": self.shape}
        self.input = "x" if self.raw else self.op(Quantize, "x", self.shape)

    def grid(self, scale: float = 0.0) -> Grid:
        """A grid with a random zero point and, unless given, a random scale near 1."""
        zero_point = int(self.rng.integers(0, 256))
        if self.wild and self.rng.random() < 0.5:
            zero_point = int(self.rng.choice([0, 0, 128, 255]))
        return Grid(F32(scale or self.rng.uniform(0.4, 1.3)), zero_point)

    def weights(self, *shape: int) -> Any:
        """Codes of 8 bits; of 4, 3 or 2 now and then where results are wild."""
        limit = self.rng.choice([127, 127, 7, 3, 1]) if self.wild else 127
        return random_weights(self.rng, *shape).clip(-limit, limit).astype(np.int8)

    def window(self) -> dict[str, int]:
        """Where results are clipped: nowhere, on one side or on both."""
        ends = [(0, 255), (0, 15), (0, 200), (9, 255), (40, 170)]
        lo, hi = ends[self.rng.integers(len(ends)) if self.wild else 0]
        return {"lo": lo, "hi": hi}

    def op(
        self, kind: type[Op], inputs: str | Sequence[str], shape: Sequence[int], **fields: Any
    ) -> str:
        names = (inputs,) if isinstance(inputs, str) else tuple(inputs)
        output = f"t{len(self.ops)}"
        common = {"grid": fields.pop("grid", None) or self.grid(), "lo": 0, "hi": 255}
        if kind in (Conv, Gemm, Add, Mul, Average, Quantize):
            common |= self.window()
        made = kind(
            f"layer{len(self.ops)}", output, names, shape=tuple(shape), **common, **fields
        )
        self.ops.append(made)
        self.shapes[output] = made.shape
        return output

    def conv(self, source: str, outputs: int, kernel: int = 3, **fields: Any) -> str:
        """A convolution, "same" unless `pads` are given."""
        channels, *size = self.shapes[source]
        found: dict[str, Any] = {
            "strides": (1, 1), "pads": (kernel // 2,) * 4, "dilations": (1, 1), "groups": 1,
            "x": self.grid(1.0), "bits": BITS,
        } | fields  # fmt: skip
        w = self.weights(outputs, channels // found["groups"], kernel, kernel)
        pads, reach = found["pads"], [(kernel - 1) * d + 1 for d in found["dilations"]]
        sized = [
            (n + pads[i] + pads[i + 2] - reach[i]) // found["strides"][i] + 1
            for i, n in enumerate(size)
        ]
        return self.op(
            Conv, source, (outputs, *sized), w_OIHW=w, w_scale=self._scales(w),
            bias=self._bias(outputs), **found,
        )  # fmt: skip

    def gemm(self, x: str, outputs: int, kind: type[Gemm] = Gemm, **fields: Any) -> str:
        """A linear layer."""
        w = self.weights(outputs, self.shapes[x][0])
        if kind is FloatGemm:
            fields["grid"] = Grid(F32(1), 0)
        return self.op(
            kind, x, (outputs,), x=self.grid(1.0), w_OI=w, w_scale=self._scales(w),
            bias=self._bias(outputs), bits=BITS, **fields,
        )  # fmt: skip

    def _scales(self, w: Any) -> Any:
        """Scales that spread the results over the codes."""
        fan = prod(w.shape[1:])
        loud = 1e6 if self.wild and self.rng.random() < 0.1 else 127 / np.abs(w).max()
        return (self.rng.uniform(0.5, 1.5, len(w)) * loud / (70 * fan**0.5)).astype(F32)

    def _bias(self, outputs: int) -> Any:
        return self.rng.integers(-5000, 5000, outputs).astype(np.int32)

    def add(self, a: str, b: str) -> str:
        """A sum; the second operand may be broadcast."""
        return self.op(Add, (a, b), self.shapes[a], a=self.grid(), b=self.grid())

    def mul(self, a: str, b: str) -> str:
        """A product; the second operand may be broadcast."""
        return self.op(Mul, (a, b), self.shapes[a], a=self.grid(0.1), b=self.grid(0.05))

    def average(self, x: str) -> str:
        channels, height, width = self.shapes[x]
        count = height * width
        return self.op(Average, x, (channels, 1, 1), x=self.grid(1.0), count=count)

    def lookup(self, x: str) -> str:
        table = self.rng.integers(0, 256, 256).astype(np.uint8)
        return self.op(Lookup, x, self.shapes[x], table=table)

    def reshape(self, x: str, *shape: int) -> str:
        return self.op(Reshape, x, shape)

    def flatten(self, x: str) -> str:
        return self.reshape(x, prod(self.shapes[x]))

    def pool(self, x: str, kernel: int) -> str:
        """A maximum of every `kernel` x `kernel` codes, padded as convolutions are."""
        pads = (kernel // 2,) * 4
        return self.op(
            MaxPool, x, self.shapes[x], kernel=(kernel, kernel), strides=(1, 1), pads=pads
        )

    def concat(self, *xs: str) -> str:
        """Channels side by side."""
        total = sum(self.shapes[x][0] for x in xs)
        return self.op(Concat, xs, (total, *self.shapes[xs[0]][1:]), axis=1)

    def pad(self, x: str) -> str:
        """A border of 2 pixels, and 3 channels in front."""
        channels, height, width = self.shapes[x]
        shape = (channels + 3, height + 4, width + 4)
        return self.op(Pad, x, shape, before=(3, 2, 2), code=77)

    def cut(self, x: str) -> str:
        """All channels but one, every second row and every third column."""
        channels, height, width = self.shapes[x]
        shape = (channels - 1, (height - 1) // 2, (width - 1) // 3)
        return self.op(Slice, x, shape, starts=(1, 1, 1), steps=(1, 2, 3))

    def upsample(self, x: str) -> str:
        """Every pixel 2 x 3 times."""
        channels, height, width = self.shapes[x]
        return self.op(Upsample, x, (channels, 2 * height, 3 * width), factors=(1, 2, 3))

    def shuffle(self, x: str) -> str:
        """ShuffleNet's shuffle of channels, as two groups."""
        channels, height, width = self.shapes[x]
        wide = self.reshape(x, 2, channels // 2, height, width)
        turned = (channels // 2, 2, height, width)
        return self.reshape(
            self.op(Transpose, wide, turned, perm=(0, 2, 1, 3, 4)), *self.shapes[x]
        )

    def hardswish(self, x: str) -> str:
        """Two look-ups and a product."""
        return self.mul(x, self.lookup(self.lookup(x)))

    def program(self, output: str | None = None) -> Program:
        """The program; its output is the last tensor unless named."""
        made = {op.output: op for op in self.ops}
        last = made[output or self.ops[-1].output]
        kind = "uint8" if self.raw else "float32"
        return Program("x", self.shape, kind, "y", last.output, last.grid, tuple(self.ops), {})

    def plan(self, output: str | None = None) -> Plan:
        return make_plan(self.program(output), vectors(UNIT))

    def images(self, count: int) -> Any:
        codes = self.rng.integers(0, 256, (count, *self.shape)).astype(np.uint8)
        if self.raw:
            return codes
        grid = self.ops[0].grid
        return numerics.dequantize(codes, grid.scale, grid.zero_point)


# Expansion, channels, repeats, stride of MobileNet-v2's blocks.
_BLOCKS = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
    (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def mobilenet_v2(size: int, blocks: int = len(_BLOCKS)) -> Net:
    """MobileNet-v2 for images of `size` x `size`, cut after some kinds of blocks."""
    net = Net((3, size, size), raw=False)
    x = net.conv(net.input, 32, 3, strides=(2, 2))
    for expansion, channels, repeats, stride in _BLOCKS[:blocks]:
        for index in range(repeats):
            before, step = x, stride if index == 0 else 1
            wide = net.shapes[x][0] * expansion
            x = net.conv(x, wide, 1) if expansion > 1 else x
            x = net.conv(x, wide, 3, strides=(step, step), groups=wide)
            x = net.conv(x, channels, 1)
            x = net.add(before, x) if index else x
    x = net.average(net.conv(x, 4 * net.shapes[x][0], 1))
    net.gemm(net.flatten(x), 10)
    return net


def resnet(channels: Sequence[int], size: int) -> Net:
    """A ResNet of two basic blocks a stage, for images of `size` x `size`."""
    net = Net((3, size, size), raw=False)
    x = net.conv(net.input, channels[0], 7, strides=(2, 2))
    for stage, count in enumerate(channels):
        for index in range(2):
            step = 2 if stage and not index else 1
            y = net.conv(net.conv(x, count, 3, strides=(step, step)), count, 3)
            x = net.add(y, x if step == 1 else net.conv(x, count, 1, strides=(2, 2)))
    net.gemm(net.flatten(net.average(x)), 10)
    return net


def everything() -> Program:
    """A program of every operator but an island."""
    net = Net((4, 6, 6), raw=False)
    x = net.conv(net.input, 4)
    x = net.add(x, net.mul(x, net.average(x)))
    x = net.concat(net.pool(net.shuffle(x), 3), net.lookup(x))
    x = net.cut(net.pad(net.upsample(x)))
    x = net.gemm(net.flatten(x), 5)
    net.gemm(x, 3, FloatGemm)
    return net.program()


def exact(
    net: Net, output: str | None = None, batch: int = 1, target: CpuTarget | None = None
) -> dict[str, Any]:
    """Fail unless TVM's integers and floats are the reference's; return the module's facts."""
    program, x = net.program(output), net.images(batch)
    compiled = compile_program(program, target, batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.so"
        path.write_bytes(compiled.data)
        runtime, reference = TvmRuntime(path), ReferenceRuntime(program)
        parity, facts = Parity(), compiled.module.facts
        got = runtime.intermediates(x)
        parity.add_all(reference.intermediates(x), got, facts["fused_tensors"])
        assert parity.mismatched == 0, parity.first_divergence
        assert len(got) + len(facts["fused_tensors"]) == len(program.tensors())
        assert np.array_equal(runtime.run(x), reference.run(x))
    return facts
