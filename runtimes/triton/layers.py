"""Convolutions, linear layers and pools: weights repacked, a tile chosen, one launch each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtool.core import numerics
from qtool.core.dialect import Average, Conv, FloatGemm, Gemm, MaxPool, weight_of
from qtool.core.numerics import Floats
from runtimes.triton.kernels import pools
from runtimes.triton.kernels.contraction import contract
from runtimes.triton.kernels.depthwise import depthwise
from runtimes.triton.plan import Plan, whole_words
from runtimes.triton.tiles import STAGES, count, matrix_tile, plane_tile
from runtimes.triton.window import SHIFT, window_behind

# Rows of a packed weight are a multiple of this long, so that every step is whole.
_PITCH = 128


def conv(op: Conv, plan: Plan) -> Tensor:
    """One matrix product a group; a sum over positions where a group reads one channel."""
    x, y = plan.read(op), plan.result(op)
    outputs, per_group, *kernel = op.w_OIHW.shape
    shape: dict[str, Any] = {
        **_image(x), "OUT": op.shape[1:], "KERNEL": tuple(kernel), "STRIDES": op.strides,
        "DILATIONS": op.dilations, "CORNER": op.pads[:2], "PADDED": any(op.pads),
    }  # fmt: skip
    if per_group > 1:
        _contract(op, plan, (x, y), shape, op.groups)
        return y
    pixels, columns = plane_tile(outputs, plan.device.block)
    total = plan.batch * op.shape[1] * op.shape[2]
    weights = plan.constant(op, "weights", lambda: op.w_OIHW.reshape(outputs, -1).T)
    plan.launch(
        op.name, depthwise, (count(total, pixels), count(outputs, columns)),
        (x, weights, *_epilogue(op, plan), y, total, *_numbers(op)),
        shape | {
            "OUTPUTS": outputs, "MULTIPLIER": outputs // op.groups, "PIXELS": pixels,
            "COLUMNS": columns,
        },
    )  # fmt: skip
    return y


def gemm(op: Gemm, plan: Plan) -> Tensor:
    """The convolution of one pixel."""
    x = plan.read(op)
    y = plan.result(op, torch.float32 if isinstance(op, FloatGemm) else torch.int8)
    one = (1, 1)
    shape: dict[str, Any] = {
        **_image(x[:, :, None, None]), "OUT": one, "KERNEL": one, "STRIDES": one,
        "DILATIONS": one, "CORNER": (0, 0), "PADDED": False,
    }  # fmt: skip
    _contract(op, plan, (x, y), shape, 1)
    return y


def _contract(
    op: Conv | Gemm, plan: Plan, ends: tuple[Tensor, Tensor], shape: Mapping[str, Any],
    groups: int,
) -> None:  # fmt: skip
    """Plan a matrix product from one of `ends` to the other."""
    (x, y), weight = ends, weight_of(op)
    outputs, channels = len(weight) // groups, weight.shape[1]
    if groups == 1 and _has_whole_words(x):
        channels = whole_words(channels)  # further weights are 0
    total = plan.batch * shape["OUT"][0] * shape["OUT"][1]
    length = shape["KERNEL"][0] * shape["KERNEL"][1] * channels
    tile = matrix_tile(total, outputs, groups, channels, length, plan.device.processors)
    packed = plan.constant(op, "weights", lambda: _packed(weight, channels))
    plan.launch(
        op.name, contract, (count(total, tile.pixels), count(outputs, tile.columns), groups),
        (x, packed, *_epilogue(op, plan), y, total, *_numbers(op)),
        {
            **shape, "Y_PITCH": len(weight), "CHANNELS": channels, "OUTPUTS": outputs,
            "W_PITCH": packed.shape[1], "FLOAT": isinstance(op, FloatGemm),
            "PIXELS": tile.pixels, "COLUMNS": tile.columns, "DEPTH": tile.depth,
        },
        num_warps=tile.warps, num_stages=STAGES,
    )  # fmt: skip


def _has_whole_words(x: Tensor) -> bool:
    """Are pixels whole words, with bytes behind the channels where these are fewer?"""
    steps = (1, whole_words(x.shape[1]))
    return x.ndim == 4 and x.stride()[1::2] == steps and x.storage_offset() % steps[1] == 0


def _packed(weight: NDArray[np.int8], channels: int) -> NDArray[np.int8]:
    """Return weights as (O, K), K over kernel rows, columns and `channels`, then zeros."""
    more = [(0, 0), (0, channels - weight.shape[1]), *[(0, 0)] * (weight.ndim - 2)]
    flat = np.moveaxis(np.pad(weight, more), 1, -1).reshape(len(weight), -1)
    return np.pad(flat, ((0, 0), (0, -flat.shape[1] % _PITCH)))


def _epilogue(op: Conv | Gemm, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return the factors, and the biases of sums over shifted codes."""

    def factor() -> Floats:
        return numerics.multiplier(op.x.scale, op.w_scale, op.grid.scale)

    def bias() -> NDArray[np.int32]:
        weight = weight_of(op)
        sums = weight.reshape(len(weight), -1).sum(1, dtype=np.int64)
        # Modulo 2^32, as the sums themselves: what they end in is an int32.
        total: NDArray[np.int64] = op.bias + (SHIFT - op.x.zero_point) * sums
        return total.astype(np.int32)

    return plan.constant(op, "factor", factor), plan.constant(op, "bias", bias)


def _numbers(op: Conv | Gemm) -> tuple[float, ...]:
    """Return what pads, and the window."""
    return (op.x.zero_point - SHIFT, *window_behind(op))


def _image(x: Tensor) -> dict[str, Sequence[int]]:
    """Return size and strides of (N, C, H, W), in the order n, h, w, c."""
    n, c, h, w = x.stride()
    return {"IN": tuple(x.shape[2:]), "X_STRIDES": (n, h, w, c)}


def max_pool(op: MaxPool, plan: Plan) -> Tensor:
    """A maximum a window."""
    x, y = plan.read(op), plan.result(op)
    channels, *size = op.shape
    pixels, columns = plane_tile(channels, plan.device.block)
    total = plan.batch * size[0] * size[1]
    plan.launch(
        op.name, pools.max_pool, (count(total, pixels), count(channels, columns)),
        (x, y, total),
        {
            **_image(x), "OUT": tuple(size), "KERNEL": op.kernel, "STRIDES": op.strides,
            "CORNER": op.pads[:2], "CHANNELS": channels, "PIXELS": pixels,
            "COLUMNS": columns,
        },
    )  # fmt: skip
    return y


def average(op: Average, plan: Plan) -> Tensor:
    """A sum an image and channel."""
    x, y = plan.read(op), plan.result(op)
    channels = op.shape[0]
    pixels, columns = plane_tile(channels, plan.device.block)
    offset = x.shape[2] * x.shape[3] * (SHIFT - op.x.zero_point)
    factor = numerics.average_factor(op.x.scale, op.grid.scale, op.count)
    plan.launch(
        op.name, pools.average, (plan.batch, count(channels, columns)),
        (x, y, offset, float(factor), *window_behind(op)),
        {**_image(x), "CHANNELS": channels, "PIXELS": pixels, "COLUMNS": columns},
    )  # fmt: skip
    return y
