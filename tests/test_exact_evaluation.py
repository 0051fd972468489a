"""Evaluation of a prepared network gives the very integers of the exported file."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from exact import drawn_bits, jitter_steps, require_equal, traced
from fuzz_torch import FuzzNet
from test_parity import QUICK, randomise_norms
from torch import Tensor, nn
from torch.nn import functional

from passes.pipelines import lower
from qtool.core.selection import LayerBits, Selection
from qtool.models import MODELS, model_entry, model_factory
from qtool.nn.control import calibrate, select
from qtool.nn.ops.int_grid import IntGrid
from qtool.nn.ops.on_grid import Lazy, OnGrid, on_grid, quantized
from qtool.nn.prepare.prepare import QuantSpec, prepare

SPECS = (
    QuantSpec((8, 4, 3, 2), (8, 4, 3, 2)),
    QuantSpec((8, 4, 3, 2, 1), (8, 4, 3, 2, 1), asymmetric=True),
    QuantSpec((8, 5, 2), (8, 6, 2), quantizer="lsq_plus"),
    QuantSpec((8, 4, 2), (8, 4, 2), quantizer="sat"),
    QuantSpec((8, 4), (8, 4), quantizer="pact", shared=True, per_channel=False),
    QuantSpec((8, 3), (7, 3), quantizer="dorefa"),
    QuantSpec((8, 4), (8, 4), input_step=None),
    QuantSpec((8, 4, 2), (8, 5, 2, 1), quantizer="double_rounding"),
)


def compare(
    model: nn.Module, shape: tuple[int, ...], seed: int, spec: QuantSpec = SPECS[0]
) -> int:
    """Return how many integers were compared, at bits drawn from `seed`."""
    draw = random.Random(seed)
    randomise_norms(model)
    prepared = prepare(model, spec, shape)
    images = torch.rand(8, *shape)
    if spec.input_step is None:
        images = images * 4 - 2
    calibrate(prepared, images)
    if draw.random() < 0.5:  # else rounding boundaries are met often
        jitter_steps(prepared)
    bits = drawn_bits(prepared, draw)
    return require_equal(prepared, traced(prepared, shape), bits, images[:3])


def fuzz(seed: int) -> None:
    net = FuzzNet(seed)
    compare(net, (3, net.size, net.size), seed, SPECS[seed % len(SPECS)])


@pytest.mark.parametrize("seed", range(42))
def test_random_networks(seed: int) -> None:
    fuzz(seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1000, 1500))
def test_random_network_sweep(seed: int) -> None:
    fuzz(seed)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.nightly) for n in MODELS]
)
def test_zoo(name: str) -> None:
    torch.manual_seed(0)
    channels, height, width = model_entry(name).input_shape
    # ImageNet's networks take any size; the others have linear layers made for theirs.
    shape = (channels, 40, 40) if min(height, width) > 100 else (channels, height, width)
    model = model_factory(name)(in_channels=channels, classes=10)
    assert compare(model, shape, 1) > 10_000


# Single things


class Body(nn.Module):
    """A convolution, a function of its result, and a linear layer."""

    def __init__(self, function: object, channels: int = 6, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, kernel)
        self.function = function
        self.fc = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(torch.flatten(self.function(self.conv(x)), 1))  # type: ignore[operator]
        return y


def in_place(y: Tensor) -> Tensor:
    z = functional.relu(y, inplace=True)
    return y + z


FUNCTIONS = {
    "in-place ReLU that others read": in_place,
    "two clamps": lambda y: functional.relu6(functional.hardtanh(y, -0.3, 0.9)),
    "pool of a clamp": lambda y: functional.max_pool2d(functional.relu6(y), 2, 1),
    "mean": lambda y: y.mean((2, 3)),
    "gate of one element": lambda y: functional.hardsigmoid(y[:, :1, :1, :1]),
    "padded": lambda y: functional.pad(functional.relu(y), (1, 0, 2, 1)),
    "sum of two sizes": lambda y: functional.adaptive_avg_pool2d(y, 1) + y,
    "square": lambda y: y * y,
    "twice": lambda y: functional.interpolate(y, scale_factor=2.0),
    "parts": lambda y: torch.cat([part.relu() for part in y.split(3, 1)], 1),
    "parts, one unread": lambda y: torch.cat(y.split([1, 2, 3], 1)[::2], 1),
    "one part": lambda y: y.split([4, 2], 1)[0].relu(),
    "the last part": lambda y: functional.silu(y.chunk(4, 1)[-1]),
    "a part of a part": lambda y: y.chunk(2, 1)[1].chunk(3, 1)[1] + y.chunk(2, 1)[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_functions(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = Body(FUNCTIONS[name])
    model.eval()(torch.rand(1, 3, 7, 7))
    compare(model, (3, 7, 7), seed, SPECS[seed])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bias", [True, False])
def test_norms_behind_linear_layers(bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(54, 12, bias), nn.BatchNorm1d(12), nn.ReLU(),
        nn.Linear(12, 7, bias), nn.BatchNorm1d(7, affine=False), nn.SiLU(),
        nn.Linear(7, 5, bias), nn.BatchNorm1d(5),
    )  # fmt: skip
    for norm in (model[4], model[7], model[10]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 3)
        if norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    with torch.no_grad():
        model[4].weight[2] = 0
    assert compare(model, (3, 5, 5), seed, SPECS[seed]) > 100


@pytest.mark.parametrize("channels", [32, 256, 3000])
def test_sums_beyond_float32(channels: int) -> None:
    """Sums that are exact in float32, in two halves, and only in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, 4, 3), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip
    with torch.no_grad():
        model[2].weight.abs_()
    compare(model, (3, 3, 3), 0, QuantSpec((8,), (8,)))


def test_a_bias_beyond_float32_is_added_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
    )
    prepared = prepare(model, QuantSpec((8,), (8,)), (3, 3, 3))
    images = torch.rand(8, 3, 3, 3)
    calibrate(prepared, images)
    with torch.no_grad():
        # Accumulator units of 2^-25: the bias is about 2^27 of them, sums are small.
        model[1].weight.copy_(torch.tensor([2e-4, -2e-4, 0.0, 1e-9]))
        model[1].bias.copy_(torch.tensor([5.0, 5.0, 1.0, 3.0]))
    assert require_equal(prepared, traced(prepared, (3, 3, 3)), Selection(), images) > 0


def test_gradients_see_the_floating_point_network() -> None:
    net = FuzzNet(3)
    prepared, x = prepare(net, SPECS[0], (3, net.size, net.size)), None
    x = torch.rand(4, 3, net.size, net.size)
    calibrate(prepared, x)
    select(prepared.eval(), Selection(default=LayerBits(4, 8)))
    result = prepared(x)
    assert type(result) is Tensor and result.requires_grad
    with torch.no_grad():
        exact = prepared(x)
    assert type(exact) is Tensor and (result - exact).abs().max() < 0.1 * exact.abs().max()


def test_the_meta_device_has_no_integers() -> None:
    net = FuzzNet(2)
    prepared = prepare(net, SPECS[0], (3, net.size, net.size))
    select(prepared.eval(), Selection())
    with torch.no_grad():
        out = prepared.to("meta")(torch.empty(2, 3, net.size, net.size, device="meta"))
    assert out.shape == (2, 5) and out.device.type == "meta"


# Lazy tensors

GRID = IntGrid(np.float32(0.1), 128, 0, 255)


def test_ties_saturation_and_nan() -> None:
    x = torch.tensor([0.25, 0.75, -0.25, 1e9, -1e9, torch.nan, torch.inf, -torch.inf])
    half = IntGrid(np.float32(0.5), 10, 2, 15)
    assert quantized(x, half).codes.tolist() == [0, 2, 0, 5, -8, -8, 5, -8]


def test_unknown_functions_see_floats() -> None:
    x = on_grid(torch.tensor([[1.0, -2.0]]), GRID)
    for result in (torch.erf(x), x.sum(), x / 3, torch.softmax(x, 1), x > 0):
        assert type(result) is Tensor
    assert torch.equal(x.sum(), torch.tensor([[1.0, -2.0]]).mul(0.1).sum())
    assert x.shape == (1, 2) and x.dtype == torch.float32 and x.size(1) == 2


def test_hooks_may_take_a_lazy_tensor_out_of_torch() -> None:
    x = functional.relu(on_grid(torch.tensor([[1.0, -2.0]]), GRID))
    wanted = np.array([[np.float32(0.1), 0]], np.float32)
    assert np.array_equal(x.numpy(), wanted) and np.array_equal(np.asarray(x), wanted)
    assert x.tolist() == wanted.tolist() and x[0, 0].item() == wanted[0, 0]
    for copied in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), x.detach()):
        assert type(copied) is Tensor and np.array_equal(copied.numpy(), wanted)
    assert "0.1" in repr(x)


def test_moves_keep_the_grid() -> None:
    x = on_grid(torch.arange(-8.0, 8).reshape(1, 2, 2, 4), GRID)
    for moved in (x.flatten(1), x[:, 1:], x.permute(0, 2, 3, 1), functional.max_pool2d(x, 2)):
        assert isinstance(moved, OnGrid) and moved.grid == GRID
    first, second = torch.chunk(x, 2, 1)
    assert isinstance(first, OnGrid) and torch.equal(second.codes, x.codes[:, 1:])
    assert not isinstance(functional.interpolate(x, scale_factor=2.0, mode="bilinear"), Lazy)
    assert not isinstance(functional.pad(x, (1, 1), value=0.5), Lazy)
    assert not isinstance(functional.dropout(x, 0.5, training=True), Lazy)


def test_in_place_functions_change_what_others_read() -> None:
    x = on_grid(torch.tensor([-3.0, 3.0]), GRID)
    same = x
    x.relu_()
    assert quantized(same, GRID).codes.tolist() == [0, 3]
    x.mul_(2)  # no integer form: floats, which a quantizer rounds
    assert quantized(same, GRID).codes.tolist() == [0, 6]
    x[0] = -0.4
    assert quantized(same, GRID).codes.tolist() == [-4, 6]
    functional.elu(x, inplace=True)
    assert quantized(same, GRID).codes.tolist() == [-3, 6]


def test_arguments_by_name() -> None:
    x = on_grid(torch.tensor([[-3.0, 30.0]]), GRID)
    for result in (
        torch.add(x, other=x), torch.relu(input=x), torch.clamp(x, min=0, max=1),
        functional.hardtanh(x, min_val=0.0, max_val=1.0), torch.mul(input=x, other=x),
    ):  # fmt: skip
        assert isinstance(result, Lazy), result
    for result in (torch.add(x, x, alpha=2), torch.add(x, 1), torch.clamp(x, min=x.neg())):
        assert not isinstance(result, Lazy)


def test_the_refusals_of_the_export_are_those_of_the_evaluation() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    prepared = prepare(model, QuantSpec((8,), (8,)), (3, 3, 3))
    calibrate(prepared, torch.rand(4, 3, 3, 3))
    with torch.no_grad():
        model[1].bias[2] = torch.inf
    graph = traced(prepared, (3, 3, 3))
    select(prepared.eval(), Selection())
    messages = []
    for action in (
        lambda: prepared(torch.rand(1, 3, 3, 3)),
        lambda: lower(graph, Selection()),
    ):
        with pytest.raises(Exception, match="layer 0: channel 2 has bias inf") as error:
            with torch.no_grad():
                action()
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("context", [torch.inference_mode(), torch.autocast("cpu")])
def test_contexts_change_no_integer(context: object) -> None:
    net = FuzzNet(3)
    prepared = prepare(net, SPECS[0], (3, net.size, net.size))
    x = torch.rand(4, 3, net.size, net.size)
    calibrate(prepared, x)
    select(prepared.eval(), Selection(default=LayerBits(4, 8)))
    with torch.no_grad():
        expected = prepared(x)
        with context:  # type: ignore[attr-defined]
            assert torch.equal(prepared(x), expected)


def test_a_copy_gives_plain_numbers_too() -> None:
    net = FuzzNet(1)
    prepared = prepare(net, SPECS[0], (3, net.size, net.size))
    x = torch.rand(2, 3, net.size, net.size)
    calibrate(prepared, x)
    select(prepared.eval(), Selection())
    with torch.no_grad():
        assert type(copy.deepcopy(prepared)(x)) is Tensor


def test_what_was_computed_before_a_change_stays() -> None:
    x = on_grid(torch.tensor([[-3.0, 3.0]]), GRID)
    clamped = functional.relu(x)
    joined = torch.cat([clamped, x])
    x.mul_(2)
    assert quantized(joined, GRID).codes.tolist() == [[0, 3], [-3, 3]]
    assert torch.equal(torch.erf(clamped), torch.erf(torch.tensor([[0.0, 3 * 0.1]])))


@pytest.mark.parametrize("low", [0.3, -0.9])
def test_bounds_behind_a_pad_bound_the_padding(low: float) -> None:
    torch.manual_seed(0)
    bounds = sorted((low, low / 3))
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ZeroPad2d(1), nn.Hardtanh(*bounds),
        nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(100, 3),
    )  # fmt: skip
    compare(model, (3, 7, 7), 0)
    seen: list[Tensor] = []
    prepared = prepare(model, QuantSpec((8,), (8,)), (3, 7, 7))
    x = torch.rand(4, 3, 7, 7)
    calibrate(prepared, x)
    select(prepared.eval(), Selection())
    layer = prepared.get_submodule("4")
    layer.input_quant.register_forward_hook(lambda *a: seen.append(a[2].detach()))
    with torch.no_grad():
        prepared(x)
    assert (seen[0][:, :, 0] - bounds[0 if low > 0 else 1]).abs().max() < 0.01
