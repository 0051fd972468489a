"""One TVM function per dialect operator, written as tensor expressions: exact on every target.

Plain loops, int32 accumulation, then `requantize`; no schedule, no vector intrinsics. Each
mirrors a formula of `qtool.core.numerics`: `nearbyint` rounds half to even, `llvm.fma` rounds
once.

Suffixes as in `qtool.core.dialect`: NCHW activations, w_OIHW and w_OI weights.
"""

from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from passes.emit.tvm import te_moves
from passes.emit.tvm.te_moves import Expr, Kernel, Tensor
from qtool.core import numerics
from qtool.core.dialect import (
    Add,
    Average,
    Conv,
    FloatGemm,
    Gemm,
    Grid,
    Island,
    Lookup,
    MaxPool,
    Mul,
    Op,
    Quantize,
)
from qtool.core.errors import UnsupportedError


def kernel(op: Op) -> Kernel:
    """Return constants and a function (inputs..., constants...) -> result tensor."""
    build = KERNELS.get(type(op))
    if build is None:
        raise TypeError(f"{op.name}: {type(op).__name__} has no TVM kernel")
    return build(op)


def dequantize(grid: Grid) -> Callable[[Tensor], Tensor]:
    """Codes to floats: ``f32(q - z) * s``."""

    def build(q: Tensor) -> Tensor:
        scale = _f32(grid.scale)
        return te.compute(
            q.shape,
            lambda *i: (q[i].astype("int32") - grid.zero_point).astype("float32") * scale,
            "output",
        )

    return build


def _f32(value: Any) -> Expr:
    return tirx.const(float(value), "float32")


def _saturate(rounded: Expr, op: Op) -> Expr:
    """Clip rounded float codes to the operator's window; NaN is at its lower end."""
    clipped = tirx.min(tirx.max(rounded, _f32(op.lo)), _f32(op.hi))
    return clipped.astype("uint8")


def _requantize(acc: Expr, factor: Expr, op: Op) -> Expr:
    """``clip(rint(f32(acc) * factor) + zero_point)``."""
    rounded = tirx.nearbyint(acc.astype("float32") * factor)
    return _saturate(rounded + _f32(op.grid.zero_point), op)


def _fma(a: Expr, b: Expr, c: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin("float32", "llvm.fma", a, b, c)


def _quantize(op: Quantize) -> Kernel:
    def build(x: Tensor) -> Tensor:
        def code(*i: Expr) -> Expr:
            rounded = tirx.nearbyint(tirx.Div(x[i], _f32(op.grid.scale)))
            return _saturate(rounded + _f32(op.grid.zero_point), op)

        return te.compute(x.shape, code, "codes")

    return [], build


def _padded(x: Tensor, pads: tuple[int, int, int, int], value: int) -> Tensor:
    """Return `x` with its borders filled by the code `value`."""
    top, left, bottom, right = pads
    if not any(pads):
        return x
    n, c, h, w = x.shape

    def pixel(b: Expr, k: Expr, i: Expr, j: Expr) -> Expr:
        inside = tirx.all(i >= top, i < top + h, j >= left, j < left + w)
        border = tirx.const(value, "uint8")
        return tirx.if_then_else(inside, x[b, k, i - top, j - left], border)

    return te.compute((n, c, h + top + bottom, w + left + right), pixel, "padded")


def _conv(op: Conv) -> Kernel:
    factor = numerics.multiplier(op.x.scale, op.w_scale, op.grid.scale)
    outputs, per_group, kh, kw = op.w_OIHW.shape
    per_output = outputs // op.groups
    (sy, sx), (dy, dx) = op.strides, op.dilations

    def build(x: Tensor, w: Tensor, m: Tensor, bias: Tensor) -> Tensor:
        padded = _padded(x, op.pads, op.x.zero_point)
        c = te.reduce_axis((0, per_group), "c")
        i, j = te.reduce_axis((0, kh), "i"), te.reduce_axis((0, kw), "j")
        shape = (x.shape[0], *op.shape)

        def product(n: Expr, o: Expr, y: Expr, z: Expr) -> Expr:
            channel = tirx.floordiv(o, per_output) * per_group + c
            code = padded[n, channel, y * sy + i * dy, z * sx + j * dx].astype("int32")
            centred = code - op.x.zero_point
            return te.sum(centred * w[o, c, i, j].astype("int32"), [c, i, j])

        acc = te.compute(shape, product, "acc")
        return te.compute(
            shape,
            lambda n, o, y, z: _requantize(acc[n, o, y, z] + bias[o], m[o], op),
            "result",
        )

    return [op.w_OIHW, factor, op.bias], build


def _gemm(op: Gemm) -> Kernel:
    factor = numerics.multiplier(op.x.scale, op.w_scale, op.grid.scale)

    def build(x: Tensor, w: Tensor, m: Tensor, bias: Tensor) -> Tensor:
        k = te.reduce_axis((0, op.w_OI.shape[1]), "k")
        shape = (x.shape[0], *op.shape)
        acc = te.compute(
            shape,
            lambda n, o: te.sum(
                (x[n, k].astype("int32") - op.x.zero_point) * w[o, k].astype("int32"), [k]
            ),
            "acc",
        )

        def result(n: Expr, o: Expr) -> Expr:
            total = acc[n, o] + bias[o]
            if isinstance(op, FloatGemm):
                return total.astype("float32") * m[o]
            return _requantize(total, m[o], op)

        return te.compute(shape, result, "result")

    return [op.w_OI, factor, op.bias], build


def _add(op: Add) -> Kernel:
    ra, rb, c = numerics.add_coefficients(
        op.a.scale, op.a.zero_point, op.b.scale, op.b.zero_point, op.grid.scale,
        op.grid.zero_point,
    )  # fmt: skip

    def build(a: Tensor, b: Tensor) -> Tensor:
        def code(*i: Expr) -> Expr:
            inner = _fma(_at(b, i).astype("float32"), _f32(rb), _f32(c))
            return _saturate(tirx.nearbyint(_fma(a[i].astype("float32"), _f32(ra), inner)), op)

        return te.compute(a.shape, code, "sum")

    return [], build


def _at(x: Tensor, index: tuple[Expr, ...]) -> Expr:
    """Read a tensor whose dimensions of size 1, but for the batch, are broadcast."""
    sized = zip(x.shape, index, strict=True)
    place = [0 if k and int(n) == 1 else i for k, (n, i) in enumerate(sized)]
    return x[tuple(place)]


def _mul(op: Mul) -> Kernel:
    factor = numerics.multiply_factor(op.a.scale, op.b.scale, op.grid.scale)

    def build(a: Tensor, b: Tensor) -> Tensor:
        def code(*i: Expr) -> Expr:
            x = a[i].astype("int32") - op.a.zero_point
            y = _at(b, i).astype("int32") - op.b.zero_point
            # A product that LLVM must not fuse with the sum: ONNX Runtime rounds between.
            scaled = (x * y).astype("float32") * _f32(factor)
            return _saturate(tirx.nearbyint(scaled + _f32(op.grid.zero_point)), op)

        return te.compute(a.shape, code, "product")

    return [], build


def _average(op: Average) -> Kernel:
    factor = numerics.average_factor(op.x.scale, op.grid.scale, op.count)

    def build(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        i, j = te.reduce_axis((0, h), "i"), te.reduce_axis((0, w), "j")
        total = te.compute(
            (n, c, 1, 1),
            lambda b, k, y, z: te.sum(x[b, k, i, j].astype("int32") - op.x.zero_point, [i, j]),
            "total",
        )
        return te.compute(
            (n, c, 1, 1), lambda *i: _requantize(total[i], _f32(factor), op), "mean"
        )

    return [], build


def _lookup(op: Lookup) -> Kernel:
    def build(x: Tensor, answers: Tensor) -> Tensor:
        return te.compute(x.shape, lambda *i: answers[x[i].astype("int32")], "answers")

    return [op.table], build


def _max_pool(op: MaxPool) -> Kernel:
    (kh, kw), (sy, sx) = op.kernel, op.strides

    def build(x: Tensor) -> Tensor:
        padded = _padded(x, op.pads, 0)
        i, j = te.reduce_axis((0, kh), "i"), te.reduce_axis((0, kw), "j")
        return te.compute(
            (x.shape[0], *op.shape),
            lambda n, c, y, z: te.max(padded[n, c, y * sy + i, z * sx + j], [i, j]),
            "maximum",
        )

    return [], build


def _island(op: Island) -> Kernel:
    """Refuse: floating point that only ONNX Runtime defines."""
    raise UnsupportedError(
        f"layer {op.name}: {', '.join(op.operators)} in floating point "
        "(--allow-float), which TVM kernels do not have; --target onnx can hold it"
    )


KERNELS: dict[type[Op], Callable[[Any], Kernel]] = {
    Quantize: _quantize, Conv: _conv, Gemm: _gemm, FloatGemm: _gemm, Add: _add, Mul: _mul,
    Average: _average, Lookup: _lookup, Island: _island, MaxPool: _max_pool,
    **te_moves.MOVES,
}  # fmt: skip
