"""What does not depend on the bits is computed once, with the gradients of every pass."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from qtool.core.selection import LayerBits, Selection
from qtool.models import model_factory
from qtool.nn.control import calibrate, quant_layers, select
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.nn.shared_prefix import SharedPrefix

BITS = (8, 4, 3)


def gradients(model: fx.GraphModule, x: Tensor, labels: Tensor, share: bool) -> list[Tensor]:
    """Return the gradients of the summed loss at all bits, and the first layer's calls."""
    calls = torch.zeros(())

    def count(*_: object) -> None:
        calls.add_(1)

    quant_layers(model)[0].register_forward_hook(count)
    shared = SharedPrefix(model.train())
    shared.is_empty = shared.is_empty or not share
    with shared.passes(x) as run:
        for bits in BITS:
            select(model, Selection(default=LayerBits(32, bits)), weights=False)
            nn.functional.cross_entropy(run(), labels).backward()
    return [p.grad for p in model.parameters() if p.grad is not None] + [calls]


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2_cifar"])
def test_one_first_pass_for_all_bits(name: str) -> None:
    torch.manual_seed(0)
    model = prepare(model_factory(name)(in_channels=3, classes=10), QuantSpec(BITS, 4))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.bias, 0.1, 0.3)
    x, labels = torch.rand(8, 3, 32, 32), torch.randint(0, 10, (8,))
    calibrate(model, x)
    once = gradients(copy.deepcopy(model), x, labels, share=True)
    each = gradients(copy.deepcopy(model), x, labels, share=False)
    assert once[-1] == 1 and each[-1] == len(BITS)
    assert len(once) == len(each)
    for got, expected in zip(once[:-1], each[:-1], strict=True):
        assert float((got - expected).norm()) <= 1e-4 * float(expected.norm())


def test_a_network_of_fixed_bits_has_nothing_to_share() -> None:
    model = prepare(model_factory("resnet20")(in_channels=3, classes=10), QuantSpec((4,), 4))
    shared = SharedPrefix(model)
    x = torch.rand(2, 3, 32, 32)
    assert shared.is_empty
    with shared.passes(x) as run:
        assert torch.equal(run(), model(x))
