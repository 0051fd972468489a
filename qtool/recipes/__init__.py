"""Recipes by name: functions that return a frozen config."""

from collections.abc import Callable

from qtool.config import MetaMixConfig
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


RECIPES: dict[str, Callable[[], MetaMixConfig]] = {"metamix_fashion": metamix_fashion}


def load_recipe(name: str) -> MetaMixConfig:
    """Return the config of recipe `name`."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()
