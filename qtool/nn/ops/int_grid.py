"""The device's arithmetic on torch tensors, by the formulas of `qtool.core.numerics`.

Codes are *centred* here: q minus the zero point, as float32 tensors. Zero padding is then the
code of 0, and sums of products are those of the accumulator. Every function rounds where the
device rounds, in the same order of float32 operations, and gives the same integers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtool.core import numerics
from qtool.core.accumulator import Layer, fit_accumulator
from qtool.core.numerics import F32
from qtool.core.weight_codes import narrowed
from qtool.nn.ops.shapes import shaped_like

# Up to here every integer is a float32.
EXACT = 2**24
Pair = tuple[np.float32, int]
# Of input and weight, in their dtype: a convolution or a product, nothing added.
LinearMap = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class IntGrid:
    """A grid, and the window of its uint8 codes; a value is ``(q - zero_point) * scale``."""

    scale: np.float32
    zero_point: int
    lo: int
    hi: int

    @property
    def pair(self) -> Pair:
        """Scale and zero point."""
        return self.scale, self.zero_point

    def clip(self, centred: Tensor) -> Tensor:
        """Return centred codes inside the window."""
        return centred.clamp(self.lo - self.zero_point, self.hi - self.zero_point)

    def rounded_(self, units: Tensor) -> Tensor:
        """Return `units` of the scale as centred codes, half to even; overwrites them."""
        return units.round_().clamp_(self.lo - self.zero_point, self.hi - self.zero_point)

    def narrowed(self, low: float, high: float) -> "IntGrid":
        """Return what values clipped to [`low`, `high`] leave of the window."""
        ends = [int(numerics.clip_code(v, self.scale, self.zero_point)) for v in (low, high)]
        lo, hi = max(self.lo, min(ends[0], self.hi)), min(self.hi, max(ends[1], self.lo))
        return IntGrid(self.scale, self.zero_point, lo, hi)


def quantize(x: Tensor, grid: IntGrid) -> Tensor:
    """Return the centred codes of float values; NaN gets the lowest."""
    lowest = float(grid.lo - grid.zero_point)
    units = x.float() / _scalar(grid.scale, x)
    return grid.rounded_(units.nan_to_num_(lowest, posinf=torch.inf, neginf=-torch.inf))


def regrid(centred: Tensor, x: IntGrid, grid: IntGrid) -> Tensor:
    """Return codes on `x` as codes on `grid`: `numerics.rescale_table`."""
    if x.pair == grid.pair:
        return grid.clip(centred)
    return grid.rounded_((centred * float(x.scale)).div_(_scalar(grid.scale, centred)))


def look_up(
    centred: Tensor, x: IntGrid, grid: IntGrid, function: Callable[..., Any]
) -> Tensor:
    """Return ``function(x)`` on `grid`, a table of 256 answers.

    Args:
        centred: codes on `x`.
        x: their grid.
        grid: of the result.
        function: one of `qtool.core.numerics` that makes a table from grid to grid.
    """
    answers = function(*x.pair, *grid.pair, grid.lo, grid.hi)
    return _taken(answers, (centred + x.zero_point).int(), grid)


def combine(
    name: str, a: Tensor, a_grid: IntGrid, b: Tensor, b_grid: IntGrid, grid: IntGrid
) -> Tensor:
    """Return QLinearAdd (`name` "add") or QLinearMul ("multiply") of centred codes.

    The shapes broadcast; `a` is ONNX Runtime's first operand.
    """
    answers = _pairs(name, *a_grid.pair, *b_grid.pair, *grid.pair, grid.lo, grid.hi)
    index = (a + a_grid.zero_point) * 256 + (b + b_grid.zero_point)
    return _taken(answers, index.int(), grid)


@lru_cache(maxsize=256)
def _pairs(name: str, *arguments: Any) -> NDArray[np.uint8]:
    """Return the answers (65536,) of every pair of codes."""
    codes = np.arange(256, dtype=np.uint8)
    a, b = np.repeat(codes, 256), np.tile(codes, 256)
    a_scale, a_zero, b_scale, b_zero, *rest = arguments
    answers: NDArray[np.uint8] = getattr(numerics, name)(
        a, a_scale, a_zero, b, b_scale, b_zero, *rest
    )
    return answers


def _taken(answers: NDArray[np.uint8], index: Tensor, grid: IntGrid) -> Tensor:
    table = torch.from_numpy(answers.astype(np.float32) - grid.zero_point).to(index.device)
    return table[index]


def average(centred: Tensor, x: IntGrid, grid: IntGrid) -> Tensor:
    """Return the mean over H and W on `grid`, (N, C, 1, 1): QLinearGlobalAveragePool."""
    factor = numerics.average_factor(x.scale, grid.scale, centred[0, 0].numel())
    total = centred.double().sum((2, 3), keepdim=True).float()
    return grid.rounded_(total * float(factor))


@dataclass(frozen=True)
class Accumulator:
    """The int32 sums of a layer, as exactly as float32 has them.

    Args:
        sums: (N, C, ...) float32, bias included.
        x_scale: of the layer's input.
        scale: (C,) of the weights.
    """

    sums: Tensor
    x_scale: np.float32
    scale: NDArray[np.float32]

    def requantize(self, grid: IntGrid) -> Tensor:
        """Return the centred codes on `grid`: `numerics.requantize`."""
        factor = numerics.multiplier(self.x_scale, self.scale, grid.scale)
        shaped = shaped_like(torch.from_numpy(factor).to(self.sums.device), self.sums)
        return grid.rounded_(self.sums * shaped)


def accumulate(
    layer: Layer, centred: Tensor, x: IntGrid, linear_map: LinearMap
) -> Accumulator:
    """Return what the device has in its accumulators behind `layer`.

    Args:
        layer: codes, scale and bias, BatchNorm folded.
        centred: codes on `x`.
        x: the input's grid.
        linear_map: what the layer does with input and weight.
    """
    layer = fit_accumulator(layer, x.scale)
    bias = numerics.quantize_bias(layer.bias.astype(np.float64), x.scale, layer.scale)
    added = torch.from_numpy(bias).to(centred.device)
    sums = _exact_sums(layer.codes, centred, x, linear_map)
    small = sums.dtype == torch.float32 and np.abs(bias).max(initial=0) < EXACT
    if not small:  # the sum of both is rounded once, as the device's int32 is
        sums = sums.double()
    sums = sums.add_(shaped_like(added.to(sums.dtype), sums)).float()
    return Accumulator(sums, x.scale, layer.scale)


def _exact_sums(
    codes: NDArray[np.int8], centred: Tensor, x: IntGrid, linear_map: LinearMap
) -> Tensor:
    """Return the sums of products, in float32 where no partial sum can leave its integers."""
    codes, shift = narrowed(codes, 1)  # of small codes, and then exactly as large
    sums = _narrow_sums(codes, centred, x, linear_map)
    return sums.mul_(1 << shift) if shift else sums


def _narrow_sums(
    codes: NDArray[np.int8], centred: Tensor, x: IntGrid, linear_map: LinearMap
) -> Tensor:
    farthest = max(x.hi - x.zero_point, x.zero_point - x.lo)

    def bound(part: NDArray[np.int8]) -> int:
        return farthest * int(
            np.abs(part.astype(np.int32)).reshape(len(part), -1).sum(1).max()
        )

    def mapped(part: NDArray[np.int8], dtype: torch.dtype = torch.float32) -> Tensor:
        weight = torch.from_numpy(part).to(centred.device, dtype)
        with torch.autocast(centred.device.type, enabled=False):  # codes need the digits
            return linear_map(centred.to(dtype), weight)

    # Other devices sum in formats and orders of their own.
    on_cpu = centred.device.type == "cpu"
    if on_cpu and bound(codes) < EXACT:
        return mapped(codes)
    high = np.rint(codes / 16).astype(np.int8)
    low = (codes - 16 * high).astype(np.int8)
    if on_cpu and max(bound(high), bound(low)) < EXACT:  # faster than one in float64
        return mapped(high).double().mul_(16).add_(mapped(low))
    return mapped(codes, torch.float64)


def _scalar(value: np.float32, like: Tensor) -> Tensor:
    # A tensor: by a Python number GPUs multiply with the reciprocal.
    return torch.tensor(float(F32(value)), device=like.device)
