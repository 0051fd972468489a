"""8-bit grids for tensors that a foreign file leaves in float between two operators.

Only where the values that can occur are known without data:

1. forwards, ``f(x)`` of an x on a grid: HardSwish, HardSigmoid, Sigmoid, Swish, Tanh,
   LeakyRelu and BatchNormalization take their 256 inputs to a known range;
2. Concat of tensors on several grids: the range that covers them all;
3. backwards, the x of a quantized ``HardSwish(x)`` or ``HardSigmoid(x)``: from -3, below which
   both are 0, to where the result's grid ends.

scale = (high - low) / 255, zero point = rint(-low / scale), both ends around 0.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.lower.layers import layer_name, norm_values
from passes.lower.tables import FUNCTIONS
from qtool.core import numerics
from qtool.core.dialect import Grid

Doubles = NDArray[np.float64]
KNEE = 3.0  # HardSwish and HardSigmoid bend at -3 and 3


def grid_over(low: float, high: float) -> Grid:
    """Return the 8-bit grid from `low` to `high`, 0 among its values."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = np.float32((high - low) / 255) if high > low else np.float32(1)
    return Grid(step, numerics.clip_code(-low, step, 0))


def grid_after(node: ir.Node, x: Grid) -> Grid | None:
    """Return a grid for all results of `node` on an input on grid `x`, None if not known."""
    values = (np.arange(256) - float(x.zero_point)) * np.float64(x.scale)
    results = _results(node, values)
    return None if results is None else grid_over(float(results.min()), float(results.max()))


def _results(node: ir.Node, values: Doubles) -> Doubles | None:
    if node.op_type in FUNCTIONS:
        return FUNCTIONS[node.op_type](values)
    if node.op_type == "HardSigmoid":
        alpha = node.attributes.get_float("alpha", 0.2)
        beta = node.attributes.get_float("beta", 0.5)
        return np.clip(alpha * values + beta, 0.0, 1.0)
    if node.op_type == "LeakyRelu":
        alpha = node.attributes.get_float("alpha", 0.01)
        return np.where(values >= 0, values, alpha * values)
    if node.op_type == "BatchNormalization":
        ratio, shift = norm_values(node).affine(f"layer {layer_name(node)}")
        ends: Doubles = values[[0, -1]].reshape(2, 1) * ratio + shift
        return ends
    return None


def grid_of_all(grids: Sequence[Grid]) -> Grid:
    """Return a grid that covers the values of all `grids`."""
    lows = [-grid.zero_point * float(grid.scale) for grid in grids]
    highs = [(255 - grid.zero_point) * float(grid.scale) for grid in grids]
    return grid_over(min(lows), max(highs))


def grid_before(node: ir.Node, y: Grid) -> Grid | None:
    """Return a grid for what `node` reads, where its result is on grid `y`, or None."""
    if node.op_type == "HardSwish":
        return grid_over(-KNEE, max(KNEE, (255 - y.zero_point) * float(y.scale)))
    alpha = node.attributes.get_float("alpha", 0.2)
    if node.op_type == "HardSigmoid" and abs(alpha - 1 / 6) < 1e-6:
        return grid_over(-KNEE, KNEE)
    return None
