"""A convolution or linear layer with quantized input and weight, and its BatchNorm.

In training BatchNorm works on batch statistics. In evaluation the layer computes what the
device will: BatchNorm as a per-channel factor and a bias that is rounded to the int32
accumulator's unit, ``xs * ws * |gamma / sigma|``. So the fake-quantized and the integer model
agree.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qtool.core.accumulator import Layer as IntLayer
from qtool.core.errors import UnsupportedError
from qtool.core.folding import NormValues, fold_norm
from qtool.nn.modules.quantizer import Quantizer
from qtool.nn.modules.switch_norm import SwitchBias, SwitchNorm
from qtool.nn.modules.weight_quant import WeightQuantizer
from qtool.nn.ops.int_grid import LinearMap, accumulate
from qtool.nn.ops.on_grid import Lazy, OnGrid, lazy, values
from qtool.nn.ops.saved_codes import input_as_codes
from qtool.nn.ops.shapes import shaped_like

Layer = nn.Conv2d | nn.Linear
Norm = nn.BatchNorm1d | nn.BatchNorm2d
AnyNorm = Norm | SwitchNorm


class QuantLayer(nn.Module):
    """``norm(layer(input_quant(x), weight_quant(weight)))``.

    Args:
        name: the layer's name in the user's model.
        layer: convolution (zero padding) or linear.
        norm: the BatchNorm that follows, None where there is none.
        input_quant: quantizer of the input activation.
        weight_quant: per-channel quantizer of the weight.
        is_end: it is the first or the last layer, or reads the image: its bits may differ
            from those that a selection has for all layers.
    """

    norm: AnyNorm | None

    def __init__(
        self,
        name: str,
        layer: Layer,
        norm: Norm | None,
        input_quant: Quantizer,
        weight_quant: WeightQuantizer,
        is_end: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            raise UnsupportedError(
                f"layer {name}: padding mode {layer.padding_mode!r}; use zeros"
            )
        self.name, self.is_end = name, is_end
        self.layer, self.norm = layer, norm
        # Instead of the layer's own bias, where it has several.
        self.biases: SwitchBias | None = None
        self.input_quant, self.weight_quant = input_quant, weight_quant
        # In training, the quantizer that reads this layer computes the norm.
        self.defers_norm = False

    @property
    def batch_norm(self) -> Norm | None:
        """The BatchNorm that computes, None where there is none."""
        return self.norm.picked if isinstance(self.norm, SwitchNorm) else self.norm

    @property
    def bias(self) -> Tensor | None:
        """The bias that is added before the BatchNorm, None where there is none."""
        return self.layer.bias if self.biases is None else self.biases.picked

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H', W'), or (N, C_in) -> (N, C)."""
        x = self.input_quant(x)
        weight = self.weight_quant(self.layer.weight)
        if isinstance(x, OnGrid) and self.weight_quant.fits_device and self._fits(x):
            return layer_result(
                self._folded(weight), x, lambda codes, w: self._linear_map(codes, w, None),
                lambda: self._approximate(values(x), weight),
            )  # fmt: skip
        if self._is_evaluated():
            return self._approximate(values(x), weight)
        with self._saving_codes(x):
            y = self._linear_map(x, weight, self.bias)
        if self.norm is None or (self.defers_norm and self.training):
            return y
        return cast(Tensor, self.norm(y))

    def _saving_codes(self, x: Tensor) -> AbstractContextManager[None]:
        """Return the context in which autograd keeps the quantized input `x` as codes."""
        quantizer = self.input_quant
        if quantizer.selected is None or quantizer.mix is not None or not self.training:
            return nullcontext()
        bits = quantizer.selected
        with torch.no_grad():  # the step's gradient is the quantizer's business
            step = quantizer.scale(bits)
        return input_as_codes(x, step, *quantizer.limits(bits))

    def _fits(self, x: Tensor) -> bool:
        """True where the device has this layer: a linear one of (N, features)."""
        return x.ndim == 2 or not isinstance(self.layer, nn.Linear)

    def _is_evaluated(self) -> bool:
        quantized = self.input_quant.is_on and self.weight_quant.is_on
        return quantized and not self.training and not torch.onnx.is_in_onnx_export()

    def _folded(self, weight: Tensor) -> IntLayer:
        """Return the layer's integers, of its quantized `weight`, with BatchNorm folded."""
        scale, shift = self.weight_quant.device_scale(self.layer.weight)
        steps = (scale * (1 << shift)).reshape(-1, *[1] * (weight.ndim - 1))
        codes = (weight / steps).round() * (1 << shift)
        channels = len(weight)
        added = torch.zeros(channels) if self.bias is None else self.bias
        bias = added.detach().float().cpu().numpy()
        layer = IntLayer(
            self.name, codes.float().cpu().numpy().astype(np.int8),
            np.broadcast_to(scale.float().cpu().numpy(), channels), bias, None,
        )  # fmt: skip
        return layer if self.norm is None else fold_norm(layer, norm_values(self.norm))

    def _approximate(self, x: Tensor, weight: Tensor) -> Tensor:
        """Sum codes, scale the sums once: the device's result but for its last rounding."""
        factor, shift = self._affine()
        x_scale = self.input_quant.scale(cast(int, self.input_quant.selected))
        w_scale, _ = self.weight_quant.device_scale(self.layer.weight)
        codes = weight / w_scale.reshape(-1, *[1] * (weight.ndim - 1))
        sums = self._linear_map(x / x_scale, codes, None)
        if not torch.is_grad_enabled():
            sums = sums.round_()  # x / x_scale may miss its integer by a rounding
        unit = x_scale * (w_scale * factor.abs()).float()
        bias = round_to_unit(shift, unit) / torch.where(unit > 0, unit, 1.0).double()
        sums = sums * self._spread(factor.sign().float(), sums)
        y = (sums + self._spread(bias.float(), sums)) * self._spread(unit, sums)
        # A channel of gamma 0 is its shift alone.
        return torch.where(self._spread(unit > 0, y), y, self._spread(shift.float(), y))

    def _spread(self, per_channel: Tensor, y: Tensor) -> Tensor:
        """Return (C,) in the shape of a result `y`: channels of a linear layer are last."""
        return (
            per_channel if isinstance(self.layer, nn.Linear) else shaped_like(per_channel, y)
        )

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Return BatchNorm and bias as (factor, shift), each (C,), float64."""
        weight = self.layer.weight
        bias = weight.new_zeros(weight.shape[0]) if self.bias is None else self.bias
        if self.norm is None:
            return torch.ones_like(bias).double(), bias.double()
        return norm_affine(self.norm, bias.double())

    def _linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return functional.linear(x, weight, bias)
        return functional.conv2d(
            x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )


def layer_result(
    layer: IntLayer, x: OnGrid, linear_map: LinearMap, plain: Callable[[], Tensor]
) -> Lazy:
    """Return what a layer makes of `x`.

    Args:
        layer: its codes, scale and bias, BatchNorm folded.
        x: its input.
        linear_map: of input and weight, without the bias.
        plain: computes the float values.
    """
    sums = accumulate(layer, x.codes, x.grid, linear_map)
    return lazy(sums.sums, sums.sums.shape, sums.requantize, plain)


def norm_values(norm: AnyNorm) -> NormValues:
    """Return the numbers of `norm` in evaluation."""
    norm = norm.picked if isinstance(norm, SwitchNorm) else norm
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    gamma = norm.weight if norm.affine else torch.ones_like(mean)
    beta = norm.bias if norm.affine else torch.zeros_like(mean)
    gamma, beta, mean, var = (t.detach().cpu().double() for t in (gamma, beta, mean, var))
    return NormValues(gamma.numpy(), beta.numpy(), mean.numpy(), var.numpy(), norm.eps)


def norm_affine(norm: AnyNorm, bias: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Return (factor, shift), each (C,), float64: ``norm(y + bias) = y * factor + shift``."""
    norm = norm.picked if isinstance(norm, SwitchNorm) else norm
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    factor = torch.rsqrt(var.double() + norm.eps)
    if not norm.affine:
        return factor, (bias - mean) * factor
    factor = norm.weight * factor
    return factor, norm.bias + (bias - mean) * factor


def round_to_unit(shift: Tensor, unit: Tensor) -> Tensor:
    """Round a bias to a multiple of the accumulator's unit; where that is 0, leave it."""
    exact, step = shift.float().double(), unit.double()
    return torch.where(step > 0, (exact / step).round() * step, exact)
