"""The differentiable search's loss and gradient, and the repair of its argmax."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from qtool.core.errors import UserError
from qtool.core.selection import LayerBits, Selection
from qtool.models.mobilenet_v2 import mobilenet_v2_small
from qtool.nn.control import bit_costs, calibrate, select
from qtool.nn.grid_fit import fit_values
from qtool.nn.modules.fake_quant import FakeQuantizer
from qtool.nn.ops.mixture import mixed, mixed_fixed
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.search.bit_search import BitSearch, softmax, straight_through
from qtool.search.fit import argmax, fit, is_fitting
from qtool.search.limits import LEAST_USE, Limit, check_reachable, layer_bops, limit_of
from qtool.search.space import space_of
from qtool.settings.metamix import MetaMixConfig
from qtool.settings.override import override

SHAPE = (1, 28, 28)


def bit_search(
    budget: float, weights: tuple[int, ...] = (4,), is_fixed: bool = True, **values: str
) -> BitSearch:
    torch.manual_seed(0)
    model = prepare(mobilenet_v2_small(), QuantSpec(weight_bits=weights), SHAPE)
    calibrate(model, torch.rand(16, 1, 28, 28))
    config = override(
        MetaMixConfig("test", "mobilenet_v2_small", "none"),
        [f"{key}={value}" for key, value in values.items()],
    )
    space = space_of(model, SHAPE)
    limits = [limit_of("bops", budget, space, layer_bops)]
    return BitSearch(config, model.eval(), space, limits, is_fixed)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(8, 1, 28, 28), torch.randint(10, (8,))


def searched(search: BitSearch, mixture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, labels = batch()
    return search.loss(x, lambda z: cross_entropy(z, labels), len(labels), mixture)


def gradient(search: BitSearch) -> Tensor:
    loss, _, penalty = searched(search, softmax(search.alpha))
    (found,) = torch.autograd.grad(loss + penalty, [search.alpha])
    return found


@pytest.mark.parametrize("weights", [(4,), (8, 4, 2)])
def test_gradient_is_alphas_alone(weights: tuple[int, ...]) -> None:
    search = bit_search(48e6, weights)
    found = gradient(search)
    assert found.shape == (18, 3 * len(weights)) and bool((found != 0).any(1).all())
    # softmax's gradient: shifting all of a layer's alphas changes nothing
    assert float(found.sum(1).abs().max()) < 1e-5
    assert all(parameter.grad is None for parameter in search.model.parameters())


@pytest.mark.parametrize("weights", [(4,), (8, 4, 2)])
def test_a_certain_mixture_is_the_network_at_these_bits(weights: tuple[int, ...]) -> None:
    search = bit_search(48e6, weights)
    picks = search.alpha.argmax(1).tolist()
    _, logits, _ = searched(search, softmax(1e8 * search.alpha))
    pairs = zip(search.space.open, picks, strict=True)
    bits = Selection({layer.name: layer.choices[pick] for layer, pick in pairs})
    select(search.model, bits, weights=len(weights) > 1)
    # In evaluation a quantized layer sums codes, the mixture values.
    assert torch.allclose(logits, search.model(batch()[0]), atol=1e-3)
    costs = bit_costs(search.model, SHAPE, bits)
    assert search.limits[0].used(picks) == sum(cost.bops for cost in costs)


def test_straight_through_is_one_hot_with_softmaxs_gradient() -> None:
    torch.manual_seed(0)
    alpha = torch.randn(5, 3, requires_grad=True)
    hard, upstream = straight_through(alpha), torch.randn(5, 3)
    assert torch.equal(hard.detach().argmax(1), alpha.argmax(1))
    assert torch.allclose(hard.detach().sort(1).values, torch.tensor([[0.0, 0.0, 1.0]]))
    pair = [
        torch.autograd.grad(f(alpha), alpha, upstream)[0] for f in (straight_through, softmax)
    ]
    assert torch.equal(*pair)


def test_the_mixture_is_eq_2() -> None:
    search = bit_search(48e6)
    searched(search, softmax(search.alpha))
    layer = search.layers[0].input_quant
    x = torch.randn(4, 16, 7, 7)
    parts = zip(softmax(search.alpha)[0], layer.bits, strict=True)
    expected = sum(share * layer.quantize_at(x, bits) for share, bits in parts)
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_penalty_is_the_distance_to_the_budget() -> None:
    penalties = []
    for budget in (48e6, 90e6):
        search = bit_search(budget, search_lambda="7")
        *_, penalty = searched(search, softmax(search.alpha))
        used = search.limits[0].used(search.alpha.argmax(1).tolist())
        assert float(penalty.detach()) == pytest.approx(7 * abs(used - budget) / 1e9, rel=1e-5)
        penalties.append(float(penalty.detach()))
    assert penalties[0] != penalties[1]


@pytest.mark.parametrize("autocast", ["true", "false"])
@pytest.mark.parametrize("weights", [(4,), (8, 4)])
def test_the_cheap_gradient_is_the_whole_ones(weights: tuple[int, ...], autocast: str) -> None:
    cheap, whole = (
        gradient(bit_search(48e6, weights, is_fixed=is_fixed, autocast=autocast))
        for is_fixed in (True, False)
    )
    assert torch.allclose(cheap, whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shape", [(4, 6, 5, 5), (4, 6)])
def test_both_mixtures_are_the_same_function(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    quantizer = FakeQuantizer("layer", "activation", (8, 4, 2), signed=True)
    fit_values(quantizer, torch.randn(1000))
    upstream, found = torch.randn(shape), []
    for function in (mixed_fixed, mixed):
        torch.manual_seed(1)
        x = (torch.randn(shape) * 2).requires_grad_()
        weights = torch.tensor([0.2, 0.7, 0.1], requires_grad=True)
        out = function(quantizer, x, weights)
        out.backward(upstream)
        found.append((out.detach(), x.grad, weights.grad))
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def limit(slopes: list[int], share: float) -> Limit:
    costs = tuple(tuple(float(b * slope) for b in (8, 4, 3)) for slope in slopes)
    low, high = sum(3 * s for s in slopes), sum(8 * s for s in slopes)
    return Limit("bops", low + share * (high - low) + 11, 11, costs)


@settings(max_examples=40, deadline=None)
@given(
    slopes=st.lists(st.integers(1, 600), min_size=4, max_size=20),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_fit_never_exceeds_the_budget(slopes: list[int], share: float, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(len(slopes), 3)).tolist()
    bound = limit(slopes, share)
    picks = fit(scores, [bound])
    assert bound.used(picks) <= bound.bound
    favourite = argmax(scores)
    if is_fitting(favourite, [bound]):
        assert picks == favourite
    if picks != favourite:  # what was left is spent: no single upgrade fits any more
        spare = bound.bound - bound.used(picks)
        upgrades = [
            cost - row[pick]
            for row, pick in zip(bound.costs, picks, strict=True)
            for cost in row
            if cost > row[pick]
        ]
        assert all(extra > spare for extra in upgrades)


def test_fit_moves_the_least_certain_layer() -> None:
    bound = Limit("bops", 120, 0, ((80.0, 40.0), (80.0, 40.0)))
    assert fit([[-0.01, -5.0], [-0.69, -0.70]], [bound]) == [0, 1]


def test_fit_meets_every_bound_and_uses_one() -> None:
    wide, narrow = limit([100, 200, 300], 0.9), limit([300, 100, 50], 0.3)
    picks = fit([[3.0, 2.0, 1.0]] * 3, [wide, narrow])
    shares = [one.used(picks) / one.bound for one in (wide, narrow)]
    assert max(shares) <= 1 and max(shares) >= LEAST_USE


def test_budgets_that_cannot_be_met_are_refused() -> None:
    bound = limit([10, 20], 0.5)
    low, high = bound.span
    assert (low, high) == (101, 251)
    for value, text in ((100.0, "is below every selection"), (252.0, "above every selection")):
        with pytest.raises(UserError, match=f"budget {value:.0f}BOPs .*{text}") as error:
            check_reachable([Limit("bops", value, bound.fixed, bound.costs)])
        assert "reachable: 101BOPs (101) to 251BOPs (251)" in str(error.value)
    opposed = Limit("bytes", 40, 0, ((90.0, 80.0, 10.0), (10.0, 80.0, 90.0)))
    tight = Limit("bops", 105, 11, bound.costs)
    with pytest.raises(UserError, match="no selection meets all of them"):
        fit([[0.0, 0.0, 0.0]] * 2, [tight, opposed])


def test_space_holds_every_pair_and_the_fixed_ends() -> None:
    layers = bit_search(60e6, (8, 2)).space.layers
    assert [len(layer.choices) for layer in layers] == [1] + [6] * 18 + [1]
    assert layers[0].choices == (LayerBits(8, 8),)
    assert layers[1].choices[:3] == (LayerBits(8, 8), LayerBits(8, 4), LayerBits(8, 3))
