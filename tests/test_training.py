"""Quantizer gradients and prepared models."""

import math

import pytest
import torch
from torch import Tensor, nn

from qtool.core.errors import UnsupportedError
from qtool.core.grids import activation_window
from qtool.core.selection import LayerBits, Selection
from qtool.models.mobilenet_v2 import mobilenet_v2_small
from qtool.nn.control import bit_costs, quantizers
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.quantizers.lsq import lsq, mse_step


def lsq_by_hand(x: Tensor, s: float, qn: int, qp: int) -> tuple[Tensor, Tensor, Tensor]:
    """Esser et al. Eq. 1-3 and 5 in float64: value, dx_hat/dx, dx_hat/ds, elementwise."""
    v = x.double() / s
    inside = (v >= -qn) & (v <= qp)
    rounded = v.clamp(-qn, qp).round()
    slope = torch.where(inside, rounded - v, torch.where(v < 0, -float(qn), float(qp)))
    return rounded * s, inside.double(), slope


@pytest.mark.parametrize(("qn", "qp"), [(0, 255), (0, 15), (0, 7), (8, 7), (7, 7), (128, 127)])
def test_lsq_matches_its_published_gradient(qn: int, qp: int) -> None:
    torch.manual_seed(0)
    x = (torch.randn(4, 50) * 3).requires_grad_()
    s = torch.tensor(0.21, requires_grad=True)
    upstream = torch.randn(4, 50)
    out = lsq(x, s, qn, qp)
    out.backward(upstream)
    value, dx, ds = lsq_by_hand(x.detach(), s.item(), qn, qp)
    scale = 1 / math.sqrt(x.numel() * qp)
    assert torch.equal(out, (value / s.item()).float() * s.detach())
    assert x.grad is not None and torch.equal(x.grad, dx.float() * upstream)
    expected = float((ds * upstream.double()).sum() * scale)
    assert s.grad is not None and abs(float(s.grad) - expected) <= 1e-5 * max(1, abs(expected))


def test_lsq_per_channel_shares_a_step_within_its_channel() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 2, 2)
    s = torch.tensor([0.1, 0.3, 0.7]).reshape(3, 1, 1, 1).requires_grad_()
    upstream = torch.randn_like(x)
    lsq(x, s, 7, 7).backward(upstream)
    assert s.grad is not None and s.grad.shape == s.shape
    for c in range(3):
        _, _, ds = lsq_by_hand(x[c], float(s[c].detach()), 7, 7)
        expected = float((ds * upstream[c].double()).sum()) / math.sqrt(x[c].numel() * 7)
        assert abs(float(s.grad[c]) - expected) < 1e-5


def test_mse_step_finds_the_grid_that_the_data_lies_on() -> None:
    x = torch.arange(0, 16).float() * 0.25
    assert float(mse_step(x[None], 0, 15)) == 0.25


def test_mse_step_clips_an_outlier() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.rand(10_000), torch.tensor([30.0])])
    assert float(mse_step(x[None], 0, 7)) * 7 < 15


@pytest.mark.parametrize("bits", range(1, 9))
def test_windows_hold_two_to_the_bits_codes(bits: int) -> None:
    for signed in (False, True):
        window = activation_window(bits, signed)
        assert window.hi - window.lo + 1 == 2**bits
        assert window.lo <= window.zero_point <= window.hi


def small() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    return prepare(mobilenet_v2_small(), QuantSpec())


def test_prepared_but_switched_off_is_the_same_function() -> None:
    torch.manual_seed(0)
    model = mobilenet_v2_small().eval()
    x = torch.rand(2, 1, 28, 28)
    expected = model(x)
    assert torch.equal(prepare(model, QuantSpec()).eval()(x), expected)


def test_prepare_gives_every_rounded_edge_a_grid() -> None:
    roles = [q.role for q in quantizers(small())]
    assert roles.count("activation") == roles.count("weight") == 20
    assert roles.count("output") == 1
    # Three residual adds read two tensors each; the seventh is pooled.
    assert roles.count("glue") == 7


def test_signs_follow_the_activation_functions() -> None:
    signed = {q.name: q.signed for q in quantizers(small()) if q.role == "activation"}
    assert not signed["features.0.0"] and not signed["classifier.1"]
    assert signed["features.2.conv.0.0"] and not signed["features.2.conv.1.0"]


def test_parameters_are_neither_lost_nor_doubled() -> None:
    torch.manual_seed(0)
    plain = sum(p.numel() for p in mobilenet_v2_small().parameters())
    model = small()
    steps = sum(q.step.numel() for q in quantizers(model) if isinstance(q.step, nn.Parameter))
    assert sum(p.numel() for p in model.parameters()) == plain + steps
    pointers = [t.data_ptr() for t in model.state_dict().values() if t.numel() > 1]
    assert len(pointers) == len(set(pointers))


def test_prepare_refuses_what_it_cannot_trace() -> None:
    class Branchy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedError, match="model Branchy cannot be traced"):
        prepare(Branchy(), QuantSpec())


def test_prepare_refuses_batchnorm_without_statistics() -> None:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    model = nn.Sequential(nn.ReLU(), norm, nn.Conv2d(3, 4, 1))
    with pytest.raises(UnsupportedError, match="layer 1: BatchNorm without running statistic"):
        prepare(model, QuantSpec())


def test_prepare_refuses_a_layer_that_is_called_twice() -> None:
    shared = nn.Conv2d(3, 3, 1)
    with pytest.raises(UnsupportedError, match="layer 0 is called more than once"):
        prepare(nn.Sequential(shared, nn.ReLU(), shared), QuantSpec())


def test_bops_of_a_selection() -> None:
    model = small()
    costs = bit_costs(model, (1, 28, 28), Selection(default=LayerBits(4, 4)))
    assert sum(cost.bops for cost in costs) == 50_995_200
