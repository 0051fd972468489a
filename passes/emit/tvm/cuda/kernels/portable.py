"""Kernels from tensor expressions, a thread for each byte of the result: for any operator.

`passes.emit.tvm.te_kernels` has a tensor expression for every operator, on logical shapes.
Here it reads and writes tensors as they are stored, and is scheduled for threads: everything
between is computed where it is used, sums in a register of the thread.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import tvm_ffi
from numpy.typing import NDArray
from tvm import s_tir, te, tirx
from tvm.ir import Call

from passes.emit.tvm.cpu.kernels.layout import Layout
from passes.emit.tvm.cuda.intrinsics import FMA
from passes.emit.tvm.cuda.kernels.tir import stored_shape
from passes.emit.tvm.te_kernels import dequantize, kernel
from qtool.core.dialect import FloatGemm, Grid, Op, Quantize

_THREADS = 256
_THREAD_INDEX = tirx.IterVar.ThreadIndex


@dataclass(frozen=True, eq=False)
class Portable:
    """The plain kernel of one operator; no two are shared.

    Args:
        batch: images.
        op: the operator.
        inputs: layouts of its inputs.
        output: layout of its result.
    """

    batch: int
    op: Op
    inputs: tuple[Layout, ...]
    output: Layout

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return f"plain_{type(self.op).__name__.lower()}"

    def constants(self) -> tuple[NDArray[Any], ...]:
        """Return its weights and numbers."""
        return tuple(kernel(self.op)[0])

    def build(self, name: str) -> Any:
        """Return the function (inputs, constants, result)."""
        arrays, build = kernel(self.op)
        kind = "float32" if isinstance(self.op, Quantize) else "uint8"
        inputs = [
            _placeholder(self.batch, layout, kind, f"x{i}")
            for i, layout in enumerate(self.inputs)
        ]
        views = [_logical(x, layout) for x, layout in zip(inputs, self.inputs, strict=True)]
        constants = [
            te.placeholder(a.shape, str(a.dtype), f"c{i}") for i, a in enumerate(arrays)
        ]
        result = build(*views, *constants)
        if not isinstance(self.op, FloatGemm):
            result = _stored(result, self.output)
        return scheduled([*inputs, *constants, result], name)


@dataclass(frozen=True)
class PlainDequantize:
    """Codes to floats in logical order, the model's output."""

    batch: int
    scale: float
    zero_point: int
    layout: Layout

    def name(self) -> str:
        """Return a readable part of the function's name."""
        return "plain_dequantize"

    def build(self, name: str) -> Any:
        """Return the function (codes, floats)."""
        codes = _placeholder(self.batch, self.layout, "uint8", "codes")
        floats = dequantize(Grid(self.scale, self.zero_point))(_logical(codes, self.layout))  # type: ignore[arg-type]
        return scheduled([codes, floats], name)


def _placeholder(batch: int, layout: Layout, kind: str, name: str) -> Any:
    return te.placeholder(stored_shape(batch, layout), kind, name)


def _logical(x: Any, layout: Layout) -> Any:
    """Return a stored tensor as one in its logical shape."""
    if layout.plain:
        return x

    def element(image: Any, channel: Any, *pixel: Any) -> Any:
        row, column = pixel or (0, 0)
        return x[image, row, column, channel]

    return te.compute((x.shape[0], *layout.shape), element, f"{x.op.name}_view")


def _stored(result: Any, layout: Layout) -> Any:
    """Return a logical result as it is stored; channels that fill a pixel up are 0."""
    if layout.plain:
        return te.compute(result.shape, lambda *index: result[index], "stored")

    def byte(image: Any, row: Any, column: Any, channel: Any) -> Any:
        code = result[(image, channel, row, column)[: 1 + len(layout.shape)]]
        if layout.pixel == layout.channels:
            return code
        return tirx.if_then_else(channel < layout.channels, code, tirx.const(0, "uint8"))

    return te.compute(stored_shape(int(result.shape[0]), layout), byte, "stored")


def scheduled(tensors: list[Any], name: str) -> Any:
    """Return the function of `tensors`, the last its result, a thread for each element."""
    function = te.create_prim_func(tensors).with_attr("global_symbol", name)
    schedule = s_tir.Schedule(function)
    *before, last = schedule.get_child_blocks(schedule.get_sblock("root"))
    sums = []
    for block in before:
        if _reduces(schedule, block):
            sums.append(block)
        else:
            schedule.compute_inline(block)
    # Sums first: behind the loops' fusion their bindings are no longer affine.
    innermost = schedule.get_loops(last)[-1]
    for block in reversed(sums):
        schedule.compute_at(block, innermost, preserve_unit_loops=True)
        schedule.set_scope(block, 0, "local")
        schedule.decompose_reduction(block, _own_loops(schedule, block, last)[0])
    count = prod(int(n) for n in tensors[-1].shape)
    every = schedule.fuse(*schedule.get_loops(last))
    outer, inner = schedule.split(every, [None, min(_THREADS, count)])
    bound = {"blockIdx.x": schedule.get(outer), "threadIdx.x": schedule.get(inner)}
    found = schedule.mod["main"]
    return found.with_body(_with_fma(_bound(found.body, bound)))


def _bound(body: Any, axes: dict[str, Any]) -> Any:
    """Bind loops to threads; `Schedule.bind` refuses sums that are not whole any more."""

    def loop(node: Any) -> Any:
        for tag, wanted in axes.items():
            if node.loop_var.same_as(wanted.loop_var):
                axis = tirx.IterVar(None, tirx.Var(tag, "int32"), _THREAD_INDEX, tag)
                return tirx.For(
                    node.loop_var, node.min, node.extent, tirx.ForKind.THREAD_BINDING,
                    node.body, axis,
                )  # fmt: skip
        return node

    return tvm_ffi.structural_map(body, (tirx.For, loop))


def _own_loops(schedule: Any, block: Any, last: Any) -> list[Any]:
    """Return the loops around `block` that are not around `last`."""
    return list(schedule.get_loops(block))[len(schedule.get_loops(last)) :]


def _reduces(schedule: Any, block: Any) -> bool:
    kinds = (variable.iter_type for variable in schedule.get(block).iter_vars)
    return any(kind == tirx.IterVar.CommReduce for kind in kinds)


def _with_fma(body: Any) -> Any:
    """Spell fused multiply-adds as the GPU does."""
    fma = tirx.call_llvm_pure_intrin("float32", "llvm.fma", *[tirx.const(0.0, "float32")] * 3)

    def spelled(call: Call) -> Any:
        same = call.op.same_as(fma.op) and int(call.args[0]) == int(fma.args[0])
        return FMA(*call.args[1:]) if same else call

    return tvm_ffi.structural_map(body, (Call, spelled))
