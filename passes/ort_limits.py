"""Where ONNX Runtime departs from `qtool.numerics`: refused, so that parity stays exact.

Regions found by measurement, see the numerics' tests. QLinearLeakyRelu, QLinearConcat,
QuantizeLinear and QLinearMatMul have none.
"""

import numpy as np
from numpy.typing import NDArray

from qtool.dialect import Grid
from qtool.errors import UnsupportedError
from qtool.numerics import MULTIPLY_FACTOR_MAX, add_swaps, multiplier, multiply_factor


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


def add_order(a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the operands' order, (0, 1) or (1, 0), in which QLinearAdd computes as written.

    Shapes come without the batch, which is free: what holds for one image holds for many.

    Raises:
        UnsupportedError: neither order does; both are scalars along the innermost axis.
    """
    for order, shapes in (((0, 1), (a_shape, b_shape)), ((1, 0), (b_shape, a_shape))):
        if not add_swaps(*shapes):
            return order
    raise UnsupportedError(
        f"Add of {a_shape} and {b_shape}: one element; ONNX Runtime swaps the operands"
    )
