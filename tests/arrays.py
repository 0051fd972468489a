"""Random codes, and equality that does not forgive: shared by the arithmetic's tests."""

import numpy as np


def assert_same(result, expected):
    np.testing.assert_array_equal(result, expected, strict=True)


def random_codes(rng, *shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


def random_weights(rng, *shape):
    return rng.integers(-127, 128, shape).astype(np.int8)
