"""Where ONNX Runtime departs from `qtool.core.numerics`: refused, so that parity stays exact.

Regions found by measurement, see the numerics' tests. QLinearLeakyRelu, QLinearConcat,
QuantizeLinear and QLinearMatMul have none.
"""

from math import prod

import numpy as np
from numpy.typing import NDArray

from qtool.core.dialect import Grid
from qtool.core.errors import UnsupportedError
from qtool.core.numerics import (
    MULTIPLY_FACTOR_MAX,
    average_factor,
    multiplier,
    multiply_factor,
)

# 2^31 / (2 * 255), rounded down: sums of two scaled codes stay inside int32.
ADD_RATIO_MAX = 2**22


def check_add(a: Grid, b: Grid, y: Grid, shape: tuple[int, ...], name: str) -> None:
    """Refuse sums that ONNX Runtime's QLinearAdd computes by another formula.

    Raises:
        UnsupportedError: one element an image (`shape`), or a result too fine for its int32.
    """
    if prod(shape) == 1:
        raise UnsupportedError(
            f"tensor {name}: Add of one-element tensors; ONNX Runtime swaps their operands"
        )
    ratio = max(a.scale / y.scale, b.scale / y.scale)
    if ratio >= ADD_RATIO_MAX:
        raise UnsupportedError(
            f"tensor {name}: Add onto a grid {ratio:.3g} times finer than its input's; ONNX "
            f"Runtime's int32 overflows from {ADD_RATIO_MAX}"
        )


def check_average(x: Grid, y: Grid, shape: tuple[int, ...], name: str) -> None:
    """Refuse factors that ONNX Runtime's QLinearGlobalAveragePool rejects when it runs.

    Raises:
        UnsupportedError: names the tensor and the factor; `shape` is (C, H, W).
    """
    factor = average_factor(x.scale, y.scale, prod(shape[1:]))
    if not 2**-32 < factor < 256:
        raise UnsupportedError(
            f"tensor {name}: average with factor {factor:.3g}; ONNX Runtime takes 2^-32 to 256"
        )


def check_multiply(a: Grid, b: Grid, y: Grid, name: str) -> None:
    """Refuse products whose int32 ONNX Runtime's QLinearMul overflows.

    Raises:
        UnsupportedError: the factor is above `MULTIPLY_FACTOR_MAX`; names the tensor.
    """
    factor = multiply_factor(a.scale, b.scale, y.scale)
    if factor > MULTIPLY_FACTOR_MAX:
        raise UnsupportedError(
            f"tensor {name}: Mul with factor {factor:.3g} from its inputs' grids to its own; "
            f"ONNX Runtime's int32 overflows above {MULTIPLY_FACTOR_MAX}"
        )


def check_factor(x: Grid, w_scale: NDArray[np.float32], y: Grid, name: str) -> None:
    """Refuse a layer with a channel whose factor is infinite: 0 times it is no number.

    Raises:
        UnsupportedError: names layer and channel.
    """
    infinite = ~np.isfinite(multiplier(x.scale, w_scale.reshape(-1), y.scale))
    if infinite.any():
        raise UnsupportedError(
            f"layer {name}: channel {int(infinite.argmax())} has scale {x.scale:.3g} * "
            f"{w_scale.reshape(-1)[infinite.argmax()]:.3g} / {y.scale:.3g}, beyond float32"
        )
