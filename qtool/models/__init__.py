"""Networks by name. Importing this module does not import torch.

A name is an entry of `MODELS`, or says where a network outside qtool is:
``package.module:factory``, ``timm:NAME``, ``torchvision:NAME`` (`qtool.models.foreign`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from qtool.core.errors import unknown_name

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Entry:
    """Where a network's factory is, the image it expects, and what `qtool list` says.

    Args:
        module: its module.
        function: name of the factory in it.
        input_shape: (C, H, W); empty where only the user knows.
        summary: one line.
    """

    module: str
    function: str
    input_shape: tuple[int, ...]
    summary: str


_RESNET, _CIFAR, _CNN = "qtool.models.resnet", "qtool.models.resnet_cifar", "qtool.models.cnn"
_PREACT, _V2 = "qtool.models.preact_resnet", "qtool.models.mobilenet_v2"
_V1, _V3 = "qtool.models.mobilenet_v1", "qtool.models.mobilenet_v3"
_PX224, _PX32 = (3, 224, 224), (3, 32, 32)
_OMNIGLOT, _MINI = (1, 28, 28), (3, 84, 84)

MODELS = {
    "mobilenet_v1": Entry(_V1, "mobilenet_v1", _PX224, "ImageNet, 569 M MACs"),
    "mobilenet_v2": Entry(_V2, "mobilenet_v2", _PX224, "ImageNet, 301 M MACs"),
    "mobilenet_v2_cifar": Entry(_V2, "mobilenet_v2_cifar", _PX32, "CIFAR, 88.0 M MACs"),
    "mobilenet_v2_small": Entry(
        _V2, "mobilenet_v2_small", (1, 28, 28), "28-32 px, 3.1 M MACs"
    ),
    "mobilenet_v3_large": Entry(_V3, "mobilenet_v3_large", _PX224, "ImageNet, 217 M MACs"),
    "mobilenet_v3_small": Entry(_V3, "mobilenet_v3_small", _PX224, "ImageNet, 56.5 M MACs"),
    "resnet18": Entry(_RESNET, "resnet18", _PX224, "ImageNet, 1.81 G MACs"),
    "resnet18_cifar": Entry(_RESNET, "resnet18_cifar", _PX32, "CIFAR, 555 M MACs"),
    "resnet34": Entry(_RESNET, "resnet34", _PX224, "ImageNet, 3.66 G MACs"),
    "resnet50": Entry(_RESNET, "resnet50", _PX224, "ImageNet, 4.09 G MACs"),
    "resnet101": Entry(_RESNET, "resnet101", _PX224, "ImageNet, 7.80 G MACs"),
    "resnet20": Entry(_CIFAR, "resnet20", _PX32, "CIFAR, 40.6 M MACs"),
    "resnet32": Entry(_CIFAR, "resnet32", _PX32, "CIFAR, 68.9 M MACs"),
    "resnet44": Entry(_CIFAR, "resnet44", _PX32, "CIFAR, 97.2 M MACs"),
    "resnet56": Entry(_CIFAR, "resnet56", _PX32, "CIFAR, 125 M MACs"),
    "preact_resnet20": Entry(
        _PREACT, "preact_resnet20", _PX32, "CIFAR, 80 to 320 wide, 1.01 G MACs"
    ),
    "preact_resnet20_narrow": Entry(
        _PREACT, "preact_resnet20_narrow", _PX32, "CIFAR, 16 to 64 wide, 40.8 M MACs"
    ),
    "svhn_cnn8": Entry(_CNN, "svhn_cnn8", (3, 40, 40), "SVHN, 8 layers, 41.7 M MACs"),
    "cnn4_omniglot": Entry(_CNN, "cnn4_omniglot", _OMNIGLOT, "embedding, 9.8 M MACs"),
    "cnn4_miniimagenet": Entry(_CNN, "cnn4_miniimagenet", _MINI, "embedding, 97.2 M MACs"),
    "cnn5_omniglot": Entry(_CNN, "cnn5_omniglot", _OMNIGLOT, "20-way, 9.8 M MACs"),
    "cnn5_miniimagenet": Entry(_CNN, "cnn5_miniimagenet", _MINI, "5-way, 27.3 M MACs"),
}


def model_entry(name: str) -> Entry:
    """Return the entry of `name`; a foreign one is looked up, so its module is imported.

    Raises:
        UserError: no such model, module or factory.
    """
    if ":" in name:
        from qtool.models.foreign import find

        module, _, function = name.partition(":")
        return Entry(module, function, find(name).input_shape, "")
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name]


def model_factory(name: str) -> "Callable[..., nn.Module]":
    """Return the function that builds `name`.

    It takes ``in_channels`` and ``classes``, keywords that may be left out; a factory whose
    signature lacks one is called without it.

    Raises:
        UserError: no such model, module or factory; the function raises it too, where a
            foreign factory fails or returns something else than an ``nn.Module``.
    """
    from qtool.models.foreign import builder, find

    if ":" in name:
        return builder(name, find(name).factory)
    entry = model_entry(name)
    return builder(name, getattr(import_module(entry.module), entry.function))
