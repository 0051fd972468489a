"""A tiny prepared network at something like a meta-state, for tests of searches."""

import torch
from tiny_training import CLASSES, SHAPE, plain_net
from torch import nn

from qtool.data.batches import Batch
from qtool.nn.control import calibrate
from qtool.nn.prepare.prepare import QuantSpec, prepare
from qtool.search.space import Space, space_of


def batches(count: int = 2, size: int = 6) -> list[Batch]:
    torch.manual_seed(1)
    return [(torch.rand(size, *SHAPE), torch.randint(CLASSES, (size,))) for _ in range(count)]


def float_net() -> nn.Module:
    torch.manual_seed(0)
    first, *rest = plain_net()
    middle = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(first, *list(rest)[:2], *middle, *list(rest)[2:])


def meta_net(weights: tuple[int, ...] = (4,)) -> tuple[nn.Module, Space]:
    """Return a calibrated network of two open layers, and its space."""
    spec = QuantSpec(activation_bits=(8, 4, 2), weight_bits=weights)
    model = prepare(float_net(), spec, SHAPE)
    calibrate(model, batches()[0][0])
    return model, space_of(model, SHAPE)


def fingerprint(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(before: dict[str, torch.Tensor], model: nn.Module) -> bool:
    after = model.state_dict()
    return all(torch.equal(before[name], after[name]) for name in after)
