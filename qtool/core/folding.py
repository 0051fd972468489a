"""BatchNorm as numbers of the layer that absorbs it, or of a per-channel affine."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.core.accumulator import Layer
from qtool.core.errors import UnsupportedError

Doubles = NDArray[np.float64]
# Of a channel with gamma 0: so fine that its constant alone decides the scale.
DEAD_SCALE = 1e-30
AFFINE_CODE = 127


@dataclass(frozen=True)
class NormValues:
    """A BatchNorm in evaluation, ``(x - mean) * ratio + beta``; all but epsilon are (C,).

    Args:
        gamma, beta, mean, var: as torch and ONNX call them, float64.
        epsilon: added to `var`, as a float32, which is what ONNX keeps of it.
    """

    gamma: Doubles
    beta: Doubles
    mean: Doubles
    var: Doubles
    epsilon: float

    @property
    def ratio(self) -> Doubles:
        """``gamma / sqrt(var + epsilon)``."""
        ratio: Doubles = self.gamma / np.sqrt(self.var + np.float64(np.float32(self.epsilon)))
        return ratio

    def affine(self, where: str) -> tuple[Doubles, Doubles]:
        """Return it as ``x * ratio + shift``, each (C,).

        Raises:
            UnsupportedError: a channel is not finite; says that it is `where`.
        """
        with np.errstate(all="ignore"):  # refused below
            ratio, shift = self.ratio, self.shift()
        broken = ~(np.isfinite(ratio) & np.isfinite(shift))
        if broken.any():
            channel = int(broken.argmax())
            raise UnsupportedError(
                f"{where}: BatchNorm channel {channel} multiplies by {ratio[channel]:g} and "
                f"adds {shift[channel]:g}; both must be finite"
            )
        return ratio, shift

    def shift(self, bias: Doubles | float = 0.0) -> Doubles:
        """Return the result's value where ``x = bias``."""
        return self.beta + (bias - self.mean) * self.ratio


def fold_norm(layer: Layer, norm: NormValues) -> Layer:
    """Return ``norm(layer(x))`` as a layer: another scale, sign of the codes, and bias.

    A channel of gamma 0 has codes 0 and the scale `DEAD_SCALE`.

    Raises:
        UnsupportedError: a scale leaves float32, or a flipped code int8; names the layer.
    """
    with np.errstate(all="ignore"):  # refused below
        ratio = norm.ratio
    scale = np.where(ratio == 0, DEAD_SCALE, layer.scale * np.abs(ratio)).astype(np.float32)
    if not np.all(np.isfinite(scale) & (scale > 0)):
        channel = int(np.argmin(np.isfinite(scale) & (scale > 0)))
        raise UnsupportedError(
            f"layer {layer.name}: BatchNorm channel {channel} scales its weights by "
            f"{ratio[channel]:g}, outside float32"
        )
    bias = norm.shift(layer.bias.astype(np.float64)).astype(np.float32)
    return Layer(layer.name, _flip(layer, ratio), scale, bias, layer.bits)


def _flip(layer: Layer, ratio: Doubles) -> NDArray[np.int8]:
    signs = np.sign(ratio).astype(np.int16).reshape(-1, *[1] * (layer.codes.ndim - 1))
    flipped = layer.codes.astype(np.int16) * signs
    if flipped.max(initial=0) > 127:
        raise UnsupportedError(
            f"layer {layer.name}: code -128 under a negative BatchNorm gamma becomes 128, "
            "which int8 does not hold; train with a narrow weight range"
        )
    return flipped.astype(np.int8)


def affine_layer(name: str, norm: NormValues, where: str) -> Layer:
    """Return `norm` as a depthwise 1x1 convolution: codes +-127, scale ``|ratio| / 127``.

    Raises:
        UnsupportedError: a channel is not finite; says that it is `where`.
    """
    ratio, shift = norm.affine(where)
    codes: Any = (np.sign(ratio) * AFFINE_CODE).astype(np.int8).reshape(-1, 1, 1, 1)
    scale = np.where(ratio == 0, DEAD_SCALE, np.abs(ratio) / AFFINE_CODE).astype(np.float32)
    return Layer(name, codes, scale, shift, None)
