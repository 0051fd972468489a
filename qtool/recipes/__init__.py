"""Recipes by name: functions that return a frozen config."""

from collections.abc import Callable
from dataclasses import replace

from qtool.config import Config, MetaMixConfig, PtqConfig
from qtool.errors import unknown_name


def metamix_fashion() -> MetaMixConfig:
    """MetaMix on the embedded Fashion-MNIST subset: minutes on two cores."""
    return MetaMixConfig(
        name="metamix_fashion",
        model="mobilenet_v2_small",
        dataset="fashion_mnist_12k",
        search_lambda=5.0,
        alpha_lr=0.02,
        finetune_epochs=10,
        finetune_lr=0.1,
    )


def ptq_resnet20_cifar() -> PtqConfig:
    """CIFAR-10 ResNet-20 without training: --set weights=FILE of float weights."""
    return PtqConfig(
        name="ptq_resnet20_cifar",
        model="resnet20",
        dataset="cifar10",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def ptq_resnet56_cifar() -> PtqConfig:
    """CIFAR-10 ResNet-56 without training: --set weights=FILE of float weights."""
    return replace(ptq_resnet20_cifar(), name="ptq_resnet56_cifar", model="resnet56")


RECIPES: dict[str, Callable[[], Config]] = {
    "metamix_fashion": metamix_fashion,
    "ptq_resnet20_cifar": ptq_resnet20_cifar,
    "ptq_resnet56_cifar": ptq_resnet56_cifar,
}


def load_recipe(name: str) -> Config:
    """Return the config of recipe `name`."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()
