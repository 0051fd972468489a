"""Hessian traces against the exact Hessian, and the penalties made from them."""

import math

import pytest
import torch
from search_nets import batches, fingerprint, float_net, meta_net, same
from torch import Tensor, nn
from torch.nn import functional

from qtool.core.errors import UnsupportedError
from qtool.core.selection import LayerBits, Selection
from qtool.models.normalised import Normalised
from qtool.nn.control import quant_layers, quantizers, select
from qtool.search.curvature import Surface, surface
from qtool.search.hessian import LayerTraces, Traces, hessian_penalties, layer_traces

LAYERS = ["0", "2"]
IMAGES = 3


def smooth_net() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network of two layers that has second derivatives everywhere, and a batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, torch.randn(IMAGES, 3).double(), torch.tensor([0, 2, 1])


def exact_hessian(
    images: slice = slice(IMAGES),
) -> tuple[Tensor, list[Tensor], list[slice]]:
    """Return the Hessian of (W0, W2, input of 0, input of 2), the point, and its parts."""
    model, x, labels = smooth_net()
    x, labels = x[images], labels[images]
    first, last = model[0], model[2]

    def loss(w0: Tensor, w2: Tensor, d0: Tensor, d2: Tensor) -> Tensor:
        hidden = torch.tanh(functional.linear(x + d0, w0, first.bias)) + d2
        return functional.cross_entropy(functional.linear(hidden, w2, last.bias), labels)

    point = [
        first.weight.detach(), last.weight.detach(), torch.zeros_like(x),
        x.new_zeros(len(x), 4),
    ]  # fmt: skip
    blocks = torch.autograd.functional.hessian(loss, tuple(point))
    sizes = [p.numel() for p in point]
    rows = [
        torch.cat([b.reshape(n, -1) for b in row], 1)
        for n, row in zip(sizes, blocks, strict=True)
    ]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return torch.cat(rows), point, parts


def smooth_surface() -> Surface:
    model, x, labels = smooth_net()
    return surface(model, LAYERS, x, labels)


def test_every_probe_is_the_quadratic_form_of_the_exact_hessian() -> None:
    hessian, point, parts = exact_hessian()
    found = smooth_surface()
    for seed in range(3):
        torch.manual_seed(seed)
        vectors = [torch.randn_like(p) for p in point]
        product = hessian @ torch.cat([v.reshape(-1) for v in vectors])
        wanted = [
            float(v.reshape(-1) @ product[p]) for v, p in zip(vectors, parts, strict=True)
        ]
        assert found.quadratic_forms(vectors).tolist() == pytest.approx(wanted, abs=1e-12)


def test_an_images_input_matters_to_no_other_image() -> None:
    hessian, _, parts = exact_hessian()
    block = hessian[parts[3], parts[3]].reshape(IMAGES, 4, IMAGES, 4)
    for i in range(IMAGES):
        for j in range(IMAGES):
            assert (float(block[i, :, j].abs().max()) > 1e-6) == (i == j)


def probe_variance(hessian: Tensor, parts: list[slice], scales: Tensor) -> list[float]:
    """Of v_j' (H v)_j / c_j^2 with v_k Rademacher times c_k, for every variable j.

    2 sum_{p != q} H_pq^2 within the variable, and (c_k / c_j)^2 times the squares of what ties
    it to variable k.
    """
    found = []
    for j, part in enumerate(parts):
        own = hessian[part, part].square()
        others = [float(hessian[part, other].square().sum()) for other in parts]
        cross = sum(float(scales[k] / scales[j]) ** 2 * x for k, x in enumerate(others))
        found.append(float(2 * (own.sum() - own.diag().sum()) - own.sum()) + cross)
    return found


@pytest.mark.parametrize("batches_of", [[slice(0, 3)], [slice(0, 1), slice(1, 3)]])
def test_traces_are_within_the_probes_error_of_the_exact_ones(batches_of: list[slice]) -> None:
    model, x, labels = smooth_net()
    probes, hessian, _, parts = 1500, *exact_hessian()
    data = [(x[rows], labels[rows]) for rows in batches_of]
    found = layer_traces(model, LAYERS, data, probes, seed=5)
    got = [(found[n].weight, found[n].weight_error) for n in LAYERS]
    got += [(found[n].activation, found[n].activation_error) for n in LAYERS]
    variances = [0.0] * len(got)
    for (x, labels), rows in zip(data, batches_of, strict=True):
        part, _, places = exact_hessian(rows)
        scales = surface(model, LAYERS, x, labels).scales()
        for variable, each in enumerate(probe_variance(part, places, scales)):
            variances[variable] += (len(x) / IMAGES) ** 2 * each / probes
    for variable, (value, error) in enumerate(got):
        trace = float(hessian[parts[variable], parts[variable]].trace())
        deviation = math.sqrt(variances[variable])
        assert abs(value - trace) <= 3 * deviation
        # Of 1500 draws with a kurtosis of a few, the spread is known to a tenth or so.
        assert error == pytest.approx(deviation, rel=0.3)
        assert 3 * deviation < trace  # or this test could not fail


def test_the_seed_decides_and_the_network_stays_as_it_is() -> None:
    model = Normalised(float_net(), (0.5,), (0.25,)).train()
    model.requires_grad_(False)
    before = fingerprint(model)
    layers = ["network.0", "network.3", "network.11"]
    first, again, other = (
        layer_traces(model, layers, batches(), probes=2, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again and first != other
    assert first.images_seen == 2 * 12
    assert same(before, model) and model.training and not model.normalise.training
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_is_no_module_is_named() -> None:
    with pytest.raises(UnsupportedError, match="layer stem: the network has no module"):
        layer_traces(float_net(), ["stem"], batches(), probes=1, seed=0)


def test_no_images_give_no_traces() -> None:
    with pytest.raises(ValueError, match="no images"):
        layer_traces(float_net(), ["0"], [], probes=1, seed=0)


def traces_of(weight: float, activation: float) -> LayerTraces:
    _, space = meta_net()
    return LayerTraces({x.name: Traces(weight, activation) for x in space.open}, 0)


def by_hand(layer_index: int, choice: LayerBits, image_batches: list[Tensor]) -> list[float]:
    """Mean square error of (weight, input) of one open layer, computed another way."""
    model, space = meta_net((8, 4))
    name = space.open[layer_index].name
    layer = next(x for x in quant_layers(model) if x.name == name)
    select(model, Selection({name: choice}))
    weight = layer.layer.weight
    errors = [(layer.weight_quant(weight) - weight).square().mean()]
    for quantizer in quantizers(model):
        quantizer.selected = None
    inputs: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    for x in image_batches:
        model(x)
    x = torch.cat(inputs)
    errors.append((layer.input_quant.quantize_at(x, choice.activation) - x).square().mean())
    return [float(error) for error in errors]


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_penalties_are_mean_curvature_times_squared_error(layer: int) -> None:
    model, space = meta_net((8, 4))
    select(model, Selection({}))
    before, data = fingerprint(model), batches()
    chosen = [q.selected for q in quantizers(model)]
    found = hessian_penalties(model, space, traces_of(3.0, 5.0), data)
    assert [len(row) for row in found] == [6, 6]
    for penalty, choice in zip(found[layer], space.open[layer].choices, strict=True):
        w, a = by_hand(layer, choice, [x for x, _ in data])
        assert penalty == pytest.approx(3 * w + 5 * a, rel=1e-4)
    assert same(before, model) and [q.selected for q in quantizers(model)] == chosen


def test_a_grid_that_holds_every_weight_costs_nothing_and_less_bits_cost_more() -> None:
    model, space = meta_net((8, 4))
    entry = space.open[0]
    layer = next(x for x in quant_layers(model) if x.name == entry.name)
    with torch.no_grad():
        codes = torch.randint(-7, 8, layer.layer.weight.shape)
        codes[:, 0] = 7
        layer.layer.weight.copy_(codes * 0.125)
    row = hessian_penalties(model, space, traces_of(1.0, 0.0), batches())[0]
    at = dict(zip(entry.choices, row, strict=True))
    assert at[LayerBits(4, 8)] == at[LayerBits(4, 2)] < 1e-12
    costs = hessian_penalties(model, space, traces_of(0.0, 1.0), batches())[1]
    assert costs[0] < costs[1] < costs[2]


def test_a_negative_trace_rewards_no_error() -> None:
    model, space = meta_net()
    found = hessian_penalties(model, space, traces_of(-1.0, -2.0), batches())
    assert found == [[0.0] * 3] * 2
