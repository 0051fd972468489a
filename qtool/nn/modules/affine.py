"""BatchNorm that no convolution absorbs, as in pre-activation ResNets: a per-channel affine.

The device computes it as a depthwise 1x1 convolution whose codes are all 127 or -127, with
scale ``|gamma / sigma| / 127``, and a bias rounded to the accumulator's unit,
``xs * |gamma / sigma| / 127``. In evaluation this module rounds the bias likewise; the factor
itself is not rounded.
"""

from typing import cast

import torch
from torch import Tensor, nn

from qtool.core.folding import AFFINE_CODE, affine_layer
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.modules.quant_layer import layer_result, norm_affine, norm_values, round_to_unit
from qtool.nn.modules.switch_norm import SwitchNorm
from qtool.nn.ops.on_grid import OnGrid, values
from qtool.nn.ops.shapes import shaped_like


class QuantAffine(nn.Module):
    """``norm(x)``; `x` comes from a grid that stands elsewhere in the network.

    Args:
        name: the BatchNorm's name in the user's model.
        norm: the BatchNorm.
        grid: quantizer of `x`, None where the network has no glue grids. It is not a
            submodule here: it belongs to the network.
        layer: the first one that reads the result: its bits choose the norm's row, where it
            has several. "" where none does.
    """

    norm: nn.BatchNorm2d | SwitchNorm

    def __init__(
        self,
        name: str,
        norm: nn.BatchNorm2d,
        grid: FakeQuantizer | None = None,
        layer: str = "",
    ) -> None:
        super().__init__()
        self.name, self.norm, self.layer = name, norm, layer
        self._grid = (grid,)
        # In training, the quantizer that reads this tensor computes the norm.
        self.defers_norm = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if self.defers_norm and self.training:
            return x
        if isinstance(x, OnGrid):
            return self._on_device(x)
        (grid,) = self._grid
        is_on = grid is not None and grid.is_on and not self.training
        if grid is None or not is_on or torch.onnx.is_in_onnx_export():
            y: Tensor = self.norm(x)
            return y
        return self._approximate(x, grid.scale(cast(int, grid.selected)))

    def _on_device(self, x: OnGrid) -> Tensor:
        """Return the result as the device computes it."""
        numbers, shape = norm_values(self.norm), (1, -1, 1, 1)
        layer = affine_layer(self.name, numbers, f"layer {self.name}")
        return layer_result(
            layer, x, lambda codes, weight: codes * weight.reshape(shape),
            lambda: self._approximate(values(x), torch.tensor(float(x.grid.scale))),
        )  # fmt: skip

    def _approximate(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return it in floating point, with the bias rounded as on the device."""
        factor, shift = norm_affine(self.norm)
        unit = scale.to(x.device) * (factor.abs() / AFFINE_CODE).float()
        bias = round_to_unit(shift, unit)
        return x * shaped_like(factor.float(), x) + shaped_like(bias.float(), x)
