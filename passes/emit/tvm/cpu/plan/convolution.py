"""Convolutions and linear layers -> kernels: which one, which tile, and its constants."""

from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from passes.emit.tvm.cpu.kernels.depthwise import DepthwiseConv, lane_order, pack_depthwise
from passes.emit.tvm.cpu.kernels.direct import DirectConv, Place, Tile, pack_weights
from passes.emit.tvm.cpu.kernels.epilogue import Form, Residual, Window, form, record
from passes.emit.tvm.cpu.kernels.layout import NO_HALO, Layout
from passes.emit.tvm.cpu.kernels.packed_weights import (
    SMALLEST_FACTOR,
    growth,
    scaled,
    width_of,
    worth_packing,
)
from passes.emit.tvm.cpu.kernels.winograd import Winograd, strip_rows
from passes.emit.tvm.cpu.kernels.winograd_weights import pack_bias, pack_winograd, supports
from passes.emit.tvm.cpu.plan.context import place
from passes.emit.tvm.cpu.plan.fusion import Node
from passes.emit.tvm.cpu.plan.steps import Kernel, Operand, Step
from passes.emit.tvm.cpu.plan.tiles import Choose, by_rule, variants
from passes.emit.tvm.cpu.vectors.base import Vectors
from qtool.core import numerics
from qtool.core.dialect import Conv, FloatGemm, Gemm

# Splitting less work than this over threads costs about as much as it saves: some ten
# microseconds, in which a core makes that many products, or depthwise ones.
PARALLEL_MACS, PARALLEL_DEPTHWISE_MACS = 2_500_000, 1_000_000


@dataclass(frozen=True)
class Sites:
    """The tensors of a layer: layouts of its input, its result and a residual operand."""

    x: Layout
    y: Layout
    other: Layout | None = None


def convolution(node: Node, sites: Sites, unit: Vectors, choose: Choose = by_rule) -> Step:
    """Return the step of a convolution or linear layer and what is fused into it."""
    if not isinstance(node.op, Conv | Gemm):
        raise TypeError(f"{node.op.name}: {type(node.op).__name__} is no layer")
    op = as_convolution(node.op, sites.x)
    numbers, shape = epilogue(node, op)
    if op.groups == len(op.w_OIHW) == sites.x.channels and sites.x.pixel % 16 == 0:
        spec, packed, bias, factor = _depthwise(op, sites, unit, shape)
    else:
        spec, packed, bias, factor = _ordinary(op, sites, unit, shape, choose)
    inputs = [Operand(op.inputs[0], first_byte(op, sites.x))]
    if node.residual is not None and sites.other is not None:
        inputs.append(Operand(node.inputs[-1], sites.other.origin))
    return Step(
        spec, tuple(inputs), Operand(node.output, sites.y.origin),
        (packed, bias, factor, numbers), op.name, layer_macs(op),
    )  # fmt: skip


def layer_macs(op: Conv) -> int:
    """Return multiply-accumulates of one image."""
    return int(prod(op.shape[1:]) * op.w_OIHW.size)


def as_convolution(op: Conv | Gemm, x: Layout) -> Conv:
    """Return a linear layer as the convolution whose kernel is as large as its input."""
    if isinstance(op, Conv):
        return op
    shape = (op.w_OI.shape[0], x.channels, x.height, x.width)
    return Conv(
        op.name, op.output, op.inputs, op.grid, op.lo, op.hi, (op.shape[0], 1, 1), op.x,
        op.w_OI.reshape(shape), op.w_scale, op.bias, (1, 1), (0, 0, 0, 0), (1, 1), 1, op.bits,
    )  # fmt: skip


def first_byte(op: Conv, x: Layout) -> int:
    """Return the offset of the first byte that a convolution reads, in the halo if it pads."""
    return x.origin - op.pads[0] * x.row - op.pads[1] * x.pixel


def requantization(
    op: Conv, count: int, x_offset: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return bias, with the input's zero point in it, and factor; `count` channels each.

    Sums are taken modulo 2^32, as the kernels do: the total fits, so it is exact.

    Args:
        op: the layer.
        count: channels of the result as the kernel counts them.
        x_offset: what the kernel itself takes off every code.
    """
    outputs = len(op.w_OIHW)
    sums = op.w_OIHW.reshape(outputs, -1).astype(np.int64).sum(1)
    bias = np.zeros(count, np.int32)
    bias[:outputs] = (op.bias.astype(np.int64) - (op.x.zero_point - x_offset) * sums).astype(
        np.int32
    )
    factor = np.zeros(count, np.float32)
    factor[:outputs] = numerics.multiplier(op.x.scale, op.w_scale, op.grid.scale)
    return bias, factor


def epilogue(node: Node, op: Conv) -> tuple[NDArray[np.uint8], Form]:
    """Return the numbers and the form of what follows the sums."""
    window = Window(op.grid.zero_point, op.lo, op.hi)
    residual, add = None, node.residual
    if add is not None:
        coefficients = numerics.add_coefficients(
            add.a.scale, add.a.zero_point, add.b.scale, add.b.zero_point, add.grid.scale,
            add.grid.zero_point,
        )  # fmt: skip
        ra, rb, c = map(float, coefficients)
        residual = Residual(ra, rb, c, add.lo, add.hi)
    shape = form(window, _largest(op), residual, node.first, node.table is not None)
    return record(window, residual, node.table), shape


def _largest(op: Conv) -> float:
    """Return a bound of ``|acc * factor|``."""
    weights = np.abs(op.w_OIHW.astype(np.int64)).reshape(len(op.w_OIHW), -1).sum(1)
    bound = 255.0 * weights + np.abs(op.bias.astype(np.float64))
    factor = numerics.multiplier(op.x.scale, op.w_scale, op.grid.scale).astype(np.float64)
    return float((bound * np.abs(factor)).max())


Layer = tuple[Kernel, NDArray[np.int8], NDArray[np.int32], NDArray[np.float32]]


def _depthwise(op: Conv, sites: Sites, unit: Vectors, shape: Form) -> Layer:
    """Return the depthwise kernel, its weights, bias and factor."""
    x, y = sites.x, sites.y
    spec = DepthwiseConv(
        unit.name, y.height, y.width, x.pixel, op.w_OIHW.shape[2:], op.strides, op.dilations,
        place(x), place(y), place(sites.other or y),
        layer_macs(op) >= PARALLEL_DEPTHWISE_MACS, shape,
    )  # fmt: skip
    order = lane_order(spec, unit)
    bias, factor = requantization(op, x.pixel)
    return spec, pack_depthwise(op.w_OIHW[:, 0], spec, unit), bias[order], factor[order]


def _ordinary(
    op: Conv, sites: Sites, unit: Vectors, shape: Form, choose: Choose = by_rule
) -> Layer:
    """Return the kernel chosen for a layer that mixes channels, and its constants."""
    direct, weights = _direct(op, sites, unit, shape)
    fast = _winograd(op, sites, unit, shape)
    spec = choose(variants(direct, fast, sites.x.bytes, unit))
    if isinstance(spec, Winograd):
        bias, factor = requantization(op, spec.outputs * unit.lanes)
        return spec, pack_winograd(op.w_OIHW, spec), pack_bias(bias), factor
    count = spec.groups * spec.blocks * spec.tile.vectors * unit.lanes
    bias, factor = requantization(op, count, unit.x_offset)
    if worth_packing(unit.name, spec.tile.pixels, spec.steps):
        spec = replace(spec, weight_bits=width_of(op.w_OIHW, bias, factor, unit.x_offset))
    bias, factor = scaled(bias, factor, growth(op.w_OIHW, spec.weight_bits))
    return spec, pack_weights(weights, spec, unit), bias, factor


def _winograd(op: Conv, sites: Sites, unit: Vectors, shape: Form) -> Winograd | None:
    """Return Winograd's kernel, where it is exact."""
    x, y, vectors = sites.x, sites.y, -(-op.w_OIHW.shape[0] // unit.lanes)
    if op.strides != (1, 1) or op.dilations != (1, 1) or op.groups != 1 or shape.floats:
        return None
    bias, factor = requantization(op, op.w_OIHW.shape[0])
    if factor.min() < SMALLEST_FACTOR or not supports(
        unit.name, (y.height, y.width), op.w_OIHW, bias
    ):
        return None
    return Winograd(
        unit.name, y.height, y.width, op.w_OIHW.shape[1], vectors, place(x), place(y),
        place(sites.other or y), strip_rows(y.height, y.width, op.w_OIHW.shape[1]),
        layer_macs(op) >= PARALLEL_MACS, shape,
    )  # fmt: skip


def _direct(
    op: Conv, sites: Sites, unit: Vectors, shape: Form
) -> tuple[DirectConv, NDArray[np.int8]]:
    """Return the direct kernel before its tile is chosen, and weights for `pack_weights`."""
    x, n = sites.x, unit.lanes
    grouped = merge_groups(op.w_OIHW, op.groups, n)
    groups, outputs, channels, kh, kw = grouped.shape
    rows_first = grouped.transpose(0, 1, 3, 4, 2)
    taps = (kh, kw)
    if groups == 1 and op.dilations[1] == 1 and x.pixel == channels:
        # Neighbouring pixels are neighbours in memory: one longer run of bytes.
        taps, channels = (kh, 1), kw * channels
    height, width, x_place, y_place, other = _flattened(op, sites)
    spec = DirectConv(
        unit.name, height, width, -(-outputs // n), groups,
        op.w_OIHW.shape[1] * (op.groups // groups), taps, -(-channels // 4), op.strides,
        op.dilations, x_place, y_place, other, Tile(1, 1, 1), False,
        layer_macs(op) >= PARALLEL_MACS, shape,
    )  # fmt: skip
    return spec, rows_first.reshape(groups, outputs, *taps, channels)


def merge_groups(w_OIHW: NDArray[np.int8], groups: int, lanes: int) -> NDArray[np.int8]:
    """Return (merged groups, outputs, inputs, rows, columns): whole vectors of outputs.

    Groups whose outputs do not fill vectors are merged; weights between them are 0.
    """
    outputs, per_group, kh, kw = w_OIHW.shape
    own = outputs // groups
    merged = next(
        m
        for m in range(1, groups + 1)
        if groups % m == 0 and (m * own % lanes == 0 or m == groups)
    )
    full = np.zeros((groups // merged, merged * own, merged * per_group, kh, kw), np.int8)
    parts = w_OIHW.reshape(groups // merged, merged, own, per_group, kh, kw)
    for m in range(merged):
        rows, columns = (
            slice(m * own, (m + 1) * own),
            slice(m * per_group, (m + 1) * per_group),
        )
        full[:, rows, columns] = parts[:, m]
    return full


def _flattened(op: Conv, sites: Sites) -> tuple[int, int, Place, Place, Place]:
    """Return height, width and strides; pointwise layers as few long rows where possible."""
    x, y = sites.x, sites.y
    other = sites.other or y
    height, width = y.height, y.width
    pointwise = op.w_OIHW.shape[2:] == (1, 1) and op.strides == (1, 1) and not any(op.pads)
    if not (pointwise and x.flat and y.flat and other.flat):
        return height, width, place(x), place(y), place(other)
    pixels = height * width
    long = next((d for d in range(width, pixels + 1) if pixels % d == 0 and d >= 56), pixels)
    rows = [Place(long * t.pixel, t.pixel) for t in (x, y, other)]
    return pixels // long, long, rows[0], rows[1], rows[2]


def float_layer(op: FloatGemm, x: Layout, unit: Vectors, target: str) -> tuple[Step, int]:
    """Return the step of a linear layer with a float result, and the bytes that it writes."""
    conv = as_convolution(op, x)
    flat = Form(zero=False, clip=False, floats=True)
    y = Layout((op.shape[0],), NO_HALO, 0)
    spec, packed, bias, factor = _ordinary(conv, Sites(x, y), unit, flat)
    step = Step(
        spec, (Operand(op.inputs[0], first_byte(conv, x)),), Operand(target),
        (packed, bias, factor, np.zeros(1, np.uint8)), op.name, layer_macs(conv),
    )  # fmt: skip
    return step, bias.size * 4
