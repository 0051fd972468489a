"""Constants of a convolution or linear layer, fitted to its int32 accumulator."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.core.errors import UnsupportedError
from qtool.core.numerics import bias_scale

INT32_MAX = 2**31 - 1
BIAS_MAX = 2**30


@dataclass(frozen=True)
class Layer:
    """Constants of a convolution or linear layer after BatchNorm folding.

    Args:
        name: the layer, or the tensor that an average pool or an affine makes.
        codes: (O, I, kh, kw) or (O, I).
        scale: (O,).
        bias: (O,) in real units.
        bits: of the codes; None where it is no layer of the user's model.
        unit: declared scale of a bias that was int32 already.
    """

    name: str
    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[Any]
    bits: int | None
    unit: NDArray[np.float32] | None = None


def fit_accumulator(layer: Layer, x_scale: np.float32) -> Layer:
    """Return `layer` with every channel's bias and sums inside the int32 accumulator.

    A channel whose BatchNorm gamma is almost 0 has so fine a scale that its bias would exceed
    int32. It gets a scale on which the bias is 2^30, and its codes are rounded to that scale:
    an error below ``bias * fan_in * 2^-23``, far below the result's grid. Others stay.

    Raises:
        UnsupportedError: bias or scale is not finite, the weights alone can overflow, or the
            bias is declared on another scale; names layer and channel.
    """
    unit = _bias_unit(layer, x_scale)
    codes = layer.codes.astype(np.int64).reshape(len(layer.scale), -1)
    bias = layer.bias.astype(np.float64)
    finest = np.maximum(np.abs(bias) / BIAS_MAX, float(np.finfo(np.float32).tiny))
    over = np.abs(bias / np.maximum(unit, 1e-300)) > _room(codes)
    if not over.any():
        return layer
    coarse = over & (unit < finest)
    scale = np.where(coarse, finest * (1 + 1e-6) / np.float64(x_scale), layer.scale)
    scale = scale.astype(np.float32)
    ratio = np.where(coarse, layer.scale.astype(np.float64) / scale, 1.0)
    rounded = np.rint(codes * ratio[:, None])
    left = np.where(coarse, BIAS_MAX, np.abs(bias / np.maximum(unit, 1e-300)))
    broken = left > _room(rounded.astype(np.int64))
    if broken.any():
        raise UnsupportedError(
            f"layer {layer.name}: channel {int(broken.argmax())} can overflow its int32 "
            f"accumulator: {codes.shape[1]} products of 8-bit inputs and the bias"
        )
    fitted = rounded.astype(np.int8).reshape(layer.codes.shape)
    return Layer(layer.name, fitted, scale, layer.bias, layer.bits)


def _bias_unit(layer: Layer, x_scale: np.float32) -> NDArray[np.float64]:
    """Return the scale of the bias, (O,); refuse another one and what is not finite."""
    expected = bias_scale(x_scale, layer.scale)
    if layer.unit is not None and not np.array_equal(layer.unit, expected):
        raise UnsupportedError(
            f"layer {layer.name}: bias scale is not input scale * weight scale, which ONNX "
            "Runtime takes for granted"
        )
    broken = ~(np.isfinite(layer.bias.astype(np.float64)) & np.isfinite(expected))
    if broken.any():
        channel = int(broken.argmax())
        raise UnsupportedError(
            f"layer {layer.name}: channel {channel} has bias {layer.bias[channel]} and weight "
            f"scale {layer.scale[channel]}; both must be finite"
        )
    return expected.astype(np.float64)


def _room(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the largest bias per channel that cannot overflow int32 with 8-bit inputs."""
    room: NDArray[np.int64] = INT32_MAX - 255 * np.abs(codes).sum(1)
    return room
