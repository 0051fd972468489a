"""In training, norms and ReLUs leave their work to quantizers, and nothing else changes."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from qtool.models import model_factory
from qtool.nn.control import calibrate, quantizers, select, turn_off
from qtool.nn.prepare import QuantSpec, prepare
from qtool.nn.prologue import Deferred, rectify
from qtool.qspec import LayerBits, Selection

NETS = ["preact_resnet20_narrow", "resnet20", "mobilenet_v2_small"]


def prepared(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a calibrated network and a batch."""
    torch.manual_seed(0)
    channels = 1 if name.endswith("small") else 3
    net = model_factory(name)(in_channels=channels, classes=10)
    x = torch.rand(8, channels, 32, 32).contiguous(memory_format=torch.channels_last)
    model = prepare(net, QuantSpec((4,), 4), (channels, 32, 32))
    calibrate(model, x)
    select(model, Selection())
    return model, x, torch.randint(0, 10, (8,))


def undeferred(model: nn.Module) -> nn.Module:
    """Return a copy in which every operator does its own work."""
    model = copy.deepcopy(model)
    for quantizer in quantizers(model):
        quantizer._prologue = ()
    for module in model.modules():
        if isinstance(module, Deferred):
            module.forward = partial(rectify, ceiling=module.ceiling)  # type: ignore
        if hasattr(module, "defers_norm"):
            module.defers_norm = False
    return model


def trained(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, nn.Module]:
    """Return logits and the model with the gradients of one step."""
    logits = model.train()(x)
    nn.functional.cross_entropy(logits, labels).backward()
    return logits, model


@pytest.mark.parametrize("name", NETS)
def test_a_step_is_the_same(name: str) -> None:
    model, x, labels = prepared(name)
    assert sum(len(q._prologue) for q in quantizers(model)) > 15
    logits, one = trained(copy.deepcopy(model), x, labels)
    plain, other = trained(undeferred(model), x, labels)
    assert torch.equal(logits, plain)
    expected = dict(other.named_parameters())
    for key, parameter in one.named_parameters():
        got, wanted = parameter.grad, expected[key].grad
        assert got is not None and wanted is not None, key
        scale = max(float(wanted.norm()), 1e-4)
        assert float((got - wanted).norm()) / scale < 2e-3, key
    state = dict(other.named_buffers())
    for key, buffer in one.named_buffers():
        assert torch.equal(buffer, state[key]), key


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
