"""In training, norms and ReLUs leave their work to quantizers, and nothing else changes."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from qtool.core.selection import LayerBits, Selection
from qtool.models import model_factory
from qtool.native.library import availability
from qtool.nn.control import activation_quantizers, calibrate, select, turn_off
from qtool.nn.modules.prologue import Deferred, rectify
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.quantizers.engines import engine

NETS = ["preact_resnet20_narrow", "resnet20", "mobilenet_v2_small"]


def prepared(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a calibrated network and a batch."""
    torch.manual_seed(0)
    channels = 1 if name.endswith("small") else 3
    net = model_factory(name)(in_channels=channels, classes=10)
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        # Where a channel is constant, a bias of 0 leaves the sign of z to rounding.
        nn.init.uniform_(norm.bias, 0.1, 0.3)
    x = torch.rand(8, channels, 32, 32).contiguous(memory_format=torch.channels_last)
    model = prepare(net, QuantSpec((4,), 4), (channels, 32, 32))
    calibrate(model, x)
    select(model, Selection())
    return model, x, torch.randint(0, 10, (8,))


def undeferred(model: nn.Module) -> nn.Module:
    """Return a copy in which every operator does its own work."""
    model = copy.deepcopy(model)
    for quantizer in activation_quantizers(model):
        quantizer._prologue = ()
    for module in model.modules():
        if isinstance(module, Deferred):
            module.forward = partial(rectify, ceiling=module.ceiling)  # type: ignore
        if hasattr(module, "defers_norm"):
            module.defers_norm = False
    return model


def trained(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, nn.Module]:
    """Return logits and the model with the gradients of one step."""
    torch.manual_seed(1)  # of Dropout
    logits = model.train()(x)
    nn.functional.cross_entropy(logits, labels).backward()
    return logits, model


@pytest.mark.parametrize("name", NETS)
def test_a_forward_pass_is_the_same_but_for_rounding(name: str) -> None:
    """torch's norm fuses multiplication and addition: some values take another code."""
    model, x, labels = prepared(name)
    assert sum(len(q._prologue) for q in activation_quantizers(model)) > 15
    logits, one = trained(copy.deepcopy(model), x, labels)
    plain, other = trained(undeferred(model), x, labels)
    both = torch.stack([logits.detach().reshape(-1), plain.detach().reshape(-1)])
    assert float(torch.corrcoef(both)[0, 1]) > 0.98
    state = dict(other.named_buffers())
    for key, buffer in one.named_buffers():
        assert torch.allclose(buffer, state[key], rtol=0.05, atol=0.02), key


@pytest.mark.parametrize("name", NETS)
def test_engines_agree_on_a_whole_network(name: str) -> None:
    if availability().library is None:
        pytest.skip(f"native kernels: {availability().reason}")
    model, x, labels = prepared(name)
    found = []
    for which in ("native", "eager"):
        with engine(which):
            found.append(trained(copy.deepcopy(model), x, labels))
    (logits, one), (other_logits, other) = found
    assert torch.equal(logits, other_logits)
    expected = dict(other.named_parameters())
    for key, parameter in one.named_parameters():
        got, wanted = parameter.grad, expected[key].grad
        assert float((got - wanted).norm()) <= 1e-4 * float(wanted.norm()) + 1e-6, key


@pytest.mark.parametrize("bits", [None, 32])
def test_quantizers_that_are_off_compute_norms_too(bits: int | None) -> None:
    model, x, labels = prepared("resnet20")
    if bits is None:
        turn_off(model)
    else:
        select(model, Selection(default=LayerBits(32, 4)), weights=False)
    logits, _ = trained(copy.deepcopy(model), x, labels)
    plain, _ = trained(undeferred(model), x, labels)
    assert torch.allclose(logits, plain, atol=1e-5)


def test_evaluation_is_untouched() -> None:
    model, x, labels = prepared("mobilenet_v2_small")
    trained(model, x, labels)
    assert torch.equal(model.eval()(x), undeferred(model).eval()(x))


def test_a_frozen_norm_stays_frozen() -> None:
    model, x, labels = prepared("resnet20")
    model.train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    nn.functional.cross_entropy(model(x), labels).backward()
    for norm, mean in zip(norms, before, strict=True):
        assert torch.equal(norm.running_mean, mean)  # type: ignore[arg-type]
