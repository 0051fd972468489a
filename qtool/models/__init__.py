"""Networks by name. Importing this module does not import torch."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from qtool.errors import unknown_name

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Entry:
    """Where a network's factory is, the image it expects, and what `qtool list` says."""

    module: str
    function: str
    input_shape: tuple[int, int, int]
    summary: str


MODELS = {
    "mobilenet_v2": Entry(
        "qtool.models.mobilenet_v2", "mobilenet_v2", (3, 224, 224), "ImageNet, 301 M MACs"
    ),
    "mobilenet_v2_small": Entry(
        "qtool.models.mobilenet_v2", "mobilenet_v2_small", (1, 28, 28), "28-32 px, 3.1 M MACs"
    ),
    "resnet18": Entry(
        "qtool.models.resnet", "resnet18", (3, 224, 224), "ImageNet, 1.81 G MACs"
    ),
    "resnet34": Entry(
        "qtool.models.resnet", "resnet34", (3, 224, 224), "ImageNet, 3.66 G MACs"
    ),
    "resnet50": Entry(
        "qtool.models.resnet", "resnet50", (3, 224, 224), "ImageNet, 4.09 G MACs"
    ),
}


def model_entry(name: str) -> Entry:
    """Return the registry's entry for `name`."""
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name]


def model_factory(name: str) -> "Callable[..., nn.Module]":
    """Return the function that builds `name`; it takes ``in_channels`` and ``classes``."""
    entry = model_entry(name)
    factory: Callable[..., nn.Module] = getattr(import_module(entry.module), entry.function)
    return factory
