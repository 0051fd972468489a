"""TVM functions that move codes: every element of the result names the one it copies."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx

from qtool.core.dialect import Concat, Op, Pad, Reshape, Slice, Transpose, Upsample

Tensor = Any
Expr = Any
# A kernel's constants (weights, factors, bias, table) and the tensor expression of its result.
Kernel = tuple[list[np.ndarray[Any, Any]], Callable[..., Tensor]]
Index = tuple[Expr, ...]


def _copies(op: Op, source: Callable[[Index], Index]) -> Kernel:
    """Return the kernel ``y[n, i...] = x[n, source(i)...]``."""

    def build(x: Tensor) -> Tensor:
        shape = (x.shape[0], *op.shape)
        return te.compute(shape, lambda n, *i: x[(n, *source(i))], "moved")

    return [], build


def _slice(op: Slice) -> Kernel:
    parts = list(zip(op.starts, op.steps, strict=True))
    return _copies(op, lambda i: tuple(a + k * s for k, (a, s) in zip(i, parts, strict=True)))


def _upsample(op: Upsample) -> Kernel:
    return _copies(
        op, lambda i: tuple(tirx.floordiv(k, f) for k, f in zip(i, op.factors, strict=True))
    )


def _transpose(op: Transpose) -> Kernel:
    # y's axis k is x's axis perm[k]; the batch stays first.
    place = [op.perm.index(axis) - 1 for axis in range(1, len(op.perm))]
    return _copies(op, lambda i: tuple(i[k] for k in place))


def _reshape(op: Reshape) -> Kernel:
    def build(x: Tensor) -> Tensor:
        before = [int(n) for n in x.shape[1:]]

        def element(n: Expr, *i: Expr) -> Expr:
            flat = sum(k * prod(op.shape[d + 1 :]) for d, k in enumerate(i))
            place = [
                tirx.floormod(tirx.floordiv(flat, prod(before[d + 1 :])), size)
                for d, size in enumerate(before)
            ]
            return x[(n, *place)]

        return te.compute((x.shape[0], *op.shape), element, "reshaped")

    return [], build


def _pad(op: Pad) -> Kernel:
    def build(x: Tensor) -> Tensor:
        sizes = [int(n) for n in x.shape[1:]]

        def element(n: Expr, *i: Expr) -> Expr:
            parts = list(zip(i, op.before, sizes, strict=True))
            inside = tirx.all(*[tirx.all(k >= b, k < b + s) for k, b, s in parts])
            code = tirx.const(op.code, "uint8")
            return tirx.if_then_else(inside, x[(n, *(k - b for k, b, _ in parts))], code)

        return te.compute((x.shape[0], *op.shape), element, "padded")

    return [], build


def _concat(op: Concat) -> Kernel:
    def build(*xs: Tensor) -> Tensor:
        def element(*i: Expr) -> Expr:
            place, start = i[op.axis], sum(int(x.shape[op.axis]) for x in xs)
            result = None
            for x in reversed(xs):
                start -= int(x.shape[op.axis])
                value = x[(*i[: op.axis], place - start, *i[op.axis + 1 :])]
                later = result
                result = (
                    value
                    if later is None
                    else tirx.if_then_else(place < start + int(x.shape[op.axis]), value, later)
                )
            return result

        return te.compute((xs[0].shape[0], *op.shape), element, "joined")

    return [], build


MOVES: dict[type[Op], Callable[[Any], Kernel]] = {
    Reshape: _reshape, Transpose: _transpose, Concat: _concat, Slice: _slice, Pad: _pad,
    Upsample: _upsample,
}  # fmt: skip
