"""What ONNX Runtime computes by another formula is refused, with the reason."""

import numpy as np
import pytest
from operators import F32

from passes.lower.ort_limits import check_factor, check_multiply
from qtool.core.dialect import Grid
from qtool.core.errors import UnsupportedError
from qtool.core.numerics import MULTIPLY_FACTOR_MAX

UNIT = Grid(F32(1), 0)


def test_products_up_to_the_largest_factor_pass_and_beyond_are_refused():
    largest = F32(MULTIPLY_FACTOR_MAX)
    check_multiply(Grid(largest, 0), UNIT, UNIT, "gate")
    beyond = Grid(np.nextafter(largest, F32(np.inf)), 0)
    with pytest.raises(UnsupportedError, match=r"gate: Mul with factor 3.28e\+04.*32768"):
        check_multiply(beyond, UNIT, UNIT, "gate")
    with pytest.raises(UnsupportedError, match="factor inf"):
        check_multiply(Grid(F32(1e30), 0), Grid(F32(1e30), 0), UNIT, "gate")


def test_a_channel_with_an_infinite_factor_is_refused():
    w_scale = np.array([1e-3, 1e38], F32)
    check_factor(UNIT, w_scale, UNIT, "conv1")
    with pytest.raises(UnsupportedError, match=r"conv1: channel 1 .* beyond float32"):
        check_factor(UNIT, w_scale, Grid(F32(0.01), 0), "conv1")
