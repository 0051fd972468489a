"""Inputs kept as codes come back as the same floats, and cost a quarter."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from qtool.native.library import availability
from qtool.nn.ops.saved_codes import input_as_codes
from qtool.quantizers.engines import engine
from qtool.quantizers.uniform import uniform

pytestmark = pytest.mark.skipif(
    availability().library is None, reason=f"native kernels: {availability().reason}"
)


@pytest.mark.parametrize("step", [0.1, 1 / 255, 3.7e-5, 1e-7, 12.34])
@pytest.mark.parametrize(
    "below, above", [(0, 255), (128, 127), (0, 15), (8, 7), (0, 1), (17, 238)]
)
def test_gradients_are_bit_identical(below: int, above: int, step: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor(step)
    x = torch.randn(3, 8, 40, 9, generator=generator) * 0.4 * (below + above + 1) * scale
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(5, 8, 3, 3, generator=generator).requires_grad_()

    def gradients(keep: bool) -> tuple[Tensor, ...]:
        x_hat = uniform(x, scale, below, above)
        with input_as_codes(x_hat, scale, below, above if keep else 999):
            y = nn.functional.conv2d(x_hat, weight)
        return torch.autograd.grad(y.square().sum(), [x, weight])

    with engine("native"):
        codes, floats = gradients(True), gradients(False)
    for one, other in zip(codes, floats, strict=True):
        assert torch.equal(one, other)


def test_only_codes_are_kept() -> None:
    x = torch.rand(2, 4, 8, 8, requires_grad=True)
    scale = torch.tensor(0.1)
    x_hat = uniform(x, scale, 0, 15)
    with input_as_codes(x_hat, scale, 0, 15):
        y = nn.functional.conv2d(x_hat, torch.randn(4, 4, 3, 3, requires_grad=True))
    saved = y.grad_fn._saved_input  # type: ignore[union-attr]
    assert saved.data_ptr() != x_hat.data_ptr()
    assert torch.equal(saved, x_hat)
    floats = weakref.ref(x_hat)
    del x_hat
    gc.collect()
    assert floats() is None, "something else keeps the floats"
