"""BatchNorm, ReLU and quantizer in one pass equal the three operators."""

import copy

import pytest
import torch
from torch import Tensor, nn

from qtool.native.library import availability
from qtool.nn.ops.norm_quant import norm_quantize
from qtool.quantizers.engines import engine
from qtool.quantizers.grid import Grid
from qtool.quantizers.uniform import uniform

ENGINES = [
    "eager",
    pytest.param(
        "native",
        marks=pytest.mark.skipif(
            availability().library is None, reason=f"native kernels: {availability().reason}"
        ),
    ),
]
GRIDS = [Grid(8, 7), Grid(128, 127), Grid(0, 15, True), Grid(0, 255, True, 6.0)]
CHANNELS = [16, 24, 3, 33, 96]


def setup(channels: int) -> tuple[Tensor, Tensor, nn.BatchNorm2d]:
    """Return input, gradient and a norm of which some factors are negative and one is 0."""
    torch.manual_seed(channels)
    shape = (5, channels, 6, 7)
    x = (torch.randn(shape) * 3 + 1).contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.weight.data[0] = 0
    return x, torch.randn(shape), norm


def results(norm: nn.BatchNorm2d, x: Tensor, grad: Tensor, function: object) -> list[Tensor]:
    """Return the output, every gradient and the running statistics."""
    norm = copy.deepcopy(norm).to(x.dtype)
    x, step = x.clone().requires_grad_(), torch.tensor(0.2, dtype=x.dtype, requires_grad=True)
    y = function(x, norm, step)  # type: ignore[operator]
    y.backward(grad.to(x.dtype))
    gradients = [x.grad, step.grad]
    if norm.affine:
        gradients += [norm.weight.grad, norm.bias.grad]
    state = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    return [t.detach() for t in (y, *gradients, *state) if t is not None]


def separate(x: Tensor, norm: nn.BatchNorm2d, step: Tensor, grid: Grid) -> Tensor:
    """Compute one operator at a time, the ReLU by torch."""
    z = norm(x)
    z = z.clamp(0, grid.ceiling) if grid.relu else z
    return uniform(z, step, grid.below, grid.above)


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_equals_the_separate_operators(channels: int, grid: Grid, name: str) -> None:
    x, grad, norm = setup(channels)
    with engine(name):
        fused = results(
            norm, x, grad, lambda x, n, s: norm_quantize(x, n, s, grid, "lsq", 1.0)
        )
    with engine("eager"):
        plain = results(norm, x, grad, lambda x, n, s: separate(x, n, s, grid))
    assert torch.equal(fused[0], plain[0]), "x_hat"
    assert fused[0].is_contiguous(memory_format=torch.channels_last)
    for got, expected in zip(fused[5:], plain[5:], strict=True):
        assert torch.equal(got, expected), "running statistics"
    assert error(fused[1], plain[1]) < 1e-6
    # torch's own norm rounds z once where this one rounds it twice: what quantization's
    # rounding adds to z differs in its last digits, and so does the step's gradient.
    assert error(fused[2], plain[2]) < 2e-4
    for got, expected in zip(fused[3:5], plain[3:5], strict=True):
        assert error(got, expected) < 5e-6


@pytest.mark.parametrize("grid", GRIDS)
def test_native_and_eager_forward_are_bit_identical(grid: Grid) -> None:
    if availability().library is None:
        pytest.skip(f"native kernels: {availability().reason}")
    x, grad, norm = setup(24)
    found = []
    for name in ("eager", "native"):
        with engine(name):
            found.append(
                results(
                    norm, x, grad, lambda x, n, s: norm_quantize(x, n, s, grid, "lsq", 1.0)
                )
            )
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(found[0][1:5], found[1][1:5], strict=True):
        assert error(one, other) < 1e-6


@pytest.mark.parametrize("name", ENGINES)
def test_gradients_in_float64(name: str) -> None:
    """Against float64 throughout: what float32 statistics and products cost."""
    x, grad, norm = setup(16)
    grid = Grid(8, 7)
    with engine(name):
        got = results(norm, x, grad, lambda x, n, s: norm_quantize(x, n, s, grid, "lsq", 1.0))
    expected = results(norm, x.double(), grad, lambda x, n, s: separate(x, n, s, grid))
    assert torch.equal((got[0] / 0.2).round(), (expected[0] / 0.2).round().float())
    for one, other in zip(got[1:5], expected[1:5], strict=True):
        assert error(one, other) < 1e-6


def test_a_plain_average_over_batches() -> None:
    """``momentum = None`` is what statistics are calibrated with."""
    x, _, norm = setup(16)
    norm.momentum = None
    other = copy.deepcopy(norm)
    for scale in (1.0, 2.0, 5.0):
        norm_quantize(x * scale, norm, torch.tensor(0.2), Grid(8, 7), "lsq", 1.0)
        other(x * scale)
    assert torch.equal(norm.running_mean, other.running_mean)  # type: ignore[arg-type]
    assert torch.equal(norm.running_var, other.running_var)  # type: ignore[arg-type]


def test_without_affine_parameters() -> None:
    x, grad, _ = setup(16)
    norm = nn.BatchNorm2d(16, affine=False)
    got = results(norm, x, grad, lambda x, n, s: norm_quantize(x, n, s, GRIDS[0], "lsq", 1.0))
    expected = results(norm, x, grad, lambda x, n, s: separate(x, n, s, GRIDS[0]))
    assert torch.equal(got[0], expected[0])
    assert error(got[1], expected[1]) < 1e-6
